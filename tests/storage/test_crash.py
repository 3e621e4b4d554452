"""Crashes after each storage operation of a process, at every location. `test_disk` does the same for each system call.

The file system is wrapped: after a number of operations, every further operation fails, as if the process had ended. Then the
store is opened again. No wrong content is visible, the ingest can be completed, and gc removes the leftovers.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from prefect_dist.ocispec import Digest
from prefect_dist.storage import ContentStore, gc
from prefect_dist.storage.objects import MIN_PART_BYTES, Objects
from tests.storage.conformance import Place, blob_path, noise

# Content that is sent in one request, and content that is sent in parts.
SMALL, BIG = noise(50_000), noise(MIN_PART_BYTES + 100_000)
OPERATIONS = (
    "info",
    "ls",
    "cat_file",
    "pipe_file",
    "open",
    "cp_file",
    "rm_file",
    "makedirs",
    "call_s3",
    "abort_mpu",
)


class Gone(BaseException):
    """Raised in place of every operation after the simulated end of the process."""


def end_after(operations: int, fs: Any, patch: pytest.MonkeyPatch) -> list[str]:
    """Allow a number of operations of a file system, and yield the names of the operations."""
    seen: list[str] = []

    def count_calls(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if len(seen) == operations:
                raise Gone
            seen.append(name)
            return call(*args, **kwargs)

        return run

    for name in OPERATIONS:
        if hasattr(fs, name):
            patch.setattr(fs, name, count_calls(name, getattr(fs, name)))
    return seen


def ends_before_commit(place: Place, data: bytes, *, declared: bool, operations: int) -> bool:
    """Commit, and end after a number of operations. Return False if the commit needs fewer operations."""
    store, digest = place.open(), Digest.of(data)
    with pytest.MonkeyPatch.context() as patch:
        end_after(operations, store._backend.fs, patch)
        try:
            writer = store.writer("ref", expected=digest if declared else None, total=len(data) if declared else None)
            writer.write(data)
            writer.commit()
            store.names.put("name", descriptor_of(digest, data), source="x")
            store.update_index()
        except Gone:
            return True
    return False


def descriptor_of(digest: Digest, data: bytes) -> Any:
    from prefect_dist.ocispec import Descriptor

    return Descriptor(media_type="application/octet-stream", digest=digest, size=len(data))


def assert_only_sound_blobs(store: ContentStore, data: bytes) -> None:
    for info in store.walk():
        assert b"".join(store.chunks(info.digest)) == data


def assert_resumable(store: ContentStore, data: bytes) -> None:
    digest = Digest.of(data)
    if not store.holds(descriptor_of(digest, data)):
        with store.writer("ref", expected=digest, total=len(data)) as writer:
            writer.write(data[writer.offset :])
            writer.commit()
    store.names.put("name", descriptor_of(digest, data), source="x")
    store.update_index()


def assert_gc_cleans_up(place: Place, store: ContentStore) -> None:
    gc.collect(store, grace=timedelta(seconds=-60), dry_run=False)
    if isinstance(store._backend, Objects):  # gc aborts uploads only after a day
        soon = datetime.now(UTC) + timedelta(days=2)
        list(store._backend.sweep(store._layout.root, soon, dry_run=False))
        list(store._ingests._sweep_aside(soon, dry_run=False))  # type: ignore[attr-defined]
        assert list(store._backend.sweep(store._layout.root, soon, dry_run=True)) == []
    assert {path for path in place.files() if path.startswith("ingest/")} == set()


@pytest.mark.timeout(600)  # hundreds of stores, each with its own requests
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # a process that has ended closes nothing
@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
def test_after_a_crash_at_any_operation_the_store_is_sound_and_resumable(place: Place, data: bytes, *, declared: bool) -> None:
    operations = 0
    while ends_before_commit(place, data, declared=declared, operations=operations):
        store = place.open()
        assert_only_sound_blobs(store, data)
        assert_resumable(store, data)
        assert place.files()[blob_path(Digest.of(data))] == data
        assert_gc_cleans_up(place, store)
        assert [name.name for name in store.names] == ["name"]
        place.clear()
        operations += 1
    assert operations > 8
