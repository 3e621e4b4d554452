"""The state of each target registry after a run, and the age of changes that a registry does not serve, across runs."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from prefect_dist.mirror.report import RegistryState, RunReport
from tests import images
from tests.fakes.faults import Fault, Refuse
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import DirectMirrors

OLD, NEW = images.image(9100, layers=1), images.image(9101, layers=1)


@pytest.fixture
def mirrors(tmp_path: Path) -> DirectMirrors:
    return DirectMirrors(tmp_path)


@pytest.fixture
def other() -> Iterator[FakeRegistry]:
    """A second target."""
    with FakeRegistry() as other:
        yield other


def entry(source: FakeRegistry, *targets: FakeRegistry, **settings: Any) -> dict[str, Any]:
    """Return an entry for all tags of the repository `app`."""
    where = [f"{target.host}/app" for target in targets]
    return {"type": "repository", "source": f"{source.host}/app", "targets": where, **settings}


def state_of(report: RunReport, registry: FakeRegistry) -> RegistryState:
    (state,) = [one for one in report.registries if one.host == registry.host]
    return state


def counts_of(report: RunReport, registry: FakeRegistry) -> tuple[int, int, bool]:
    state = state_of(report, registry)
    return state.failed, state.pending, state.is_success


def refuse(target: FakeRegistry, times: int) -> None:
    """Make the target refuse the tag `v1`, `times` times."""
    target.inject(Fault(method="PUT", path="/v2/app/manifests/v1", times=times, action=Refuse(403)))


def age_changes(mirrors: DirectMirrors, by: timedelta) -> None:
    """Change the times of pending changes in the lock file to earlier times."""
    document = json.loads(mirrors.lock.read_text())
    for changes in document["pending"].values():
        for target, since in changes.items():
            changes[target] = (datetime.fromisoformat(since) - by).isoformat()
    mirrors.lock.write_text(json.dumps(document))


def test_the_lag_of_a_registry_is_the_age_of_the_oldest_change_until_the_registry_has_the_change(
    mirrors: DirectMirrors, source: FakeRegistry, target: FakeRegistry, other: FakeRegistry
) -> None:
    images.load(source, "app", OLD, "v1")
    wanted = entry(source, target, other)
    first = mirrors.run(wanted)
    assert [(one.failed, one.pending, one.is_success, one.lag_s) for one in first.registries] == [(0, 0, True, 0.0)] * 2
    assert "pending" not in json.loads(mirrors.lock.read_text())

    images.load(source, "app", NEW, "v1")
    refuse(target, times=2)
    before = datetime.now(UTC)
    failing = mirrors.run(wanted)
    assert counts_of(failing, target) == (1, 1, False)
    assert counts_of(failing, other) == (0, 0, True)
    assert 0 < (state_of(failing, target).lag_s or 0) <= (datetime.now(UTC) - before).total_seconds()
    assert state_of(failing, other).lag_s == 0

    age_changes(mirrors, timedelta(hours=2))
    again = mirrors.run(wanted)
    assert counts_of(again, target) == (1, 1, False)
    assert 7200 <= (state_of(again, target).lag_s or 0) <= 7200 + (datetime.now(UTC) - before).total_seconds()

    good = mirrors.run(wanted)
    assert (counts_of(good, target), state_of(good, target).lag_s) == ((0, 0, True), 0)
    assert "pending" not in json.loads(mirrors.lock.read_text())


def test_an_image_that_a_registry_never_had_has_a_lag(
    mirrors: DirectMirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    images.load(source, "app", OLD, "v1")
    refuse(target, times=1)

    report = mirrors.run(entry(source, target))

    assert (state_of(report, target).lag_s or 0) > 0
    document = json.loads(mirrors.lock.read_text())
    assert document["pending"].keys() == {"mirror mirror"}
    assert document["pending"]["mirror mirror"].keys() == {f"{target.host}/app:v1"}


def test_changes_of_images_that_the_source_no_longer_has_end_and_changes_of_unlisted_sources_stay(
    mirrors: DirectMirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    images.load(source, "app", OLD, "v1")
    images.load(source, "app", OLD, "v2")
    refuse(target, times=1)
    assert (state_of(mirrors.run(entry(source, target)), target).lag_s or 0) > 0

    source.inject(Fault(path="/v2/app/tags/list", action=Refuse(403)))
    unlisted = mirrors.run(entry(source, target))
    assert unlisted.counts["unresolved"] == 1
    assert counts_of(unlisted, target) == (1, 1, False)
    assert (state_of(unlisted, target).lag_s or 0) > 0

    source.untag("app", "v1")
    listed = mirrors.run(entry(source, target))
    assert (counts_of(listed, target), state_of(listed, target).lag_s) == ((0, 0, True), 0)


def test_a_vetoed_image_is_pending_and_has_no_lag(mirrors: DirectMirrors, source: FakeRegistry, target: FakeRegistry) -> None:
    images.load(source, "app", OLD, "v1")

    report = mirrors.run(entry(source, target, gate={"command": ["false"]}))

    assert (counts_of(report, target), state_of(report, target).lag_s) == ((0, 1, True), 0)
    assert "pending" not in json.loads(mirrors.lock.read_text())


def test_a_check_reports_damaged_targets_per_registry_and_no_lag(
    mirrors: DirectMirrors, source: FakeRegistry, target: FakeRegistry, other: FakeRegistry
) -> None:
    images.load(source, "app", OLD, "v1")
    mirrors.run(entry(source, target, other))
    target.untag("app", "v1")

    report = mirrors.check()
    assert (counts_of(report, target), counts_of(report, other)) == ((1, 1, False), (0, 0, True))
    assert {one.lag_s for one in report.registries} == {None}
    assert counts_of(mirrors.check(repair=True), target) == (0, 0, True)


def test_a_lock_file_with_pending_changes_is_checked_in_place_of_a_configuration(
    mirrors: DirectMirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    from prefect_dist.mirror.lock_config import parse_audited
    from prefect_dist.mirror.yamlfile import read

    images.load(source, "app", OLD, "v1")
    mirrors.run(entry(source, target))
    images.load(source, "app", NEW, "v1")
    refuse(target, times=1)
    mirrors.run(entry(source, target))
    assert "pending" in json.loads(mirrors.lock.read_text())

    assert parse_audited(read(str(mirrors.lock))).is_lock
