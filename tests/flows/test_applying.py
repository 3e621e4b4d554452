"""Mirror runs and checks that lose the API of Prefect or the lock file record and report their results."""

import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient

from prefect_dist.flows import limits, pool
from prefect_dist.flows.mirror_parts import MirrorParts
from prefect_dist.flows.pool import PrefectPool
from prefect_dist.flows.run import MirrorEvents
from prefect_dist.mirror.applying import Applying
from prefect_dist.mirror.auditing import Auditing
from prefect_dist.mirror.intentions import Intentions
from prefect_dist.mirror.lock import Lock, Locked
from prefect_dist.mirror.plan import OrphanTag, PlannedImage, SyncItem, TargetAction
from prefect_dist.mirror.run import _PlanReceiver
from prefect_dist.ocispec import Reference
from prefect_dist.transfer.events import ignore_event
from prefect_dist.transfer.session import Session, SessionSpec, open_session
from prefect_dist.transfer.units import Answers
from tests.mirror.planned import entries, manifest

TARGET = Reference.parse("registry.example/app:v1")
ENTRY = {"source": "one.example/app:v1", "target": str(TARGET), "type": "image"}


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with open_session(SessionSpec(store=str(tmp_path / "store"))) as session:
        yield session


@pytest.fixture
def applying(session: Session) -> Applying:
    prefect = PrefectPool(session, window=1, retries=0)
    return Applying(prefect, MirrorParts("mirror", prefect), ignore_event, MirrorEvents(session.cancel))


@pytest.fixture
def lost_api(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an API that accepts no connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/api"
    with SyncPrefectClient(api=url) as client:
        monkeypatch.setattr(limits, "client", lambda: client)
        monkeypatch.setattr(pool, "client", lambda: client)
        yield url


def orphan(number: int) -> OrphanTag:
    """Return an orphaned tag that is due for removal."""
    record = Locked(source="one.example/app:v1", digest=manifest("v1").digest, mirrored=datetime.now(UTC), own=True)
    target = Reference.parse(f"registry.example/app:v{number}")
    return OrphanTag(target=target, record=record, since=datetime.now(UTC), most=5, is_due=True)


def test_all_removals_end_as_stopped_when_the_prefect_api_is_lost(applying: Applying, session: Session, lost_api: str) -> None:
    removed = applying.remove([orphan(1), orphan(2)], {})
    assert session.cancel.reason is not None
    assert lost_api in session.cancel.reason
    assert session.cancel.failure is None  # another run resumes
    assert [str(target) for target in removed] == ["registry.example/app:v1", "registry.example/app:v2"]
    assert all(str(error).endswith("complete content is kept, run again to resume") for error in removed.values())


def test_no_image_is_published_if_the_lock_file_cannot_be_written(applying: Applying, session: Session, tmp_path: Path) -> None:
    lock = tmp_path / "directory" / "lock.json"
    lock.parent.write_text("this is a file")
    (entry,) = entries(ENTRY)
    item = SyncItem(entry=entry, source=Reference.parse(entry.source), targets=(TARGET,))
    root = manifest("v1")
    action = TargetAction(item=item, target=TARGET, change="add", new=root)
    image = PlannedImage(item=item, root=root, content=(root,), sent=(root,), actions=(action,))
    receiver = _PlanReceiver(applying, Intentions(Lock(str(lock)), {}), is_dry=False)

    receiver.take_images([image], {image: Answers(())})
    results = applying.run()

    assert str(lock) in str(session.cancel.failure)
    assert list(results.failures) == [TARGET]


def test_a_check_ends_with_unresolved_targets_when_the_prefect_api_is_lost(session: Session, lost_api: str) -> None:
    record = Locked(source="one.example/app:v1", digest=manifest("v1").digest, mirrored=datetime.now(UTC), own=True)
    found = Auditing(PrefectPool(session, window=1, retries=0), ignore_event, entries(ENTRY)).audit({TARGET: record})
    assert lost_api in str(session.cancel.reason)
    assert (found.ok, list(found.unresolved)) == (0, [TARGET])
    assert str(found.unresolved[TARGET]).endswith("complete content is kept, run again to resume")
