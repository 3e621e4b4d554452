"""The behaviour of blobs and ingests on every backend."""

import errno
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.ocispec.errors import AlreadyExists, Busy, Corrupt, DistError, InvalidInput, NotFound, Unavailable
from prefect_dist.storage import ContentStore, Writer
from tests.storage.conformance import EMPTY, Place, assert_resumes, blob_path, ingest, noise

DATA = noise(100_000)  # larger than the buffer of a file object
DIGEST = Digest.of(DATA)
SMALL = 1024 * 1024  # the largest declared total whose ingest is recorded only when it is closed unfinished
BIG = noise(SMALL + 50_000)
BOTH_KINDS = pytest.mark.parametrize("data", [DATA, BIG], ids=["small", "big"])
OTHER = Digest.of(b"other")


def left_behind(place: Place) -> set[str]:
    return {path for path in place.files() if path.startswith("ingest/")}


# Writing


def test_a_writer_starts_at_zero_and_counts_the_written_bytes(store: ContentStore) -> None:
    with store.writer("ref", expected=DIGEST, total=len(DATA)) as writer:
        declared = writer.declaration
        assert (declared.ref, declared.expected, declared.total, writer.offset) == ("ref", DIGEST, len(DATA), 0)
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
def test_a_commit_removes_the_ingest(place: Place, store: ContentStore, data: bytes) -> None:
    ingest(store, data)
    assert not left_behind(place)
    with pytest.raises(NotFound):
        store.status("ref")


def test_closing_twice_has_no_effect(store: ContentStore) -> None:
    with store.writer("ref") as writer:
        writer.write(DATA)
        writer.commit()
        writer.close()
    writer.close()


@pytest.mark.parametrize("ref", ["", "\udcff"])
def test_an_empty_or_undecodable_ref_is_refused(store: ContentStore, ref: str) -> None:
    with pytest.raises(InvalidInput):
        store.writer(ref)


def test_a_ref_may_be_any_text(store: ContentStore) -> None:
    refs = ["../up", "/", "ключ", "a" * 5000, "%2F", "a\nb"]
    for ref in refs:
        store.writer(ref).close()
    assert {status.ref for status in store.active()} == set(refs)


# Status


def test_the_status_has_the_progress_of_an_ingest(store: ContentStore) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)  # file times are coarser than the clock
    with store.writer("ref", expected=DIGEST, total=len(BIG)) as writer:
        writer.write(BIG[:50_000])
        assert store.status("ref").offset == 50_000
    status = store.status("ref")
    assert (status.ref, status.offset, status.total, status.expected) == ("ref", 50_000, len(BIG), DIGEST)
    assert before <= status.started <= datetime.now(UTC)
    assert before <= status.updated <= datetime.now(UTC) + timedelta(seconds=1)


def test_the_status_has_none_for_undeclared_values(store: ContentStore) -> None:
    store.writer("ref").close()
    assert (store.status("ref").total, store.status("ref").expected) == (None, None)


def test_a_resumed_ingest_keeps_its_start_time(store: ContentStore) -> None:
    store.writer("ref").close()
    started = store.status("ref").started
    store.writer("ref").close()
    assert store.status("ref").started == started


def test_the_status_of_a_missing_ingest_is_not_found(store: ContentStore) -> None:
    with pytest.raises(NotFound, match="ingest ref: not found"):
        store.status("ref")


def test_active_lists_all_ingests(store: ContentStore) -> None:
    assert list(store.active()) == []
    for ref in ("one", "two"):
        store.writer(ref).close()
    with store.writer("three"):
        assert {status.ref for status in store.active()} == {"one", "two", "three"}


def test_an_ingest_that_ends_during_the_listing_is_left_out(store: ContentStore) -> None:
    for ref in ("one", "two"):
        store.writer(ref).close()
    active = store.active()
    seen = next(active).ref
    store.writer("two" if seen == "one" else "one").abort()
    assert list(active) == []


# Commit


def test_a_commit_needs_no_declared_digest(store: ContentStore) -> None:
    with store.writer("ref") as writer:
        writer.write(DATA)
        assert writer.commit() == DIGEST


def test_a_commit_checks_the_given_size_and_digest(store: ContentStore) -> None:
    with store.writer("ref") as writer:
        writer.write(DATA)
        assert writer.commit(size=len(DATA), expected=DIGEST) == DIGEST


