"""Checks that are divided into shards have the results of a check in one process."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prefect_dist.mirror.check_shard_files import CheckShardInput, CheckShardResult
from prefect_dist.mirror.checking import CheckResults
from prefect_dist.mirror.lock import Lock
from prefect_dist.mirror.report import AuditRow, RunReport
from prefect_dist.mirror.shard_format import read_stopped
from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import Denied, InvalidInput
from prefect_dist.transfer.stats import TransferStats
from tests import images
from tests.fakes.faults import Answer, Fault, WithHeaders
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import DirectMirrors, count_requests, count_uploads, find_missing
from tests.flows.reports import document, error_lines
from tests.flows.thread_shards import DividedMirrors

APPS = {f"app{number}": images.image(9000 + number, layers=2) for number in range(6)}
BILL = images.artifact(9050, subject=APPS["app0"])
LAYER = list(APPS["app1"].blobs)[1]
# Measurements of one run, which no two runs share.
MEASURED = {"seconds", "flow_run_id"}


@pytest.fixture
def mirrors(tmp_path: Path, source: FakeRegistry, target: FakeRegistry) -> DividedMirrors:
    """A mirror of six repositories with their referrers, at a complete target."""
    images.load(source, "app0", BILL)
    for name, built in APPS.items():
        images.load(source, name, built, "v1")
    mirrors = DividedMirrors(tmp_path)
    entry = {"source": source.host, "type": "registry", "target": target.host, "referrers": True}
    assert DirectMirrors.run(mirrors, entry).counts["added"] == len(APPS)
    mirrors.take_requests(source, target)
    return mirrors


def damage(target: FakeRegistry) -> None:
    """Remove a layer, a tag and a referrer. The target refuses reads of one repository."""
    target.lose("app1", LAYER)
    target.untag("app2", "v1")
    target.lose("app0", BILL.root.digest)
    for method in ("HEAD", "GET"):
        target.inject(Fault(method=method, path="/v2/app4/manifests/v1", nth=None, action=Answer(403, (), b"")))


def comparable(report: RunReport) -> dict[str, Any]:
    return {key: value for key, value in document(report).items() if key not in MEASURED}


def test_a_divided_check_sends_the_requests_of_one_process_and_has_the_same_report(
    mirrors: DividedMirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    damage(target)
    quota = WithHeaders((("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "42;w=21600")))
    target.inject(Fault(method="HEAD", path="/v2/app5/.*", nth=None, action=quota))
    whole = mirrors.check()
    requests = count_requests(mirrors.take_requests(target))

    divided = mirrors.check_divided()

    assert {row.outcome for row in whole.select(AuditRow)} == {"damaged", "unresolved"}
    assert (whole.counts["ok"], whole.counts["damaged"], whole.counts["unresolved"]) == (2, 3, 1)
    assert document(whole)["quotas"].keys() == {target.host}
    assert comparable(divided) == comparable(whole)
    assert error_lines(divided) == error_lines(whole)
    assert (divided.status, whole.status) == ("failed", "failed")
    assert count_requests(mirrors.take_requests(target)) == requests
    assert mirrors.take_requests(source) == []
    assert not list((mirrors.store / "runs" / "run-1").glob("*.json"))


def test_a_divided_repair_uploads_what_one_process_uploads_and_has_the_same_report(
    mirrors: DividedMirrors, target: FakeRegistry
) -> None:
    damage(target)
    whole = mirrors.check(repair=True)
    uploads = count_uploads(mirrors.take_requests(target))
    lock = mirrors.lock.read_bytes()
    damage(target)

    divided = mirrors.check_divided(repair=True)

    assert uploads == Counter([LAYER])
    assert (whole.counts["repaired"], whole.counts["unresolved"]) == (3, 1)
    assert comparable(divided) == comparable(whole)
    assert count_uploads(mirrors.take_requests(target)) == uploads
    assert [name for name, built in APPS.items() if find_missing(target, name, built, "v1")] == []
    assert not find_missing(target, "app0", BILL)
    assert mirrors.lock.read_bytes() == lock


def test_the_targets_of_a_lost_shard_are_unresolved_and_the_next_attempt_checks_them(
    mirrors: DividedMirrors, target: FakeRegistry
) -> None:
    target.lose("app1", LAYER)

    first = mirrors.check_divided(repair=True, lost=[0])

    rows = first.select(AuditRow)
    lost = [row for row in rows if row.outcome == "unresolved"]
    assert first.status == "failed"
    assert len(lost) == first.counts["unresolved"] == len(APPS) // 2
    assert {str(error) for row in lost for error in row.errors} == {"shard 0 crashed three times"}
    again = mirrors.check_divided(repair=True)
    assert again.status == "complete", error_lines(again)
    assert again.counts["ok"] + again.counts["repaired"] == len(APPS)
    assert not find_missing(target, "app1", APPS["app1"], "v1")


def test_a_failed_check_starts_again_under_the_same_id_with_new_numbers(mirrors: DividedMirrors, target: FakeRegistry) -> None:
    """Prefect's UI starts a failed flow run again. For a number of the earlier attempt, Prefect returns the ended flow run."""
    target.lose("app1", LAYER)
    first = mirrors.check_divided()
    mirrors.steps.clear()

    again = mirrors.check_divided()

    assert (first.counts["ok"], first.counts["damaged"], first.counts["unresolved"]) == (len(APPS) - 1, 1, 0)
    assert comparable(again) == comparable(first)
    assert mirrors.steps == ["carry out [2, 3]"]


