"""Gates of a mirror: a vetoed image is not published, and a gate that fails is a failure of its image."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from prefect_dist.mirror.render import summary_line
from prefect_dist.transfer.gate import Candidate, Veto
from tests import images
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import Mirrors, count_uploads, find_missing, repository, results
from tests.flows.reports import error_lines
from tests.peers.prefect import PrefectServer

GOOD, BAD = images.image(980, layers=1), images.image(981, layers=1)


def load(source: FakeRegistry) -> None:
    images.load(source, "app", GOOD, "good")
    images.load(source, "app", BAD, "bad")


def program(script: str) -> dict[str, Any]:
    return {"command": ["sh", "-c", script]}


def by_function(candidate: Candidate) -> None:
    """Veto one image, if it is in the store."""
    manifest = Path(candidate.store, "blobs", *str(candidate.digest).split(":")).read_bytes()
    if manifest == BAD.manifests[-1].raw:
        raise Veto("3 critical findings")


PROGRAM = program('case "$DIST_REFERENCE" in *:bad) echo 3 critical findings; exit 1;; esac')
FUNCTION = {"python": f"{__name__}:by_function"}


@pytest.mark.parametrize("gate", [PROGRAM, FUNCTION], ids=["program", "function"])
def test_a_vetoed_image_is_not_published_and_its_run_ends_as_vetoed(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, prefect: PrefectServer, gate: dict[str, Any]
) -> None:
    load(source)
    entry = repository(source, target, gate=gate)

    report = mirrors.run(entry)

    assert (report.status, results(report)) == ("vetoed", {"copy:good": "added", "copy:bad": "vetoed"})
    (note,) = list(report.notes)
    assert note.startswith(f"{source.host}/app:bad to {target.host}/copy:bad: vetoed by ")
    assert "3 critical findings" in note
    assert not find_missing(target, "copy", GOOD, "good")
    assert count_uploads(mirrors.take_requests(target)).keys() == GOOD.blobs.keys()
    assert (error_lines(report), "1 vetoed" in summary_line(report)) == ([], True)
    recorded = prefect.get(f"/flow_runs/{mirrors.flow_run}")["state"]
    assert (recorded["type"], recorded["name"]) == ("COMPLETED", "Vetoed")
    assert f"{target.host}/copy:bad" not in mirrors.read_lock()
    prefect.task_runs(mirrors.flow_run, at_least=report.tasks)
    edges = prefect.edges(mirrors.flow_run)
    layer = list(GOOD.blobs)[-1][:19]
    judged = f"gate {source.host}/app:good"
    assert {(f"mirror layer {layer}", judged), (judged, f"publish {target.host}/copy:good")} <= edges

    assert results(mirrors.run({**entry, "gate": None})) == {"copy:good": "unchanged", "copy:bad": "added"}


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ({"command": ["/no/such/program"]}, "cannot be started (No such file or directory)"),
        (program("kill -9 $$"), "was killed by SIGKILL"),
        (program("exec sleep 60") | {"timeout": "1s"}, "gave no answer in 1 s"),
        ({"python": "no.such.module:gate"}, "cannot be imported"),
    ],
    ids=["missing program", "killed", "timeout", "missing module"],
)
def test_an_image_whose_gate_fails_is_failed_and_not_published(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, gate: dict[str, Any], message: str
) -> None:
    load(source)
    images.load(source, "free", GOOD, "v1")
    free = {"type": "image", "source": f"{source.host}/free:v1", "target": f"{target.host}/free:v1"}
    report = mirrors.run(repository(source, target, gate=gate), free)
    assert results(report) == {"copy:good": "failed", "copy:bad": "failed", "free:v1": "added"}
    assert all(message in error for error in error_lines(report))
    assert len(error_lines(report)) == 2
    assert {one.path.split("/")[2] for one in mirrors.take_requests(target) if one.method not in ("GET", "HEAD")} == {"free"}


def test_a_gate_does_not_run_for_an_unchanged_image(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, tmp_path: Path
) -> None:
    load(source)
    log = tmp_path / "log"
    entry = repository(source, target, gate=program(f"echo $DIST_PINNED >> {log}"))
    mirrors.run(entry)
    mirrors.run(entry)
    names = sorted(f"{source.host}/app@{built.root.digest}" for built in (GOOD, BAD))
    assert sorted(log.read_text().split()) == names


def test_a_gate_that_is_added_later_runs_for_mirrored_images_with_the_key_existing(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    load(source)
    assert mirrors.run(repository(source, target)).status == "complete"
    assert results(mirrors.run(repository(source, target, gate=PROGRAM))) == {"copy:good": "unchanged", "copy:bad": "unchanged"}
    shutil.rmtree(mirrors.store)
    mirrors.take_requests(target)
    entry = repository(source, target, gate={**PROGRAM, "existing": True}, immutableTags=[".*"])

    report = mirrors.run(entry)

    assert (report.status, results(report)) == ("vetoed", {"copy:good": "unchanged", "copy:bad": "vetoed"})
    (note,) = list(report.notes)
    assert note == (
        f"{source.host}/app:bad to {target.host}/copy:bad: vetoed by sh: 3 critical findings (exit status 1); "
        "the target keeps the image that was mirrored before"
    )
    assert {one.method for one in mirrors.take_requests(target)} == {"HEAD"}
    assert not find_missing(target, "copy", BAD, "bad")
    assert mirrors.read_lock()[f"{target.host}/copy:bad"]["mirrored"]


def test_a_mirrored_image_whose_gate_fails_is_failed(mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry) -> None:
    load(source)
    assert mirrors.run(repository(source, target)).status == "complete"
    report = mirrors.run(repository(source, target, gate={"command": ["/no/such/program"], "existing": True}))
    assert (report.status, results(report)) == ("failed", {"copy:good": "failed", "copy:bad": "failed"})
    assert all("cannot be started" in error for error in error_lines(report))
