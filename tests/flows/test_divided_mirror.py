"""Mirror runs that are divided into shards. Here the shards run in threads, each with its own resources, through files."""

import gc
import json
import uuid
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from prefect_dist.mirror import dividing
from prefect_dist.mirror.lock import Lock
from prefect_dist.mirror.mirror_shard_files import MirrorShardResult
from prefect_dist.mirror.plan import PlannedImage
from prefect_dist.mirror.results import MirrorResults
from prefect_dist.mirror.shard_format import read_stopped
from prefect_dist.mirror.shards import divide_images
from prefect_dist.ocispec import Descriptor
from prefect_dist.ocispec.errors import Unavailable
from prefect_dist.storage.backend import open_backend
from prefect_dist.transfer.cancellation import CancelToken, use_token
from tests import images
from tests.fakes.faults import Answer, Call, Fault
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import DirectMirrors, count_uploads, find_missing
from tests.flows.reports import error_lines, outcomes
from tests.flows.thread_shards import DividedMirrors
from tests.peers.processes import poll_until

APPS = {f"app{number}": images.image(900 + number, layers=2) for number in range(6)}
BILL = images.artifact(950, subject=APPS["app0"])


@pytest.fixture
def mirrors(tmp_path: Path) -> DividedMirrors:
    return DividedMirrors(tmp_path)


@pytest.fixture
def entry(source: FakeRegistry, target: FakeRegistry) -> dict[str, Any]:
    """An entry for all repositories of the source."""
    images.load(source, "app0", BILL)
    for name, built in APPS.items():
        images.load(source, name, built, "v1")
    return {"source": source.host, "type": "registry", "target": target.host, "referrers": True}


def test_shards_mirror_all_images_once_and_the_parent_records_them(
    mirrors: DividedMirrors, entry: dict[str, Any], source: FakeRegistry, target: FakeRegistry
) -> None:
    report = mirrors.run(entry)

    assert report.status == "complete", error_lines(report)
    assert set(outcomes(report).values()) == {"added"}
    assert [name for name, built in APPS.items() if find_missing(target, name, built, "v1")] == []
    assert find_missing(target, "app0", BILL) == []
    reads = Counter(one.path for one in source.requests if one.method == "GET" and "/blobs/" in one.path)
    assert set(reads.values()) == {1}
    assert {path.rpartition("/")[2] for path in reads} == {
        *BILL.blobs,
        *(digest for built in APPS.values() for digest in built.blobs),
    }
    assert set(count_uploads(target.requests).values()) == {1}
    # The shards know from the parent that the repositories are new.
    assert [one.path for one in target.requests if one.method == "HEAD" and "/blobs/" in one.path] == []
    assert mirrors.read_lock()[f"{target.host}/app0:v1"]["referrers"] == {BILL.root.digest: None}
    assert report.counts["sent_bytes"] > 0
    assert not (mirrors.store / "runs" / "run-1" / "shard-0.json").exists()


def test_a_divided_run_without_work_sends_the_requests_of_one_process(
    mirrors: DividedMirrors, entry: dict[str, Any], source: FakeRegistry, target: FakeRegistry
) -> None:
    mirrors.run(entry)
    mirrors.take_requests(source, target)
    assert mirrors.run(entry).counts["unchanged"] == len(APPS)
    divided = [(one.method, one.path) for one in mirrors.take_requests(source, target)]

    assert DirectMirrors.run(mirrors, entry).counts["unchanged"] == len(APPS)
    assert sorted(divided) == sorted((one.method, one.path) for one in mirrors.take_requests(source, target))


def test_a_failed_image_is_reported_by_the_parent_and_stops_no_other_image(
    mirrors: DividedMirrors, entry: dict[str, Any], target: FakeRegistry
) -> None:
    target.inject(Fault(method="PUT", path="/v2/app3/manifests/v1", nth=None, action=Answer(403, (), b"")))

    report = mirrors.run(entry)

    assert report.status == "failed"
    expected = dict.fromkeys((f"{target.host}/{name}:v1" for name in APPS), "added") | {f"{target.host}/app3:v1": "failed"}
    assert outcomes(report) == expected
    (line,) = error_lines(report)
    assert "403" in line
    assert f"{target.host}/app3:v1" not in {name for name, record in mirrors.read_lock().items() if record["mirrored"]}