def test_the_size_given_to_a_commit_replaces_the_declared_total(store: ContentStore) -> None:
    with store.writer("ref", total=len(DATA)) as writer:
        writer.write(DATA[:10])
        with pytest.raises(Corrupt, match="expected 100000 bytes, got 10"):
            writer.commit()
        assert writer.commit(size=10) == Digest.of(DATA[:10])


@pytest.mark.parametrize("expected", [None, DIGEST])
def test_a_commit_of_existing_content_succeeds(place: Place, store: ContentStore, expected: Digest | None) -> None:
    with store.writer("first", expected=expected) as writer:
        writer.write(DATA)
        ingest(store, DATA, ref="second")
        assert writer.commit() == DIGEST
    assert store.read(DIGEST) == DATA
    assert not left_behind(place)


def test_a_writer_for_existing_content_is_refused(place: Place, store: ContentStore) -> None:
    ingest(store, DATA)
    with pytest.raises(AlreadyExists, match=str(DIGEST)):
        place.open().writer("other", expected=DIGEST, total=len(DATA))
    assert not left_behind(place)


@pytest.mark.parametrize("wrong", [{"size": 1}, {"expected": OTHER}])
def test_an_ingest_survives_a_failed_commit(store: ContentStore, wrong: dict[str, int | Digest]) -> None:
    with store.writer("ref") as writer:
        writer.write(DATA)
        with pytest.raises(Corrupt, match=r"ref: expected .*, got "):
            writer.commit(**wrong)  # type: ignore[arg-type] # one or the other
    assert not list(store.walk())
    with store.writer("ref") as writer:
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


def test_incomplete_content_is_kept_and_never_committed(store: ContentStore) -> None:
    with store.writer("ref", total=len(DATA)) as writer:
        writer.write(DATA[:-1])
        with pytest.raises(Corrupt, match="expected 100000 bytes, got 99999"):
            writer.commit()
        writer.write(DATA[-1:])
        assert writer.commit() == DIGEST


def test_a_write_beyond_the_declared_size_is_refused_as_a_whole(store: ContentStore) -> None:
    with store.writer("ref", expected=DIGEST, total=len(DATA)) as writer:
        writer.write(DATA[:-1])
        with pytest.raises(Corrupt, match="expected 100000 bytes, got 100001 or more"):
            writer.write(b"xy")
        assert writer.offset == len(DATA) - 1
        writer.write(DATA[-1:])
        writer.commit()
    assert store.read(DIGEST) == DATA


def test_a_blob_may_be_empty(store: ContentStore) -> None:
    with store.writer("ref", expected=EMPTY, total=0) as writer:
        assert writer.commit() == EMPTY
    assert store.info(EMPTY).size == 0
    assert store.read(EMPTY) == b""
    assert list(store.chunks(EMPTY)) == []


def test_a_blob_may_have_a_sha512_digest(place: Place, store: ContentStore) -> None:
    digest = ingest(store, DATA, algorithm="sha512")
    assert digest.algorithm == "sha512"
    assert place.files()[blob_path(digest)] == DATA
    assert b"".join(store.chunks(digest)) == DATA
    assert [info.digest for info in store.walk()] == [digest]


def test_a_commit_checks_the_declared_digest_in_any_case(store: ContentStore) -> None:
    with store.writer("ref", expected=OTHER) as writer:
        writer.write(DATA)
        with pytest.raises(Corrupt, match=f"expected {OTHER}, got {DIGEST}"):
            writer.commit(expected=DIGEST)


@pytest.mark.parametrize("declared", [None, DIGEST])
def test_a_digest_of_another_algorithm_must_be_declared(store: ContentStore, declared: Digest | None) -> None:
    with store.writer("ref", expected=declared) as writer:
        writer.write(DATA)
        with pytest.raises(InvalidInput, match="declare the digest"):
            writer.commit(expected=Digest.of(DATA, algorithm="sha512"))
        assert writer.commit() == DIGEST


# Resuming


@pytest.mark.parametrize("percent", [0, 10, 50, 90, 100])
@pytest.mark.parametrize("size", [500, 5_000, 50_000])
def test_an_ingest_is_resumed_where_it_stopped(place: Place, store: ContentStore, size: int, percent: int) -> None:
    assert_resumes(place, (store, store), size, percent=percent)


@pytest.mark.parametrize("percent", [0, 10, 50, 90, 100])
def test_a_large_ingest_is_resumed_where_it_stopped(place: Place, store: ContentStore, percent: int) -> None:
    assert_resumes(place, (store, store), 20_000_000, percent=percent)


