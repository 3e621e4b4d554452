"""The report and the observer of a mirror run agree about the result at each target."""

from pathlib import Path

import pytest

from prefect_dist.mirror.report import RunReport, TargetRow
from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.referrers import fallback_tag
from tests import images
from tests.fakes.faults import Call, Fault, Refuse
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import DirectMirrors, Observed, repository
from tests.flows.reports import outcomes

IMAGE = images.image(9100, layers=1)
OURS, THEIRS = images.artifact(9101, subject=IMAGE), images.artifact(9102, subject=IMAGE)
FALLBACK = fallback_tag(Digest.parse(IMAGE.root.digest))


@pytest.fixture
def observed() -> Observed:
    return Observed()


@pytest.fixture
def mirrors(tmp_path: Path, observed: Observed) -> DirectMirrors:
    return DirectMirrors(tmp_path, observed)


def row_errors(report: RunReport) -> dict[str, list[str]]:
    """Return the errors of each target."""
    return {str(row.target): list(map(str, row.errors)) for row in report.select(TargetRow)}


def test_a_target_has_only_the_errors_of_its_own_publication(
    mirrors: DirectMirrors, observed: Observed, source: FakeRegistry, target: FakeRegistry, other: FakeRegistry
) -> None:
    images.load(source, "app", IMAGE, "v1")
    with FakeRegistry() as accepting:
        for refusing in (target, other):
            refusing.inject(Fault(method="PUT", path=".*/manifests/v1", nth=None, action=Refuse(403)))

        report = mirrors.run(repository(source, target, other, accepting))

        assert accepting.manifest("copy", "v1") is not None
    assert all(len(one.find_requests("PUT", ".*/manifests/v1")) == 1 for one in (target, other, accepting))
    errors = row_errors(report)
    assert {name: len(found) for name, found in errors.items()} == {
        f"{target.host}/copy:v1": 1,
        f"{other.host}/copy:v1": 1,
        f"{accepting.host}/copy:v1": 0,
    }
    assert all(name.partition("/")[0] in text for name, found in errors.items() for text in found)
    assert dict(observed.seen) == errors
    assert len(report.errors) == 2


def test_each_target_has_the_error_of_missing_content(
    mirrors: DirectMirrors, observed: Observed, source: FakeRegistry, target: FakeRegistry, other: FakeRegistry
) -> None:
    images.load(source, "app", IMAGE, "v1")
    source.inject(Fault(path=f".*/blobs/{list(IMAGE.blobs)[-1]}", nth=None, action=Refuse(403)))

    report = mirrors.run(repository(source, target, other))

    errors = row_errors(report)
    assert [len(found) for found in errors.values()] == [1, 1]
    assert all(source.host in text for found in errors.values() for text in found)
    assert dict(observed.seen) == errors
    assert target.find_requests("PUT", ".*/manifests/v1") + other.find_requests("PUT", ".*/manifests/v1") == []


def test_an_unchanged_target_does_not_get_the_error_of_a_publication_at_another_target(
    mirrors: DirectMirrors, observed: Observed, source: FakeRegistry, target: FakeRegistry, other: FakeRegistry
) -> None:
    images.load(source, "app", IMAGE, "v1")
    images.load(target, "copy", IMAGE, "v1")
    other.inject(Fault(method="PUT", path=".*/manifests/v1", nth=None, action=Refuse(403)))

    report = mirrors.run(repository(source, target, other, gate={"command": ["true"], "existing": True}))

    assert outcomes(report) == {f"{target.host}/copy:v1": "unchanged", f"{other.host}/copy:v1": "failed"}
    assert [name for name, _ in observed.seen] == [f"{other.host}/copy:v1"]


def test_a_target_that_fails_after_the_publication_is_also_failed_for_the_observer(
    mirrors: DirectMirrors, observed: Observed, source: FakeRegistry
) -> None:
    images.load(source, "app", IMAGE, "v1")
    images.load(source, "app", OURS)
    with FakeRegistry(referrers=False) as target:
        is_published = [False]

        def overwrite_after_publication() -> None:
            if is_published[0]:
                images.load(target, "copy", THEIRS)
                images.load(target, "copy", images.index([THEIRS]), FALLBACK)

        def publish() -> None:
            is_published[0] = True
            overwrite_after_publication()

        target.inject(Fault(method="PUT", path=".*/manifests/v1", action=Call(publish)))
        target.inject(Fault(method="PUT", path=f".*/manifests/{FALLBACK}", nth=None, action=Call(overwrite_after_publication)))

        report = mirrors.run(repository(source, target, referrers=True))

        assert target.manifest("copy", "v1") is not None
    errors = row_errors(report)
    ((name, found),) = errors.items()
    assert len(found) == 1
    assert observed.seen == [(name, []), (name, found)]