@pytest.mark.parametrize("again", [(), (0, 1)])
def test_the_intention_of_a_failed_image_stays_if_an_earlier_attempt_may_have_set_the_tag(
    mirrors: DividedMirrors, entry: dict[str, Any], source: FakeRegistry, again: tuple[int, ...]
) -> None:
    """Without the intention, the next run would take the tag of a killed attempt for a foreign tag, and never prune it."""
    source.inject(Fault(path="/v2/app3/blobs/.*", nth=None, action=Answer(403, (), b"")))

    report = mirrors.run(entry, again=again)

    assert Counter(outcomes(report).values()) == {"added": len(APPS) - 1, "failed": 1}
    mirrored = {name.rpartition("/")[2]: record["mirrored"] is not None for name, record in mirrors.read_lock().items()}
    assert mirrored == {f"{name}:v1": name != "app3" for name in APPS if again or name != "app3"}


def test_the_images_of_a_lost_shard_fail_and_a_restarted_run_finishes_the_shard_first(
    mirrors: DividedMirrors, entry: dict[str, Any], target: FakeRegistry
) -> None:
    first = mirrors.run(entry, lost=[1])

    assert first.status == "failed"
    lost = [name for name, outcome in outcomes(first).items() if outcome == "failed"]
    assert lost
    assert "shard 1 crashed three times" in error_lines(first)[0]
    assert (mirrors.store / "runs" / "run-1" / "shard-1.json").exists()
    mirrors.steps.clear()
    again = mirrors.run(entry)
    assert again.status == "complete", error_lines(again)
    assert set(outcomes(again).values()) == {"unchanged"}
    assert [name for name, built in APPS.items() if find_missing(target, name, built, "v1")] == []
    assert set(count_uploads(target.requests).values()) == {1}
    assert {record["mirrored"] is None for record in mirrors.read_lock().values()} == {False}
    assert mirrors.steps == ["carry out [1]", "plan", "carry out []"]


def test_a_restarted_run_does_not_use_the_numbers_of_lost_shards_again(
    mirrors: DividedMirrors, entry: dict[str, Any], target: FakeRegistry
) -> None:
    """For a number of an earlier attempt, Prefect returns the flow run that crashed."""
    assert mirrors.run(entry, lost=[0, 1]).status == "failed"

    again = mirrors.run(entry, lost=[0, 1])

    assert again.status == "complete", error_lines(again)
    assert [name for name, built in APPS.items() if find_missing(target, name, built, "v1")] == []
    assert not list((mirrors.store / "runs" / "run-1").glob("*.json"))


