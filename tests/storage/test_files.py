"""Ingests on a disk: their records, damaged files, and locks between store objects."""

import contextlib
import errno
from datetime import UTC, datetime
from pathlib import Path

import pytest

from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import AlreadyExists, Busy, Corrupt, NotFound, Unavailable
from prefect_dist.storage import ContentStore, StoreFull, Writer, open_store
from prefect_dist.storage.files import FileWriter
from tests.storage.conformance import Place, ingest, ingest_path, noise
from tests.storage.test_disk import disk_of

DATA = noise(100_000)  # larger than the buffer of a file object
DIGEST = Digest.of(DATA)
SMALL = 1024 * 1024  # the largest declared total whose ingest is recorded only when it is closed unfinished
BIG = noise(SMALL + 50_000)
BOTH_KINDS = pytest.mark.parametrize("data", [DATA, BIG], ids=["small", "big"])


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(url=str(tmp_path / "a store"))


def left_behind(place: Place) -> set[str]:
    return {path for path in place.files() if path.startswith("ingest/")}


@pytest.mark.parametrize(("total", "recorded"), [(0, False), (SMALL, False), (SMALL + 1, True), (None, True)])
def test_only_a_large_ingest_is_recorded_when_it_begins(
    place: Place, store: ContentStore, total: int | None, *, recorded: bool
) -> None:
    with store.writer("ref", total=total):
        assert {status.ref for status in store.active()} == ({"ref"} if recorded else set())
        assert (f"{ingest_path('ref')}.json" in left_behind(place)) == recorded


def test_a_small_ingest_is_active_once_it_is_closed_unfinished(store: ContentStore) -> None:
    before = datetime.now(UTC)
    with store.writer("ref", expected=DIGEST, total=len(DATA)) as writer:
        writer.write(DATA[:50_000])
        assert not list(store.active())
        with pytest.raises(NotFound, match="ingest ref: not found"):
            store.status("ref")
        after = datetime.now(UTC)
    (status,) = store.active()
    assert status == store.status("ref")
    assert (status.ref, status.offset, status.total, status.expected) == ("ref", 50_000, len(DATA), DIGEST)
    assert before <= status.started <= after


def test_a_resumed_small_ingest_is_active_and_keeps_its_start_time(place: Place, store: ContentStore) -> None:
    with store.writer("ref", total=len(DATA)) as writer:
        writer.write(DATA[:50_000])
    started = store.status("ref").started
    with store.writer("ref", total=len(DATA)) as writer:
        assert (store.status("ref").offset, store.status("ref").started) == (50_000, started)
        writer.write(DATA[50_000:])
        writer.commit()
    assert not left_behind(place)


def test_a_small_ingest_that_is_closed_without_data_leaves_nothing(place: Place, store: ContentStore) -> None:
    store.writer("ref", total=len(DATA)).close()
    assert not left_behind(place)
    with store.writer("ref", total=len(DATA)) as writer:
        writer.write(DATA)
        writer.truncate()
    assert not left_behind(place)
    assert not list(store.active())


def test_active_skips_damaged_ingests_and_unknown_files(place: Place, store: ContentStore) -> None:
    store.writer("good").close()
    store.writer("bad").close()
    place.plant(f"{ingest_path('bad')}.json", b"")
    place.plant("ingest/strange", b"")
    assert [status.ref for status in store.active()] == ["good"]


