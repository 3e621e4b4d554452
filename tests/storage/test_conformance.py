"""What every store does with blobs and ingests, whatever it stands on."""

import contextlib
import errno
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from ocispec import Descriptor, Digest
from ocispec.errors import AlreadyExists, Busy, Corrupt, DistError, InvalidInput, NotFound, Unavailable
from storage import ContentStore, StoreFull, Writer
from tests.storage.conformance import EMPTY, Place, assert_resumes, blob_path, ingest, ingest_path, noise

DATA = noise(100_000)  # more than a file object keeps back
DIGEST = Digest.of(DATA)
SMALL = 1024 * 1024  # the largest declared total whose ingest is recorded only when it is closed unfinished
BIG = noise(SMALL + 50_000)
BOTH_KINDS = pytest.mark.parametrize("data", [DATA, BIG], ids=["small", "big"])
OTHER = Digest.of(b"other")


def left_behind(place: Place) -> set[str]:
    return {path for path in place.files() if path.startswith("ingest/")}


# Writing


def test_a_writer_begins_at_zero_and_counts_what_it_takes(store: ContentStore) -> None:
    with store.writer("ref", expected=DIGEST, total=len(DATA)) as writer:
        assert (writer.ref, writer.expected, writer.total, writer.offset) == ("ref", DIGEST, len(DATA), 0)
        for form in (DATA[:10], bytearray(DATA[10:20]), memoryview(DATA)[20:]):
            writer.write(form)
        assert writer.offset == len(DATA)
        assert writer.commit() == DIGEST
    assert store.read(DIGEST) == DATA


def test_a_blob_is_invisible_until_it_is_committed(store: ContentStore) -> None:
    with store.writer("ref", expected=DIGEST, total=len(DATA)) as writer:
        writer.write(DATA)
        assert not store.holds(Descriptor(media_type="x", digest=DIGEST, size=len(DATA)))
        assert not list(store.walk())
        writer.commit()
    assert [info.digest for info in store.walk()] == [DIGEST]


@BOTH_KINDS
def test_a_commit_leaves_nothing_of_the_ingest(place: Place, store: ContentStore, data: bytes) -> None:
    ingest(store, data)
    assert not left_behind(place)
    with pytest.raises(NotFound):
        store.status("ref")


def test_closing_again_is_harmless(store: ContentStore) -> None:
    with store.writer("ref") as writer:
        writer.write(DATA)
        writer.commit()
        writer.close()
    writer.close()


@pytest.mark.parametrize("ref", ["", "\udcff"])
def test_a_ref_has_to_be_text(store: ContentStore, ref: str) -> None:
    with pytest.raises(InvalidInput):
        store.writer(ref)


def test_a_ref_may_be_any_text(store: ContentStore) -> None:
    refs = ["../up", "/", "ключ", "a" * 5000, "%2F", "a\nb"]
    for ref in refs:
        store.writer(ref).close()
    assert {status.ref for status in store.active()} == set(refs)


# Status


def test_status_tells_how_far_an_ingest_is(store: ContentStore) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)  # file times are coarser than the clock
    with store.writer("ref", expected=DIGEST, total=len(BIG)) as writer:
        writer.write(BIG[:50_000])
        assert store.status("ref").offset == 50_000
    status = store.status("ref")
    assert (status.ref, status.offset, status.total, status.expected) == ("ref", 50_000, len(BIG), DIGEST)
    assert before <= status.started <= datetime.now(UTC)
    assert before <= status.updated <= datetime.now(UTC) + timedelta(seconds=1)


def test_status_says_none_for_what_was_not_declared(store: ContentStore) -> None:
    store.writer("ref").close()
    assert (store.status("ref").total, store.status("ref").expected) == (None, None)


def test_a_resumed_ingest_keeps_its_start(store: ContentStore) -> None:
    store.writer("ref").close()
    started = store.status("ref").started
    store.writer("ref").close()
    assert store.status("ref").started == started


