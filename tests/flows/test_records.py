"""The lock file after failed publications: records of other runs, and of tags that the run may have set."""

import json
from typing import Any

import pytest

from tests import images
from tests.fakes.faults import Answer, Call, Fault
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import Mirrors, image, results
from tests.flows.reports import plan_of

VETOED, FAILED, OTHER = (images.image(seed, layers=1) for seed in (8400, 8401, 8402))


def test_a_veto_restores_the_record_of_another_run_and_a_failure_keeps_the_own_record(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    images.load(source, "app", VETOED, "vetoed")
    images.load(source, "app", FAILED, "failed")
    vetoed, failed = (f"{target.host}/app:{tag}" for tag in ("vetoed", "failed"))
    theirs: dict[str, Any] = {
        "source": f"{source.host}/app:vetoed",
        "digest": OTHER.root.digest,
        "mirrored": "2026-02-03T04:05:06Z",
        "own": True,
    }

    def record() -> None:
        mirrors.lock.write_text(json.dumps({"version": 1, "images": {vetoed: theirs}}))

    source.inject(Fault(path=".*/manifests/vetoed", action=Call(record)))
    target.inject(Fault(method="PUT", path=".*/manifests/failed", nth=None, action=Answer(500)))

    report = mirrors.run(image(source, target, "app:vetoed", gate={"command": ["false"]}), image(source, target, "app:failed"))

    assert results(report) == {"app:vetoed": "vetoed", "app:failed": "failed"}
    locked = mirrors.read_lock()
    assert {name: locked[vetoed][name] for name in ("digest", "own")} == {"digest": OTHER.root.digest, "own": True}
    assert locked[vetoed]["mirrored"].startswith("2026-02-03T04:05:06")
    assert (locked[failed]["digest"], locked[failed]["own"], locked[failed]["mirrored"]) == (FAILED.root.digest, True, None)


@pytest.mark.usefixtures("prefect")
def test_a_mirror_and_a_seed_of_one_configuration_do_not_prune_the_tags_of_each_other(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    for repository, built in (("app", VETOED), ("tool", FAILED)):
        images.load(source, repository, built, "v1")
    at_once = {"after": "0s"}
    sync = {**image(source, target, "app:v1"), "type": "repository", "prune": at_once}
    sync |= {"source": f"{source.host}/app", "target": f"{target.host}/app"}
    section: dict[str, Any] = {"seed": {"images": [f"{source.host}/tool:v1"], "to": target.host}}
    mirrors.run(sync, **section)

    seeded = mirrors.seed(to=(), config=str(mirrors.config))
    checked = mirrors.check()
    mirrored = mirrors.run(sync, **section)

    assert (plan_of(seeded).orphans, plan_of(mirrored).orphans) == ((), ())
    assert (checked.counts["ok"], checked.counts["unchecked"]) == (2, 0)
    assert {name: record["unwanted"] for name, record in mirrors.read_lock().items()} == {
        f"{target.host}/app:v1": None,
        f"{target.host}/tool:v1": None,
    }