def test_an_ingest_whose_blob_was_committed_meanwhile_is_dropped(
    place: Place, store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = disk_of(store)
    append = disk.append

    def append_late(path: str) -> object:
        monkeypatch.undo()
        ingest(place.open(), DATA)
        return append(path)

    monkeypatch.setattr(disk, "append", append_late)
    with pytest.raises(AlreadyExists):
        store.writer("ref", expected=DIGEST, total=len(DATA))
    assert not left_behind(place)
    store.writer("ref").close()


def test_a_digest_that_does_not_cover_the_file_is_not_committed(place: Place, store: ContentStore) -> None:
    with store.writer("ref") as writer:
        writer.write(DATA)
        place.open()._backend.fs.open(store._layout.ingest("ref"), "ab").write(DATA)  # the state that a failed write may leave
        with pytest.raises(Corrupt, match=r"expected 100000 bytes in .*, got 200000"):
            writer.commit()
    assert not list(store.walk())


def test_closing_a_writer_twice_does_not_release_the_lock_of_another_writer(store: ContentStore) -> None:
    closed = store.writer("ref")
    assert isinstance(closed, FileWriter)
    closed.close()
    with store.writer("ref"):
        closed.close()
        closed._release_quietly()
        with pytest.raises(Busy):
            store.writer("ref")


@BOTH_KINDS
def test_a_damaged_record_does_not_survive_the_commit(place: Place, store: ContentStore, data: bytes) -> None:
    place.plant(f"{ingest_path('ref')}.json", b"{")
    with store.writer("ref", total=len(data)) as writer:
        assert store.status("ref").total == len(data)  # the writer has replaced the damaged record, so the commit removes it
        writer.write(data)
        writer.commit()
    assert not left_behind(place)


@pytest.mark.parametrize("size", [0, 50_000])
def test_a_small_ingest_whose_record_cannot_be_written_leaves_nothing(
    place: Place, store: ContentStore, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = store.writer("ref", total=len(DATA))
    writer.write(DATA[:size])
    with monkeypatch.context() as patch:
        patch.setattr(store._backend.fs, "pipe_file", fail)
        with pytest.raises(StoreFull, match=r"ref: closing ") if size else contextlib.nullcontext():
            writer.close()
    assert not left_behind(place)
    assert ingest(store, DATA) == DIGEST


@pytest.mark.parametrize("size", [0, 50_000])
def test_a_small_ingest_whose_data_was_removed_is_closed_without_a_record(place: Place, store: ContentStore, size: int) -> None:
    with store.writer("ref", total=len(DATA)) as writer:
        writer.write(DATA[:size])
        place.remove(ingest_path("ref"))
    assert f"{ingest_path('ref')}.json" not in left_behind(place)


def test_a_ref_is_free_after_an_interrupted_close(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    writer = store.writer("ref", total=len(DATA))
    writer.write(DATA[:50_000])
    with monkeypatch.context() as patch:
        patch.setattr(store._backend.fs, "pipe_file", interrupt)
        with pytest.raises(KeyboardInterrupt):
            writer.close()
    with store.writer("ref", total=len(DATA)) as writer:
        assert writer.offset == 0  # data without a record
        writer.write(DATA)
        assert writer.commit() == DIGEST


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"{}",
        b'{"ref": 1}',
        b'{"ref": "ref", "total": "many", "started": "2026-01-01T00:00:00Z"}',
        b'{"ref": "ref", "total": 100000, "started": "now"}',
        b'{"ref": "ref", "total": 100000, "expected": "sha384:00", "started": "2026-01-01T00:00:00Z"}',
        b'{"ref": "another", "total": 100000, "started": "2026-01-01T00:00:00Z"}',
        None,
    ],
)
def test_a_damaged_ingest_starts_over(place: Place, store: ContentStore, record: bytes | None) -> None:
    with store.writer("ref", total=len(DATA)) as writer:
        writer.write(DATA[1:])
    place.remove(f"{ingest_path('ref')}.json")
    if record is not None:
        place.plant(f"{ingest_path('ref')}.json", record)
    with store.writer("ref", total=len(DATA)) as writer:  # containerd #3089: every attempt failed
        assert writer.offset == 0
        writer.write(DATA)
        assert writer.commit() == DIGEST
    assert not left_behind(place)


def test_an_ingest_longer_than_its_declared_size_starts_over(place: Place, store: ContentStore) -> None:
    with store.writer("ref", total=10) as writer:
        writer.write(DATA[:1])
    assert store.status("ref").total == 10
    place.plant(ingest_path("ref"), DATA)
    with store.writer("ref", total=10) as writer:
        assert writer.offset == 0
        writer.write(DATA[:10])
        assert writer.commit() == Digest.of(DATA[:10])


def test_a_ref_with_a_writer_is_busy_also_for_small_content(place: Place, store: ContentStore) -> None:
    with store.writer("ref", total=len(DATA)) as writer:
        writer.write(DATA[:50_000])
        for other in (store, place.open()):
            with pytest.raises(Busy, match=r"^ref: another writer is active; wait until it ends$"):
                other.writer("ref", total=len(DATA))
        store.writer("another ref", total=len(DATA)).close()
        writer.write(DATA[50_000:])
        assert writer.commit() == DIGEST


def test_a_ref_with_a_writer_is_busy_also_with_a_damaged_record(place: Place, store: ContentStore) -> None:
    with store.writer("ref"):
        place.plant(f"{ingest_path('ref')}.json", b'{"ref": "ref", "expected": "sha384:00", "started": ""}')
        with pytest.raises(Busy, match=r"^ref: another writer is active; wait until it ends$"):
            store.writer("ref")


def end_with_nothing_to_commit(writer: Writer) -> None:
    assert isinstance(writer, FileWriter)
    writer._disk.fs.rm_file(writer._path)
    writer.commit(size=writer.offset)


def test_a_ref_is_free_after_its_data_could_not_be_read(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.writer("ref") as writer:
        writer.write(DATA)
    fs, path = store._backend.fs, store._layout.ingest("ref")
    cat_file = fs.cat_file

    def fail(requested: str, start: int | None = None, end: int | None = None) -> object:
        if requested == path:
            raise OSError(errno.EIO, "Input/output error")
        return cat_file(requested, start, end)

    with monkeypatch.context() as patch:
        patch.setattr(fs, "cat_file", fail)
        with pytest.raises(Unavailable, match=r"ref: reading .*: Input/output error"):
            store.writer("ref")
    with store.writer("ref") as writer:
        assert writer.offset == len(DATA)


def test_a_ref_is_free_after_its_data_was_removed(place: Place, store: ContentStore) -> None:
    with contextlib.suppress(NotFound), store.writer("ref") as writer:
        writer.write(DATA)
        end_with_nothing_to_commit(writer)
    with store.writer("ref", total=len(DATA)) as writer:
        writer.write(DATA)
        assert writer.commit() == DIGEST
    assert not left_behind(place)


def test_a_ref_with_a_writer_is_busy_for_other_store_objects(place: Place, store: ContentStore) -> None:
    with store.writer("ref", total=len(BIG)) as writer:
        writer.write(BIG[:50_000])
        with pytest.raises(Busy, match=r"is at byte 50000$"):
            place.open().writer("ref", total=len(BIG))


def test_without_shared_locks_each_machine_has_its_own_ingests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = noise(2_000_000)
    one, other = open_store(str(tmp_path)), open_store(str(tmp_path))
    for store in (one, other):
        store._backend.has_locks = False  # as on an NFS mount with local_lock=all
    monkeypatch.setattr("socket.gethostname", lambda: "one")
    with one.writer("ref", expected=Digest.of(data), total=len(data)) as first:
        first.write(data[:1000])
        monkeypatch.setattr("socket.gethostname", lambda: "other")
        with other.writer("ref", expected=Digest.of(data), total=len(data)) as second:
            second.write(data)
            second.commit()
        first.write(data[1000:])
        first.commit()
    assert one.read(Digest.of(data)) == data