def test_an_unfinished_ingest_is_resumed_or_discarded_by_the_next_store(place: Place, store: ContentStore) -> None:
    with store.writer("ref", expected=DIGEST, total=len(DATA)) as writer:
        writer.write(DATA[:50_000])
    store.close()
    with place.open() as other, other.writer("ref", expected=DIGEST, total=len(DATA)) as writer:
        assert writer.offset == (50_000 if place.outlives else 0)
        writer.write(DATA[writer.offset :])
        assert writer.commit() == DIGEST
    assert place.files()[blob_path(DIGEST)] == DATA
    assert not left_behind(place)


def test_after_a_resume_the_file_and_the_digest_cover_the_same_bytes(place: Place, store: ContentStore) -> None:
    with store.writer("ref") as writer:
        writer.write(b"AAAAAAAA")
    with store.writer("ref") as writer:
        writer.write(b"BBBB")
        digest = writer.commit()  # the seed had the digest of the stream over a file with BBBBAAAA (D1, containerd #1526)
    assert digest == Digest.of(b"AAAAAAAABBBB")
    assert place.files()[blob_path(digest)] == b"AAAAAAAABBBB"


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
            writer.write(DATA)  # containerd #1893: the data was written after a hole
            writer.commit()
    assert place.files()[blob_path(DIGEST)] == DATA


def test_a_truncated_ingest_stays_truncated_after_close(store: ContentStore) -> None:
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


@pytest.mark.parametrize(("total", "expected"), [(7, None), (None, None), (len(DATA), OTHER)])
def test_an_ingest_with_another_declaration_starts_over(
    store: ContentStore, total: int | None, expected: Digest | None
) -> None:
    with store.writer("ref", total=len(DATA)) as writer:
        writer.write(DATA[:6])
    with store.writer("ref", total=total, expected=expected) as writer:
        assert writer.offset == 0
    assert (store.status("ref").total, store.status("ref").expected) == (total, expected)


# One writer per ref


def test_a_ref_with_a_writer_is_busy_and_the_error_has_its_progress(store: ContentStore) -> None:
    with store.writer("ref", total=len(BIG)) as writer:
        writer.write(BIG[:50_000])
        pattern = r"^ref: another writer has been active since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC and is at byte 50000$"
        with pytest.raises(Busy, match=pattern):
            store.writer("ref", total=len(BIG))
        store.writer("another ref").close()


def raise_from_body(_: Writer) -> None:
    raise KeyboardInterrupt


def end_wrongly_twice(writer: Writer) -> None:
    with pytest.raises(Corrupt):
        writer.commit(expected=OTHER)
    writer.commit(size=1)


WAYS_TO_END: dict[str, Callable[[Writer], object]] = {
    "close": Writer.close,
    "commit": lambda writer: writer.commit(size=writer.offset),
    "abort": Writer.abort,
    "too much": lambda writer: writer.write(BIG),
    "wrong size": Writer.commit,
    "wrong digest": lambda writer: writer.commit(size=writer.offset, expected=OTHER),
    "wrong twice": end_wrongly_twice,
    "interrupt": raise_from_body,
}


@pytest.mark.parametrize("end", WAYS_TO_END.values(), ids=WAYS_TO_END)
@BOTH_KINDS
def test_a_ref_is_free_after_any_end_of_its_writer(
    place: Place, store: ContentStore, end: Callable[[Writer], object], data: bytes
) -> None:
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


@BOTH_KINDS
def test_many_threads_with_the_same_ref_write_one_blob(place: Place, store: ContentStore, data: bytes) -> None:
    def want(_: int) -> type[DistError] | None:
        try:
            ingest(store, data)
        except (Busy, AlreadyExists) as exc:
            return type(exc)
        return None

    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(want, range(40)))
    assert outcomes.count(None) == 1
    assert place.files()[blob_path(Digest.of(data))] == data
    assert not left_behind(place)