def test_a_run_that_failed_in_planning_starts_again_under_the_same_id_with_new_numbers(
    mirrors: DividedMirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    names = ("early", "late")
    entries = [{"source": f"{source.host}/{name}:v1", "type": "image", "target": f"{target.host}/{name}:v1"} for name in names]
    images.load(source, "early", APPS["app1"], "v1")
    first = mirrors.run(*entries)
    assert (first.status, first.counts["added"]) == ("failed", 1), error_lines(first)
    images.load(source, "late", APPS["app0"], "v1")
    mirrors.steps.clear()

    again = mirrors.run(*entries)

    assert again.status == "complete", error_lines(again)
    assert not find_missing(target, "late", APPS["app0"], "v1")
    assert mirrors.steps == ["carry out [1]"]


def test_shards_on_an_object_store_transfer_common_content_once(
    mirrors: DividedMirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    """Each shard has its own process in a real run, and its own store instance here: only claims connect the shards."""
    built, names = images.image(970, layers=2, layer_bytes=200_000), [f"app{number}" for number in range(4)]
    for name in names:
        images.load(source, name, built, "v1")
    large = {digest for digest, data in built.blobs.items() if len(data) > 64 * 1024}

    report = mirrors.run(
        {"source": source.host, "type": "registry", "target": target.host}, place=f"memory://{uuid.uuid4().hex}", workers=4
    )

    assert report.status == "complete", error_lines(report)
    assert [name for name in names if find_missing(target, name, built, "v1")] == []
    reads = Counter(one.path.rpartition("/")[2] for one in source.requests if one.method == "GET" and "/blobs/" in one.path)
    assert {digest: reads[digest] for digest in large} == dict.fromkeys(large, 1)
    uploads = count_uploads(target.requests)
    assert {digest: uploads[digest] for digest in large} == dict.fromkeys(large, 1)
    assert report.counts["mounted"] >= len(large) * (len(names) - 1)


def test_content_of_a_new_repository_that_is_divided_is_uploaded_once(
    mirrors: DividedMirrors, target: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository that is new in two shards is new only for the first upload."""
    monkeypatch.setattr(dividing, "divide_images", partial(divide_images, most_tasks=8))
    variants = (f"linux/arm/v{number}" for number in range(12))  # images with the same layers
    built = {f"v{number}": images.image(990, layer_bytes=100_000, platform=one) for number, one in enumerate(variants)}
    with FakeRegistry() as source:
        for tag, one in built.items():
            images.load(source, "big", one, tag)

        report = mirrors.run({"source": source.host, "type": "registry", "target": target.host}, workers=4)

    assert report.status == "complete", error_lines(report)
    assert [tag for tag, one in built.items() if find_missing(target, "big", one, tag)] == []
    assert set(count_uploads(target.requests).values()) == {1}
    assert not [one for one in target.requests if "from=big" in one.query]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "not JSON"),
        (b'{"version": 2}', "use the same version of dist on all workers"),
        (b'{"version": 1, "stats": [], "tasks": 0}', "expected an object, got a list"),
    ],
)
def test_a_damaged_result_fails_the_images_of_its_shard_only(
    mirrors: DividedMirrors, entry: dict[str, Any], content: bytes, says: str
) -> None:
    report = mirrors.run(entry, results={1: content})

    assert Counter(outcomes(report).values()).keys() == {"added", "failed"}
    assert {says in line and "runs/run-1/result-1.json" in line for line in error_lines(report)} == {True}, error_lines(report)
    again = mirrors.run(entry)
    assert (again.status, set(outcomes(again).values())) == ("complete", {"unchanged"}), error_lines(again)


def test_a_result_that_is_missing_is_an_error_with_a_remedy(mirrors: DividedMirrors, entry: dict[str, Any]) -> None:
    mirrors.ended[1] = None  # another program has removed the result

    lines = error_lines(mirrors.run(entry))

    says = "/runs/run-1/result-1.json: the shard ended without a result; run again to resume"
    assert {line.endswith(says) for line in lines} == {True}, lines


def test_files_of_a_killed_run_with_other_names_do_not_stop_the_next_attempt(
    mirrors: DividedMirrors, entry: dict[str, Any]
) -> None:
    directory = mirrors.store / "runs" / "run-1"
    directory.mkdir(parents=True)
    for name in ("shard-0.json.0123abcd.new", "shard-x.json", "shard-.json", "result-0.json.0123abcd.new"):
        (directory / name).write_bytes(b"{")
    report = mirrors.run(entry)
    assert report.status == "complete", error_lines(report)
    assert {path.name for path in directory.iterdir()} == {"shard-x.json", "shard-.json"}  # no run writes such files


@pytest.mark.parametrize("what", ["target", "gate"])
def test_a_worker_refuses_the_file_of_a_shard_that_another_program_changed(
    mirrors: DividedMirrors, entry: dict[str, Any], target: FakeRegistry, tmp_path: Path, what: str
) -> None:
    """Otherwise a writer of the content store could copy any image to any target, or run a program on a worker."""

    def change(raw: bytes) -> bytes:
        gate = json.dumps({"command": ["touch", str(tmp_path / "ran")], "timeout_s": 60, "existing": False}).encode()
        host = target.host.encode()
        changed = raw.replace(b'"gate":null', b'"gate":' + gate) if what == "gate" else raw.replace(host, host + b"/else")
        assert changed != raw
        return changed

    report = mirrors.run(entry, inputs={1: change})

    assert Counter(outcomes(report).values()).keys() == {"added", "failed"}
    assert {"runs/run-1/shard-1.json: expected the digest sha256:" in line for line in error_lines(report)} == {True}
    assert not (tmp_path / "ran").exists()
    assert not [one.path for one in target.requests if "/else/" in one.path]
    again = mirrors.run(entry)
    assert (again.status, set(outcomes(again).values())) == ("complete", {"unchanged", "added"}), error_lines(again)
    assert [name for name, built in APPS.items() if find_missing(target, name, built, "v1")] == []


def test_a_restarted_run_ignores_the_file_of_a_shard_that_no_attempt_submitted(
    mirrors: DividedMirrors, entry: dict[str, Any], target: FakeRegistry
) -> None:
    mirrors.run(entry, lost=[0, 1])
    directory = mirrors.store / "runs" / "run-1"
    forged = (directory / "shard-0.json").read_bytes().replace(target.host.encode(), f"{target.host}/else".encode())
    (directory / "shard-7.json").write_bytes(forged)

    report = mirrors.run(entry)

    assert report.status == "complete", error_lines(report)
    assert not [one.path for one in target.requests if "/else/" in one.path]
    assert not any(directory.glob("*"))


def test_the_parent_has_no_content_of_images_in_memory_when_it_writes_the_lock_file(
    mirrors: DividedMirrors, entry: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {digest for built in APPS.values() for digest in built.blobs}
    planned, kept, update = list[int](), list[Descriptor](), Lock.update

    def inspect_memory(lock: Lock, *changes: Any) -> None:
        gc.collect()
        objects = gc.get_objects()
        planned.append(sum(isinstance(one, PlannedImage) and one.item.source.host == entry["source"] for one in objects))
        kept.extend(one for one in objects if isinstance(one, Descriptor) and str(one.digest) in wanted)
        update(lock, *changes)

    monkeypatch.setattr(Lock, "update", inspect_memory)

    report = mirrors.run(entry)

    assert report.status == "complete", error_lines(report)
    assert planned == [len(APPS), len(APPS)]  # the intentions, then the results
    assert kept == []


def test_a_run_that_is_cancelled_during_planning_records_no_image(
    mirrors: DividedMirrors, entry: dict[str, Any], source: FakeRegistry, target: FakeRegistry
) -> None:
    cancel = CancelToken()
    with FakeRegistry() as late:  # the images of the first source are planned before the second source is listed
        images.load(late, "late", APPS["app0"], "v1")

        def cancel_after_survey() -> None:
            surveyed = {f"/v2/{name}/manifests/v1" for name in APPS}
            assert poll_until(lambda: surveyed <= {one.path for one in source.requests})
            cancel.request("the user")

        late.inject(Fault(path="/v2/_catalog", action=Call(cancel_after_survey)))
        with use_token(cancel):
            report = mirrors.run(entry, {"source": late.host, "type": "registry", "target": f"{target.host}/late"})

    assert report.status == "stopped"
    assert {outcomes(report)[f"{target.host}/{name}:v1"] for name in APPS} == {"failed"}
    assert mirrors.read_lock() == {}
    assert not [one.path for one in target.requests if one.method == "PUT"]


@pytest.mark.parametrize(("lost", "expected"), [((1,), {"added", "failed"}), ((), {"added"})])
def test_an_error_of_the_runner_fails_only_shards_without_a_result(
    mirrors: DividedMirrors, entry: dict[str, Any], lost: tuple[int, ...], expected: set[str]
) -> None:
    error = Unavailable("no worker polls the work pool dist")

    report = mirrors.run(entry, lost=lost, error=error)

    assert set(outcomes(report).values()) == expected
    assert {line.endswith(str(error)) for line in error_lines(report)} == ({True} if lost else set())
    recorded = {name for name, record in mirrors.read_lock().items() if record["mirrored"]}
    assert recorded == {name for name, outcome in outcomes(report).items() if outcome == "added"}


def test_a_store_that_refuses_to_delete_files_costs_a_note(
    mirrors: DividedMirrors, entry: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(path: str) -> None:
        raise PermissionError(path)

    place = f"memory://{uuid.uuid4().hex}"
    backend, _, _ = open_backend(place, {})
    monkeypatch.setattr(backend.fs, "rm_file", deny)  # an earlier test may have left an attribute of this instance

    report = mirrors.run(entry, place=place)

    assert report.status == "complete", error_lines(report)
    assert all(record["mirrored"] for record in mirrors.read_lock().values())
    assert "files of the run stay in the content store until gc removes them" in mirrors.notes[-1]


def test_the_targets_of_a_cancelled_run_have_the_reason_of_the_parent(mirrors: DividedMirrors, entry: dict[str, Any]) -> None:
    """The shards know only that their workers stopped them."""
    cancel = CancelToken()

    def cancel_parent(raw: bytes) -> bytes:
        cancel.request("interrupted")
        return raw

    with use_token(cancel):
        report = mirrors.run(entry, inputs={0: cancel_parent}, stopped=(0, 1))

    assert report.status == "stopped"
    assert {line.rpartition(": ")[2].partition(";")[0] for line in error_lines(report)} == {"interrupted"}


def test_the_progress_of_a_run_counts_the_images_of_ended_shards(mirrors: DividedMirrors, entry: dict[str, Any]) -> None:
    mirrors.run(entry)

    assert mirrors.notes[-2:] == ["1 of 2 shards ended", "2 of 2 shards ended"]
    assert (mirrors.progress.words(), mirrors.progress.fraction()) == (
        "6 of 6 images compared, 6 of 6 images in ended shards",
        1,
    )


def test_the_parent_shows_that_it_is_alive_while_shards_wait(mirrors: DividedMirrors, entry: dict[str, Any]) -> None:
    """gc removes the files of a run after a day without a write."""
    seen = list[bool]()

    def wait_for_sign(raw: bytes) -> bytes:
        seen.append(poll_until((mirrors.store / "runs" / "run-1" / "alive.json").exists))
        return raw

    report = mirrors.run(entry, inputs={0: wait_for_sign})

    assert (report.status, seen) == ("complete", [True])
    assert not list((mirrors.store / "runs").glob("*/*"))


def test_only_the_targets_of_a_stopped_shard_lose_the_record_of_compared_referrers(
    mirrors: DividedMirrors, entry: dict[str, Any]
) -> None:
    stopped = MirrorShardResult(results=MirrorResults(is_stopped=True)).to_json()

    report = mirrors.run(entry, results={1: stopped})

    assert (report.status, report.stopped) == ("complete", None)
    assert Counter("related" in record for record in mirrors.read_lock().values()) == {True: 3, False: 3}


def test_a_stopped_shard_says_so_in_its_result_and_the_run_has_failed(mirrors: DividedMirrors, entry: dict[str, Any]) -> None:
    report = mirrors.run(entry, stopped=[1])

    directory = mirrors.store / "runs" / "run-1"
    signed = [(directory / f"result-{number}.json").read_bytes() for number in range(2)]
    assert [read_stopped(one.partition(b"\n")[2]) for one in signed] == [False, True]
    assert (report.status, report.stopped) == ("failed", None)
    assert Counter(outcomes(report).values()) == {"added": 3, "failed": 3}
    assert error_lines(report) == [
        "3 targets not finished: terminated by the worker; complete content is kept, run again to resume"
    ]
    assert Counter("related" in record for record in mirrors.read_lock().values())[True] == 3
