"""The roots of planned images are protected from gc before any unit of the images begins."""

from pathlib import Path

import pytest

from prefect_dist.mirror.applying import Applying
from prefect_dist.mirror.direct import SilentObserver, WholeMirror
from prefect_dist.mirror.plan import PlannedImage, SyncItem, TargetAction
from prefect_dist.ocispec import Reference
from prefect_dist.transfer.events import ignore_event
from prefect_dist.transfer.session import SessionSpec, open_session
from prefect_dist.transfer.threads import ThreadPool
from prefect_dist.transfer.units import Answers
from tests.mirror.planned import entries, manifest

ENTRY = {"source": "one.example/app", "target": "registry.example/app", "type": "repository"}


def planned(tag: str) -> PlannedImage:
    (entry,) = entries(ENTRY)
    source, target = (Reference.parse(f"{host}.example/app:{tag}") for host in ("one", "registry"))
    item, root = SyncItem(entry=entry, source=source, targets=(target,)), manifest(tag)
    action = TargetAction(item=item, target=target, change="add", new=root)
    return PlannedImage(item=item, root=root, content=(root,), sent=(root,), actions=(action,))


def test_one_write_protects_the_roots_of_all_planned_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, written = [planned(tag) for tag in ("v1", "v2", "v3")], list[str]()
    with open_session(SessionSpec(store=str(tmp_path / "store"))) as session, ThreadPool(session, window=1) as pool:
        put = session.store._backend.put

        def record_put(path: str, data: bytes) -> None:
            written.append(path)
            put(path, data)

        monkeypatch.setattr(session.store._backend, "put", record_put)
        applying = Applying(pool, WholeMirror(), ignore_event, SilentObserver())
        applying.add(images, dict.fromkeys(images, Answers(())))

        assert set(session.store.leases.roots()) == {image.root for image in images}
        assert len(written) == 1
