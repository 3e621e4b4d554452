"""Content that a unit fetches for itself: the wait for another writer, and the events of corrupt content."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from prefect_dist.ocispec import Descriptor, Digest, Platform, Reference
from prefect_dist.storage import open_store
from prefect_dist.transfer import units
from prefect_dist.transfer.audit import Expected
from prefect_dist.transfer.cancellation import Stopped
from prefect_dist.transfer.events import CorruptContent, Event
from prefect_dist.transfer.pool import Failed, Ok, Outcome, Raised, Unit
from prefect_dist.transfer.publishing import Publication
from prefect_dist.transfer.related import EVERYTHING
from prefect_dist.transfer.session import Session, SessionSpec, open_session
from prefect_dist.transfer.survey import ImageQuery
from prefect_dist.transfer.threads import ThreadPool
from tests import images
from tests.fakes.faults import Call, Fault, Flip
from tests.fakes.registry import FakeRegistry
from tests.images import BuiltImage
from tests.transfer.content import put_image, reference_at, root_of

OLD, NEW = images.image(810, layers=1), images.image(811, layers=1)


def survey_unit(source: Reference, target: Reference, *, keep: bool = True) -> Unit[Any]:
    query = ImageQuery(source=source, targets=(target,))
    return Unit(work=units.survey, arguments=((query,),), options={"keep": keep, "workers": 2})


def backup_unit(root: Descriptor, target: Reference, backup: Reference, old: BuiltImage) -> Unit[Any]:
    replaces = Digest.parse(old.root.digest)
    return Unit(work=units.publish, arguments=(Publication(root=root, target=target, replaces=replaces, backup=backup),))


@contextmanager
def hold_writer(session: Session, held: Descriptor) -> Iterator[None]:
    """Hold the writer of some content, as another process does."""
    with (
        open_store(session.spec.store) as other,
        other.writer(f"{held.kind}-{held.digest}", expected=held.digest, total=held.size),
    ):
        yield


def outcome_after_cancel(pool: ThreadPool, unit: Unit[Any], registry: FakeRegistry, path: str) -> Outcome[Any] | Raised:
    """Cancel the run after the registry has received the last request of a unit. Return the outcome, due within a second."""
    requested, ended, outcomes = threading.Event(), threading.Event(), list[Outcome[Any] | Raised]()
    registry.inject(Fault(method="HEAD", path=path, action=Call(requested.set)))

    def end(outcome: Outcome[Any] | Raised) -> None:
        outcomes.append(outcome)
        ended.set()

    pool.start(unit, end)
    assert requested.wait(10)
    pool.session.cancel.set("Ctrl-C")
    assert ended.wait(1), "the unit still waits for the other writer"
    return outcomes[0]


@pytest.mark.parametrize("repository", ["copy", "backups"])
def test_a_backup_that_waits_for_another_writer_ends_after_a_cancel(
    session: Session, target: FakeRegistry, repository: str
) -> None:
    root, old = put_image(session, NEW), OLD
    images.load(target, "copy", old, "v1")
    unit = backup_unit(root, reference_at(target, "copy:v1"), reference_at(target, f"{repository}:old"), old)
    with ThreadPool(session, window=1, retries=0) as pool, hold_writer(session, root_of(old)):
        outcome = outcome_after_cancel(pool, unit, target, f"/v2/{repository}/manifests/old")
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, Stopped)
    assert target.manifest("copy", "v1") == (old.root.media_type, old.manifests[-1].raw)


def test_a_survey_that_waits_for_another_writer_ends_after_a_cancel(session: Session, target: FakeRegistry) -> None:
    with FakeRegistry() as source:
        images.load(source, "app", NEW, "v1")
        unit = survey_unit(reference_at(source, "app:v1"), reference_at(target, "copy:v1"))
        with ThreadPool(session, window=1, retries=0) as pool, hold_writer(session, root_of(NEW)):
            outcome = outcome_after_cancel(pool, unit, source, "/v2/app/manifests/v1")
    assert isinstance(outcome, Ok)
    (found,) = outcome.value.found
    assert [type(error) for error in found.errors] == [Stopped, Stopped]


RUN: ContextVar[str] = ContextVar("run")


@pytest.fixture
def corrupt() -> list[tuple[str, str, str | None]]:
    return []


@pytest.fixture
def notified(tmp_path: Path, corrupt: list[tuple[str, str, str | None]]) -> Iterator[Session]:
    """A session that lists digest, place and context of each event of corrupt content in `corrupt`."""

    def listen(event: Event) -> None:
        if isinstance(event, CorruptContent):
            corrupt.append((str(event.digest), event.place, RUN.get(None)))

    with open_session(SessionSpec(store=str(tmp_path / "store")), notify=listen) as session:
        token = RUN.set("this run")
        yield session
        RUN.reset(token)


def flip_first(registry: FakeRegistry, digest: str) -> None:
    registry.inject(Fault(method="GET", path=f".*/(blobs|manifests)/{digest}", nth=1, action=Flip(3)))


@pytest.mark.parametrize("keep", [True, False])
def test_a_corrupt_manifest_in_a_survey_is_an_event_of_the_run(
    notified: Session, target: FakeRegistry, corrupt: list[tuple[str, str, str | None]], *, keep: bool
) -> None:
    with FakeRegistry() as source, ThreadPool(notified, window=1, retries=0) as pool:
        images.load(source, "app", NEW, "v1")
        flip_first(source, NEW.root.digest)
        outcome = pool.call(survey_unit(reference_at(source, "app:v1"), reference_at(target, "copy:v1"), keep=keep))
        assert isinstance(outcome, Ok)
        assert len(outcome.value.errors) == 1
        assert corrupt == [(NEW.root.digest, f"{source.host}/app", "this run")]


@pytest.mark.parametrize("repository", ["copy", "backups"])
def test_corrupt_content_of_a_backup_is_an_event_with_the_target(
    notified: Session, target: FakeRegistry, corrupt: list[tuple[str, str, str | None]], repository: str
) -> None:
    root = put_image(notified, NEW)
    images.load(target, "copy", OLD, "v1")
    flip_first(target, OLD.root.digest)
    unit = backup_unit(root, reference_at(target, "copy:v1"), reference_at(target, f"{repository}:old"), OLD)
    with ThreadPool(notified, window=1, retries=0) as pool:
        assert isinstance(pool.call(unit), Failed)
    assert corrupt == [(OLD.root.digest, f"{target.host}/copy", "this run")]


def test_a_corrupt_referrer_is_an_event(
    notified: Session, target: FakeRegistry, corrupt: list[tuple[str, str, str | None]]
) -> None:
    images.load(target, "app", NEW, "v1")
    referrer = images.artifact(812, subject=NEW)
    images.load(target, "app", referrer)
    flip_first(target, referrer.root.digest)
    arguments = (root_of(NEW), reference_at(target, "app:v1"), EVERYTHING)
    with ThreadPool(notified, window=1, retries=0) as pool:
        pool.call(Unit(work=units.list_referrers, arguments=arguments))
    assert corrupt == [(referrer.root.digest, f"{target.host}/app", "this run")]


def test_a_corrupt_root_that_a_repair_reads_is_an_event(
    notified: Session, target: FakeRegistry, corrupt: list[tuple[str, str, str | None]]
) -> None:
    index = images.index([NEW])
    images.load(target, "app", index, "v1")
    flip_first(target, index.root.digest)
    expected = Expected(
        target=reference_at(target, "copy:v1"),
        digest=Digest.parse(index.root.digest),
        platforms=(Platform.parse("linux/amd64"),),
        referrers={},
    )
    unit = Unit(work=units.locate, arguments=(reference_at(target, "app:v1"), expected), options={"rewritten": True})
    with ThreadPool(notified, window=1, retries=0) as pool:
        assert isinstance(pool.call(unit), Failed)
    assert corrupt == [(index.root.digest, f"{target.host}/app", "this run")]