def test_status_of_no_ingest_is_not_found(store: ContentStore) -> None:
    with pytest.raises(NotFound, match="ingest ref: not there"):
        store.status("ref")


def test_active_lists_all_ingests(store: ContentStore) -> None:
    assert list(store.active()) == []
    for ref in ("one", "two"):
        store.writer(ref).close()
    with store.writer("three"):
        assert {status.ref for status in store.active()} == {"one", "two", "three"}


@pytest.mark.parametrize(("total", "recorded"), [(0, False), (SMALL, False), (SMALL + 1, True), (None, True)])
def test_only_an_ingest_that_is_not_small_is_recorded_when_it_begins(
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
        with pytest.raises(NotFound, match="ingest ref: not there"):
            store.status("ref")
        after = datetime.now(UTC)
    (status,) = store.active()
    assert status == store.status("ref")
    assert (status.ref, status.offset, status.total, status.expected) == ("ref", 50_000, len(DATA), DIGEST)
    assert before <= status.started <= after


def test_a_small_ingest_that_is_gone_on_with_is_active_and_keeps_its_start(place: Place, store: ContentStore) -> None:
    with store.writer("ref", total=len(DATA)) as writer:
        writer.write(DATA[:50_000])
    started = store.status("ref").started
    with store.writer("ref", total=len(DATA)) as writer:
        assert (store.status("ref").offset, store.status("ref").started) == (50_000, started)
        writer.write(DATA[50_000:])
        writer.commit()
    assert not left_behind(place)


def test_a_small_ingest_that_is_closed_with_nothing_leaves_nothing(place: Place, store: ContentStore) -> None:
    store.writer("ref", total=len(DATA)).close()
    assert not left_behind(place)
    with store.writer("ref", total=len(DATA)) as writer:
        writer.write(DATA)
        writer.truncate()
    assert not left_behind(place)
    assert not list(store.active())


def test_an_ingest_that_vanishes_while_it_is_listed_is_left_out(store: ContentStore) -> None:
    for ref in ("one", "two"):
        store.writer(ref).close()
    active = store.active()
    seen = next(active).ref
    store.writer("two" if seen == "one" else "one").abort()
    assert list(active) == []


def test_active_passes_over_damaged_ingests_and_strange_files(place: Place, store: ContentStore) -> None:
    store.writer("good").close()
    store.writer("bad").close()
    place.plant(f"{ingest_path('bad')}.json", b"")
    place.plant("ingest/strange", b"")
    assert [status.ref for status in store.active()] == ["good"]


# Commit


def test_commit_needs_no_declared_digest(store: ContentStore) -> None:
    with store.writer("ref") as writer:
        writer.write(DATA)
        assert writer.commit() == DIGEST


def test_commit_checks_what_is_given_to_it(store: ContentStore) -> None:
    with store.writer("ref") as writer:
        writer.write(DATA)
        assert writer.commit(size=len(DATA), expected=DIGEST) == DIGEST


def test_a_size_given_to_commit_stands_for_the_declared_total(store: ContentStore) -> None:
    with store.writer("ref", total=len(DATA)) as writer:
        writer.write(DATA[:10])
        with pytest.raises(Corrupt, match="expected 100000 bytes, got 10"):
            writer.commit()
        assert writer.commit(size=10) == Digest.of(DATA[:10])


@pytest.mark.parametrize("expected", [None, DIGEST])
def test_commit_of_content_that_exists_is_success(place: Place, store: ContentStore, expected: Digest | None) -> None:
    with store.writer("first", expected=expected) as writer:
        writer.write(DATA)
        ingest(store, DATA, ref="second")
        assert writer.commit() == DIGEST
    assert store.read(DIGEST) == DATA
    assert not left_behind(place)


def test_a_writer_for_content_that_exists_is_refused(place: Place, store: ContentStore) -> None:
    ingest(store, DATA)
    with pytest.raises(AlreadyExists, match=str(DIGEST)):
        place.open().writer("other", expected=DIGEST, total=len(DATA))
    assert not left_behind(place)


def test_an_ingest_whose_blob_came_while_its_writer_waited_is_dropped(
    place: Place, store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = store._backend.append

    def append_late(path: str) -> object:
        monkeypatch.undo()
        ingest(place.open(), DATA)
        return append(path)

    monkeypatch.setattr(store._backend, "append", append_late)
    with pytest.raises(AlreadyExists):
        store.writer("ref", expected=DIGEST, total=len(DATA))
    assert not left_behind(place)
    store.writer("ref").close()


@pytest.mark.parametrize("wrong", [{"size": 1}, {"expected": OTHER}])
def test_an_ingest_survives_a_wrong_commit(place: Place, store: ContentStore, wrong: dict[str, int | Digest]) -> None:
    with store.writer("ref") as writer:
        writer.write(DATA)
        with pytest.raises(Corrupt, match=r"ref: expected .*, got "):
            writer.commit(**wrong)  # type: ignore[arg-type] # one or the other
    assert not list(store.walk())
    with place.open().writer("ref") as writer:
        assert writer.offset == len(DATA)
        with pytest.raises(Corrupt):
            writer.commit(**wrong)  # type: ignore[arg-type]
        assert writer.commit(size=len(DATA), expected=DIGEST) == DIGEST


def test_wrong_bytes_are_never_committed_under_the_declared_digest(store: ContentStore) -> None:
    with store.writer("ref", expected=OTHER, total=len(DATA)) as writer:
        writer.write(DATA)
        with pytest.raises(Corrupt, match=f"expected {OTHER}, got {DIGEST}"):
            writer.commit()
        writer.truncate()
        writer.write(b"other")
        assert writer.commit(size=5) == OTHER


def test_too_few_bytes_are_kept_and_never_committed(store: ContentStore) -> None:
    with store.writer("ref", total=len(DATA)) as writer:
        writer.write(DATA[:-1])
        with pytest.raises(Corrupt, match="expected 100000 bytes, got 99999"):
            writer.commit()
        writer.write(DATA[-1:])
        assert writer.commit() == DIGEST


def test_more_bytes_than_declared_are_refused_whole(store: ContentStore) -> None:
    with store.writer("ref", expected=DIGEST, total=len(DATA)) as writer:
        writer.write(DATA[:-1])
        with pytest.raises(Corrupt, match="expected 100000 bytes, got 100001 or more"):
            writer.write(b"xy")
        assert writer.offset == len(DATA) - 1
        writer.write(DATA[-1:])
        writer.commit()
    assert store.read(DIGEST) == DATA


def test_an_empty_blob_is_content_too(store: ContentStore) -> None:
    with store.writer("ref", expected=EMPTY, total=0) as writer:
        assert writer.commit() == EMPTY
    assert store.info(EMPTY).size == 0
    assert store.read(EMPTY) == b""
    assert list(store.chunks(EMPTY)) == []


def test_sha512(place: Place, store: ContentStore) -> None:
    digest = ingest(store, DATA, algorithm="sha512")
    assert digest.algorithm == "sha512"
    assert place.files()[blob_path(digest)] == DATA
    assert b"".join(store.chunks(digest)) == DATA
    assert [info.digest for info in store.walk()] == [digest]


@pytest.mark.parametrize("declared", [None, DIGEST])
def test_commit_with_another_algorithm_than_declared(store: ContentStore, declared: Digest | None) -> None:
    wanted = Digest.of(DATA, algorithm="sha512")
    with store.writer("ref", expected=declared) as writer:
        writer.write(DATA[:99_999])
        writer.write(DATA[99_999:])  # still in the file object's buffer
        with pytest.raises(Corrupt):
            writer.commit(expected=Digest.of(b"other", algorithm="sha512"))
        assert writer.commit(expected=wanted) == wanted
    assert store.read(wanted) == DATA


# Resuming


@pytest.mark.parametrize("percent", [0, 10, 50, 90, 100])
@pytest.mark.parametrize("size", [500, 5_000, 50_000])
def test_an_ingest_is_resumed_where_it_stopped(place: Place, size: int, percent: int) -> None:
    assert_resumes(place, size, percent=percent)


def test_after_a_resume_the_file_holds_what_the_digest_covers(place: Place, store: ContentStore) -> None:
    with store.writer("ref") as writer:
        writer.write(b"AAAAAAAA")
    with store.writer("ref") as writer:
        writer.write(b"BBBB")
        digest = writer.commit()  # the seed had the digest of the stream over a file with BBBBAAAA (D1, containerd #1526)
    assert digest == Digest.of(b"AAAAAAAABBBB")
    assert place.files()[blob_path(digest)] == b"AAAAAAAABBBB"


def test_a_digest_that_does_not_cover_the_file_is_not_committed(place: Place, store: ContentStore) -> None:
    with store.writer("ref") as writer:
        writer.write(DATA)
        place.open()._backend.fs.open(store._layout.ingest("ref"), "ab").write(DATA)  # as a failed write may leave it
        with pytest.raises(Corrupt, match=r"expected 100000 bytes in .*, got 200000"):
            writer.commit()
    assert not list(store.walk())


def test_an_ingest_is_resumed_many_times_in_small_steps(place: Place, store: ContentStore) -> None:
    data = noise(1_000)
    for start in range(0, len(data), 77):
        with store.writer("ref", total=len(data)) as writer:
            assert writer.offset == start
            for byte in data[start : start + 77]:
                writer.write(bytes([byte]))
    with store.writer("ref", total=len(data)) as writer:
        digest = writer.commit()
    assert place.files()[blob_path(digest)] == data


@pytest.mark.parametrize("reopened", [False, True])
def test_after_truncate_writing_starts_over(place: Place, store: ContentStore, *, reopened: bool) -> None:
    with store.writer("ref", expected=DIGEST, total=len(DATA)) as writer:
        writer.write(noise(60_001, seed=2))
        if not reopened:
            writer.truncate()
            writer.write(DATA)
            writer.commit()
    if reopened:
        with store.writer("ref", expected=DIGEST, total=len(DATA)) as writer:
            assert writer.offset == 60_001
            writer.truncate()
            assert writer.offset == 0
            writer.write(DATA)  # containerd #1893: it was put behind a hole
            writer.commit()
    assert place.files()[blob_path(DIGEST)] == DATA


def test_truncate_is_kept_by_close(store: ContentStore) -> None:
    with store.writer("ref") as writer:
        writer.write(DATA)
        writer.truncate()
    assert store.status("ref").offset == 0


@pytest.mark.parametrize("total", [None, len(DATA)])
@pytest.mark.parametrize("resumed", [False, True])
def test_abort_drops_the_ingest(place: Place, store: ContentStore, total: int | None, *, resumed: bool) -> None:
    if resumed:
        with store.writer("ref", total=total) as writer:
            writer.write(DATA[:7])
    with store.writer("ref", total=total) as writer:
        writer.write(DATA[7:])
        writer.abort()
    assert not left_behind(place)
    with store.writer("ref", total=total) as writer:
        assert writer.offset == 0


def test_a_writer_that_is_closed_already_lets_no_second_one_in(store: ContentStore) -> None:
    closed = store.writer("ref")
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
        assert store.status("ref").total == len(data)  # made good at once, so also tidied up
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
def test_a_small_ingest_that_vanished_is_closed_without_a_record(place: Place, store: ContentStore, size: int) -> None:
    with store.writer("ref", total=len(DATA)) as writer:
        writer.write(DATA[:size])
        place.remove(ingest_path("ref"))
    assert f"{ingest_path('ref')}.json" not in left_behind(place)


def test_a_ref_is_free_after_a_close_that_was_interrupted(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    writer = store.writer("ref", total=len(DATA))
    writer.write(DATA[:50_000])
    with monkeypatch.context() as patch:
        patch.setattr(store._backend.fs, "pipe_file", interrupt)
        with pytest.raises(KeyboardInterrupt):
            writer.close()
    with store.writer("ref", total=len(DATA)) as writer:
        assert writer.offset == 0  # nothing says what the data is of
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
def test_a_damaged_ingest_is_started_over(place: Place, store: ContentStore, record: bytes | None) -> None:
    with store.writer("ref", total=len(DATA)) as writer:
        writer.write(DATA[1:])
    place.remove(f"{ingest_path('ref')}.json")
    if record is not None:
        place.plant(f"{ingest_path('ref')}.json", record)
    with store.writer("ref", total=len(DATA)) as writer:  # containerd #3089: it failed for ever
        assert writer.offset == 0
        writer.write(DATA)
        assert writer.commit() == DIGEST
    assert not left_behind(place)


def test_an_ingest_that_is_longer_than_its_total_is_started_over(place: Place, store: ContentStore) -> None:
    with store.writer("ref", total=10) as writer:
        writer.write(DATA[:1])
    assert store.status("ref").total == 10
    place.plant(ingest_path("ref"), DATA)
    with store.writer("ref", total=10) as writer:
        assert writer.offset == 0
        writer.write(DATA[:10])
        assert writer.commit() == Digest.of(DATA[:10])


@pytest.mark.parametrize(("total", "expected"), [(7, None), (None, None), (len(DATA), OTHER)])
def test_a_ref_that_is_declared_otherwise_is_started_over(
    store: ContentStore, total: int | None, expected: Digest | None
) -> None:
    with store.writer("ref", total=len(DATA)) as writer:
        writer.write(DATA[:6])
    with store.writer("ref", total=total, expected=expected) as writer:
        assert writer.offset == 0
    assert (store.status("ref").total, store.status("ref").expected) == (total, expected)


# One writer per ref


def test_a_locked_ref_is_busy_and_says_since_when_and_where(place: Place, store: ContentStore) -> None:
    with store.writer("ref", total=len(BIG)) as writer:
        writer.write(BIG[:50_000])
        pattern = r"^ref: another writer has it since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC and is at byte 50000$"
        for other in (store, place.open()):
            with pytest.raises(Busy, match=pattern):
                other.writer("ref", total=len(BIG))
        store.writer("another ref").close()


def test_a_locked_ref_is_busy_also_when_it_is_small(place: Place, store: ContentStore) -> None:
    with store.writer("ref", total=len(DATA)) as writer:
        writer.write(DATA[:50_000])
        for other in (store, place.open()):
            with pytest.raises(Busy, match=r"^ref: another writer has it$"):
                other.writer("ref", total=len(DATA))
        store.writer("another ref", total=len(DATA)).close()
        writer.write(DATA[50_000:])
        assert writer.commit() == DIGEST


def test_a_locked_ref_is_busy_also_when_its_record_is_damaged(place: Place, store: ContentStore) -> None:
    with store.writer("ref"):
        place.plant(f"{ingest_path('ref')}.json", b'{"ref": "ref", "expected": "sha384:00", "started": ""}')
        with pytest.raises(Busy, match=r"^ref: another writer has it$"):
            store.writer("ref")


def raise_from_body(_: Writer) -> None:
    raise KeyboardInterrupt


def end_wrongly_twice(writer: Writer) -> None:
    with pytest.raises(Corrupt):
        writer.commit(expected=OTHER)
    writer.commit(size=1)


def end_with_nothing_to_commit(writer: Writer) -> None:
    writer._backend.fs.rm_file(writer._path)
    writer.commit(size=writer.offset)


WAYS_TO_END: dict[str, Callable[[Writer], object]] = {
    "close": Writer.close,
    "commit": lambda writer: writer.commit(size=writer.offset),
    "abort": Writer.abort,
    "too much": lambda writer: writer.write(BIG),
    "wrong size": Writer.commit,
    "wrong digest": lambda writer: writer.commit(size=writer.offset, expected=OTHER),
    "wrong twice": end_wrongly_twice,
    "vanished": end_with_nothing_to_commit,
    "interrupt": raise_from_body,
}


@pytest.mark.parametrize("end", WAYS_TO_END.values(), ids=WAYS_TO_END)
@BOTH_KINDS
def test_a_ref_is_free_after(place: Place, store: ContentStore, end: Callable[[Writer], object], data: bytes) -> None:
    try:
        with store.writer("ref", total=len(data) + 1) as writer:
            writer.write(data)
            end(writer)
    except (DistError, KeyboardInterrupt):
        pass
    with store.writer("ref", total=len(data)) as writer:
        writer.write(data)
        assert writer.commit() == Digest.of(data)
    assert not left_behind(place)


def test_a_ref_is_free_after_its_data_could_not_be_read(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.writer("ref") as writer:
        writer.write(DATA)
    fs, path = store._backend.fs, store._layout.ingest("ref")
    cat_file = fs.cat_file

    def fail(asked: str, start: int | None = None, end: int | None = None) -> object:
        if asked == path:
            raise OSError(errno.EIO, "Input/output error")
        return cat_file(asked, start, end)

    with monkeypatch.context() as patch:
        patch.setattr(fs, "cat_file", fail)
        with pytest.raises(Unavailable, match=r"ref: reading .*: Input/output error"):
            store.writer("ref")
    with store.writer("ref") as writer:
        assert writer.offset == len(DATA)


@BOTH_KINDS
def test_many_threads_that_want_one_ref_make_one_blob(place: Place, data: bytes) -> None:
    def want(_: int) -> type[DistError] | None:
        try:
            ingest(place.open(), data)
        except (Busy, AlreadyExists) as exc:
            return type(exc)
        return None

    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(want, range(40)))
    assert outcomes.count(None) == 1
    assert place.files()[blob_path(Digest.of(data))] == data
    assert not left_behind(place)


def test_many_threads_with_a_ref_each_do_not_disturb_each_other(place: Place, store: ContentStore) -> None:
    blobs = [noise(10_000, seed=number) for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        digests = list(threads.map(lambda data: ingest(store, data, ref=str(Digest.of(data))), blobs))
    assert [store.manifest(Descriptor(media_type="x", digest=digest, size=10_000)) for digest in digests] == blobs
    assert not left_behind(place)


# Reading


@pytest.mark.parametrize(("offset", "length"), [(0, None), (0, 0), (0, 1), (1, 98), (99, 1), (99, 50), (100, None), (100, 7)])
def test_a_range_of_a_blob(store: ContentStore, offset: int, length: int | None) -> None:
    data = noise(100)
    end = None if length is None else offset + length
    assert store.read(ingest(store, data), offset=offset, length=length) == data[offset:end]


def test_a_range_past_the_end_is_refused(store: ContentStore) -> None:
    digest = ingest(store, noise(100))
    with pytest.raises(InvalidInput, match="offset 101 is past its end, it has 100 bytes"):
        store.read(digest, offset=101)


def test_info(store: ContentStore) -> None:
    ingest(store, DATA)
    info = store.info(DIGEST)
    assert (info.digest, info.size, info.committed.tzinfo) == (DIGEST, len(DATA), UTC)


READERS: dict[str, Callable[[ContentStore], object]] = {
    "info": lambda store: store.info(OTHER),
    "read": lambda store: store.read(OTHER),
    "read from": lambda store: store.read(OTHER, offset=1),
    "chunks": lambda store: list(store.chunks(OTHER)),
    "manifest": lambda store: store.manifest(Descriptor(media_type="x", digest=OTHER, size=5)),
    "delete": lambda store: store.delete(OTHER),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("empty", [False, True])
def test_a_missing_blob_is_not_found(store: ContentStore, read: Callable[[ContentStore], object], *, empty: bool) -> None:
    if not empty:
        ingest(store, DATA)
    with pytest.raises(NotFound, match=f"^blob {OTHER}: not there$"):
        read(store)


def test_chunks_are_the_blob_and_verify_it(place: Place, store: ContentStore) -> None:
    data = noise(9_000_000)
    digest = ingest(store, data)
    pieces = list(store.chunks(digest))
    assert len(pieces) > 1
    assert b"".join(pieces) == data
    place.plant(blob_path(digest), data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(Corrupt, match="the store has bytes of"):
        list(store.chunks(digest))


@pytest.mark.parametrize("size", [4 * 1024 * 1024, 0])
def test_chunks_of_a_blob_that_becomes_shorter_end_as_corrupt(place: Place, store: ContentStore, size: int) -> None:
    data = noise(9_000_000)
    digest = ingest(store, data)
    chunks = store.chunks(digest)
    next(chunks)
    place.plant(blob_path(digest), data[:size])
    with pytest.raises(Corrupt):
        list(chunks)


def test_a_manifest_is_verified(place: Place, store: ContentStore) -> None:
    descriptor = Descriptor(media_type="x", digest=ingest(store, b"{}"), size=2)
    assert store.manifest(descriptor) == b"{}"
    place.plant(blob_path(descriptor.digest), b"[]")
    with pytest.raises(Corrupt, match=f"the store has bytes of {Digest.of(b'[]')}"):
        store.manifest(descriptor)


def test_holds_goes_by_name_and_size(store: ContentStore) -> None:
    ingest(store, DATA)
    assert store.holds(Descriptor(media_type="x", digest=DIGEST, size=len(DATA)))
    assert not store.holds(Descriptor(media_type="x", digest=OTHER, size=5))
    with pytest.raises(Corrupt, match="expected 7 bytes, the store has 100000"):
        store.holds(Descriptor(media_type="x", digest=DIGEST, size=7))


def test_walk_passes_over_strange_files_with_a_warning(
    place: Place, store: ContentStore, caplog: pytest.LogCaptureFixture
) -> None:
    digests = {ingest(store, DATA), ingest(store, DATA, algorithm="sha512")}
    strange = [
        "blobs/file",
        "blobs/sha256/short",
        f"blobs/md5/{DIGEST.hex}",
        f"blobs/sha256/{OTHER.hex}/file",
        "blobs/" + DIGEST.hex,
    ]
    for path in strange:
        place.plant(path, b"strange")
    with caplog.at_level(logging.WARNING):
        infos = list(store.walk())
    assert {info.digest for info in infos} == digests
    assert {info.size for info in infos} == {len(DATA)}
    assert len(caplog.records) == len(strange)
    assert all(record.getMessage().endswith(" is no blob") for record in caplog.records)


def test_a_blob_that_is_deleted_while_they_are_listed_is_left_out(store: ContentStore) -> None:
    digests = {ingest(store, DATA), ingest(store, b"other")}
    walk = store.walk()
    digests.remove(next(walk).digest)
    store.delete(digests.pop())
    assert list(walk) == []


def test_a_deleted_blob_is_gone_and_can_come_back(store: ContentStore) -> None:
    ingest(store, DATA)
    store.delete(DIGEST)
    with pytest.raises(NotFound):
        store.delete(DIGEST)
    ingest(store, DATA)
    assert store.read(DIGEST) == DATA


def test_nothing_is_made_by_opening_or_reading(place: Place) -> None:
    store = place.open()
    assert not any([*store.walk(), *store.active(), *store.names])
    assert not store.holds(Descriptor(media_type="x", digest=DIGEST, size=len(DATA)))
    for look in READERS.values():
        with pytest.raises(NotFound):
            look(store)
    with pytest.raises(NotFound):
        store.status("ref")
    with pytest.raises(NotFound):
        store.names.delete("name")
    assert place.files() == {}


def test_a_disk_that_fails_is_not_taken_for_an_empty_one(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.plant("index.json", b"full")
    store = place.open()

    def fail(path: str) -> None:
        raise OSError(errno.EIO, "Input/output error", path)

    with monkeypatch.context() as patch:
        patch.setattr(store._backend.fs, "info", fail)
        for use in (lambda: store.delete(DIGEST), lambda: store.names.delete("name"), lambda: store.writer("ref")):
            with pytest.raises(Unavailable, match="Input/output error"):
                use()
    assert place.files() == {"index.json": b"full"}