def test_threads_with_different_refs_do_not_interfere(place: Place, store: ContentStore) -> None:
    blobs = [noise(10_000, seed=number) for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        digests = list(threads.map(lambda data: ingest(store, data, ref=str(Digest.of(data))), blobs))
    assert [store.manifest(Descriptor(media_type="x", digest=digest, size=10_000)) for digest in digests] == blobs
    assert not left_behind(place)


def test_two_stores_with_the_same_ref_and_no_digest_do_not_mix_content(place: Place) -> None:
    """Two store objects represent two machines on an object store. On a disk, the second writer waits."""
    one, other = place.open(), place.open()
    first = one.writer("ref")
    first.write(DATA)
    if place.outlives:
        with pytest.raises(Busy):
            other.writer("ref")
    else:
        second = other.writer("ref")
        second.write(BIG)
        assert second.commit() == Digest.of(BIG)
    assert first.commit() == DIGEST
    assert {info.digest for info in one.walk()} == ({DIGEST} if place.outlives else {DIGEST, Digest.of(BIG)})
    for info in one.walk():
        assert b"".join(one.chunks(info.digest))  # which verifies


# Reading


@pytest.mark.parametrize(("offset", "length"), [(0, None), (0, 0), (0, 1), (1, 98), (99, 1), (99, 50), (100, None), (100, 7)])
def test_a_range_of_a_blob_is_read(store: ContentStore, offset: int, length: int | None) -> None:
    data = noise(100)
    end = None if length is None else offset + length
    assert store.read(ingest(store, data), offset=offset, length=length) == data[offset:end]


def test_an_offset_beyond_the_end_is_refused(store: ContentStore) -> None:
    digest = ingest(store, noise(100))
    with pytest.raises(InvalidInput, match="expected an offset of at most its size of 100 bytes, got 101"):
        store.read(digest, offset=101)


def test_info_has_size_and_commit_time(store: ContentStore) -> None:
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
    with pytest.raises(NotFound, match=f"^blob {OTHER}: not found$"):
        read(store)


def test_chunks_yield_the_blob_and_verify_it(place: Place, store: ContentStore) -> None:
    data = noise(9_000_000)
    digest = ingest(store, data)
    pieces = list(store.chunks(digest))
    assert len(pieces) > 1
    assert b"".join(pieces) == data
    place.plant(blob_path(digest), data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(Corrupt, match="the stored bytes have the digest"):
        list(store.chunks(digest))


@pytest.mark.parametrize("size", [4 * 1024 * 1024, 0])
def test_chunks_of_a_blob_that_is_truncated_meanwhile_raise_corrupt(place: Place, store: ContentStore, size: int) -> None:
    data = noise(9_000_000)
    digest = ingest(store, data)
    chunks = store.chunks(digest)
    next(chunks)
    place.plant(blob_path(digest), data[:size])
    with pytest.raises((Corrupt, Unavailable)):  # S3 refuses to read past the end
        list(chunks)


def test_a_manifest_is_verified(place: Place, store: ContentStore) -> None:
    descriptor = Descriptor(media_type="x", digest=ingest(store, b"{}"), size=2)
    assert store.manifest(descriptor) == b"{}"
    place.plant(blob_path(descriptor.digest), b"[]")
    with pytest.raises(Corrupt, match=f"the stored bytes have the digest {Digest.of(b'[]')}"):
        store.manifest(descriptor)


def test_holds_compares_digest_and_size(store: ContentStore) -> None:
    ingest(store, DATA)
    assert store.holds(Descriptor(media_type="x", digest=DIGEST, size=len(DATA)))
    assert not store.holds(Descriptor(media_type="x", digest=OTHER, size=5))
    with pytest.raises(Corrupt, match="expected 7 bytes, got 100000"):
        store.holds(Descriptor(media_type="x", digest=DIGEST, size=7))


def test_walk_skips_unknown_files_with_a_warning(place: Place, store: ContentStore, caplog: pytest.LogCaptureFixture) -> None:
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
    assert all(record.getMessage().endswith(" is not a blob, ignored") for record in caplog.records)


def test_after_the_last_blob_is_deleted_walk_finds_no_unknown_files(
    store: ContentStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.delete(ingest(store, DATA))
    assert list(store.walk()) == []
    assert not caplog.records  # SeaweedFS lists the directory itself as an object


def test_a_deleted_blob_is_missing_and_can_be_written_again(store: ContentStore) -> None:
    ingest(store, DATA)
    store.delete(DIGEST)
    with pytest.raises(NotFound):
        store.delete(DIGEST)
    ingest(store, DATA)
    assert store.read(DIGEST) == DATA


def test_opening_and_reading_create_nothing(place: Place) -> None:
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


def test_a_failing_file_system_does_not_look_empty(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
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