def test_a_stopped_shard_says_so_in_its_result_and_its_targets_are_unresolved(mirrors: DividedMirrors) -> None:
    report = mirrors.check_divided(lost=[0], stopped=[1])  # the files of a run with a lost shard stay

    assert read_stopped((mirrors.store / "runs" / "run-1" / "result-1.json").read_bytes().partition(b"\n")[2])
    assert (report.status, report.counts["ok"], report.counts["unresolved"]) == ("failed", 0, len(APPS))
    assert {"terminated by the worker" in line for line in error_lines(report)} == {True, False}


def test_a_worker_whose_configuration_lacks_a_target_refuses_the_shard(mirrors: DividedMirrors, target: FakeRegistry) -> None:
    report = mirrors.check_divided(read=[])

    assert report.counts["unresolved"] == len(APPS)
    assert all("this worker needs the configuration of the parent run" in line for line in error_lines(report))
    assert mirrors.take_requests(target) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ok": 1}, "expected results for 3 targets, got 1"),
        ({"version": 2}, "use the same version of dist on all workers"),
        ({"rows": [{"target": "other.example/a:v1", "outcome": "damaged", "faults": [], "errors": []}]}, "only targets of the"),
        (
            {"rows": [{"target": "other.example/a:v1", "outcome": "lost", "faults": [], "errors": []}]},
            "the file of the run is da",
        ),
    ],
)
def test_the_targets_of_a_damaged_result_are_unresolved(mirrors: DividedMirrors, change: dict[str, Any], says: str) -> None:
    result = {"version": 1, "ok": 3, "rows": [], "stopped": False, "stats": {}, "tasks": 1, "quotas": {}}

    report = mirrors.check_divided(results={1: json.dumps(result | change).encode()})

    assert (report.counts["ok"], report.counts["unresolved"]) == (3, 3)
    assert {says in line and "runs/run-1/result-1.json" in line for line in error_lines(report)} == {True}, error_lines(report)


def test_the_files_of_a_divided_check_are_read_as_they_were_written(mirrors: DividedMirrors) -> None:
    wanted = CheckShardInput(records=Lock(str(mirrors.lock)).read(), is_repairing=True)
    assert CheckShardInput.from_json(wanted.to_json(), at="file") == wanted

    target = Reference.parse("registry.example/app:v1")
    row = AuditRow(target=target, outcome="failed", faults=("lost",), errors=(Denied("no access", subject="registry.example"),))
    stats = TransferStats(received=1, sent=2)
    result = CheckShardResult(results=CheckResults(ok=1, rows=(row,)), is_stopped=True, stats=stats, tasks=3)
    other = Reference.parse("registry.example/app:v2")
    found = CheckShardResult.from_json(result.to_json(), targets=[target, other], at="file")
    assert repr(found) == repr(result)
    with pytest.raises(InvalidInput, match=r"file\.version: missing"):
        CheckShardResult.from_json(b"{}", targets=[target], at="file")
