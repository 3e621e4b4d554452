"""Multipart uploads to a real S3 server: the size of parts, and the cost of a failure."""

import contextlib
from typing import Any

import pytest

from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import AlreadyExists, Denied, InvalidInput, NotFound, Unavailable
from prefect_dist.storage import ContentStore, open_store
from prefect_dist.storage.objects import MIN_PART_BYTES
from prefect_dist.storage.s3 import part_bytes
from tests.peers.seaweedfs import S3Server
from tests.storage.conformance import blob_path, noise

DATA = noise(2 * MIN_PART_BYTES + 100_000)
DIGEST = Digest.of(DATA)
PIECE = 1024 * 1024
GIB = 1024**3


@pytest.fixture
def store(s3: S3Server, request: pytest.FixtureRequest) -> ContentStore:
    return open_store(f"{s3.url}/{request.node.name}", options=s3.storage_options)


@pytest.mark.parametrize("size", [1, MIN_PART_BYTES, 50 * GIB, 5000 * GIB])
def test_no_object_has_more_parts_than_s3_allows(size: int) -> None:
    assert part_bytes(size) >= 5 * 1024 * 1024
    assert -(-size // part_bytes(size)) <= 10_000


def fail_nth_call(
    patch: pytest.MonkeyPatch, store: ContentStore, method: str, *, nth: int, answered: bool = False
) -> list[tuple[str, Any]]:
    """Make the nth call of an S3 method fail, or lose its response if `answered`. Return the calls with part numbers."""
    fs, seen = store._backend.fs, list[tuple[str, Any]]()
    call = fs.call_s3

    def run(name: str, **kwargs: Any) -> Any:
        seen.append((name, kwargs.get("PartNumber")))
        fails = name == method and [known for known, _ in seen].count(method) == nth
        answer = call(name, **kwargs) if answered or not fails else None
        if fails:
            raise OSError("the line broke")
        return answer

    patch.setattr(fs, "call_s3", run)
    return seen


def list_uploads(store: ContentStore) -> str:
    """Return the keys of the unfinished uploads of this store."""
    bucket, _, prefix = store._layout.root.partition("/")
    answer = store._backend.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix)
    return " ".join(upload["Key"] for upload in answer.get("Uploads", ()))


def write(store: ContentStore) -> None:
    with contextlib.suppress(AlreadyExists), store.writer("ref", expected=DIGEST, total=len(DATA)) as writer:
        for start in range(writer.offset, len(DATA), PIECE):
            writer.write(DATA[start : start + PIECE])
        writer.commit()


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize(
    ("method", "nth"),
    [
        ("create_multipart_upload", 1),
        ("upload_part", 1),
        ("upload_part", 2),
        ("upload_part", 3),
        ("complete_multipart_upload", 1),
    ],
)
def test_the_next_attempt_resumes_after_the_uploaded_parts(
    store: ContentStore, monkeypatch: pytest.MonkeyPatch, method: str, nth: int, *, answered: bool
) -> None:
    seen = fail_nth_call(monkeypatch, store, method, nth=nth, answered=answered)
    with pytest.raises(Unavailable, match="the line broke"):
        write(store)
    up = {number for name, number in seen[:-1] if name == "upload_part"}
    already = len(seen)

    write(store)

    again = [number for name, number in seen[already:] if name == "upload_part"]
    assert up.isdisjoint(again)
    assert up | set(again) == {1, 2, 3}
    assert b"".join(store.chunks(DIGEST)) == DATA


def abort_elsewhere(store: ContentStore) -> None:
    """Abort the uploads of a store, like a lifecycle rule or the gc of another machine."""
    fs = store._backend.fs
    bucket, _, prefix = store._layout.root.partition("/")
    for upload in fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix)["Uploads"]:
        fs.abort_mpu(bucket, upload["Key"], upload["UploadId"])


@pytest.mark.parametrize("when", ["before the next part", "before the commit", "before the next writer"])
def test_an_upload_that_another_process_aborted_starts_over_at_the_next_attempt(store: ContentStore, when: str) -> None:
    def write_until_aborted() -> None:
        with store.writer("ref", expected=DIGEST, total=len(DATA)) as writer:
            if not writer.offset:
                writer.write(DATA[: len(DATA) if when == "before the commit" else MIN_PART_BYTES + PIECE])
                abort_elsewhere(store)
            if when != "before the next writer" or not first:
                writer.write(DATA[writer.offset :])
                writer.commit()

    first = True
    if when == "before the next writer":
        write_until_aborted()
        first = False
    with pytest.raises(
        Unavailable, match=r"^ref: another process aborted the upload to s3://.*; the next attempt starts over$"
    ):
        write_until_aborted()

    write(store)
    assert b"".join(store.chunks(DIGEST)) == DATA
    assert not list_uploads(store)


def test_an_upload_that_another_process_aborted_can_be_dropped(store: ContentStore) -> None:
    with store.writer("ref", expected=DIGEST, total=len(DATA)) as writer:
        writer.write(DATA)
        abort_elsewhere(store)
        writer.abort()
    write(store)
    assert b"".join(store.chunks(DIGEST)) == DATA


def test_uploads_of_another_process_are_listed_with_their_progress(s3: S3Server, store: ContentStore) -> None:
    other = open_store(store.url, options=s3.storage_options)
    with store.writer("ref", expected=DIGEST, total=len(DATA)) as writer:
        writer.write(DATA[: MIN_PART_BYTES + PIECE])
        (own,), (seen,) = store.active(), other.active()
        assert (own.ref, own.offset, own.total) == ("ref", MIN_PART_BYTES + PIECE, len(DATA))
        assert (seen.ref, seen.offset, seen.total) == (blob_path(DIGEST), MIN_PART_BYTES, None)
        assert seen.expected == DIGEST
        assert seen.started <= seen.updated
        writer.abort()
    assert not list(other.active())


def test_nothing_is_visible_before_a_commit_or_left_after_an_abort(store: ContentStore) -> None:
    with store.writer("ref", expected=DIGEST, total=len(DATA)) as writer:
        writer.write(DATA)
        assert not list(store.walk())
        assert blob_path(DIGEST) in list_uploads(store)
        writer.abort()
    assert not list_uploads(store)
    assert not list(store.walk())


def test_wrong_bytes_are_never_completed(store: ContentStore) -> None:
    with store.writer("ref", expected=Digest.of(b"other"), total=len(DATA)) as writer:
        writer.write(DATA)
        with contextlib.suppress(Exception):
            writer.commit()
    assert not list(store.walk())
    store.close()


def test_a_store_that_is_closed_leaves_no_upload(store: ContentStore) -> None:
    with store, store.writer("ref", expected=DIGEST, total=len(DATA)) as writer:
        writer.write(DATA)
    assert not list_uploads(store)


def test_access_without_a_key_is_denied_and_the_error_has_no_secret(s3: S3Server) -> None:
    wrong = open_store(f"{s3.url}/denied", options=s3.storage_options | {"secret": "wrong-secret"})
    for use in (
        wrong.prepare,
        wrong.update_index,
        lambda: list(wrong.names),
        lambda: list(wrong.walk()),
        lambda: wrong.info(DIGEST),
        lambda: wrong.writer("ref", expected=DIGEST),
    ):
        with pytest.raises(Denied) as caught:
            use()
        says = str(caught.value)
        assert f"{s3.url}/denied" in says
        assert "; check the credentials and their permissions" in says
        assert s3.key not in says
        assert "wrong-secret" not in says


def test_a_missing_bucket_is_not_found(s3: S3Server) -> None:
    with pytest.raises(NotFound, match=r"^store s3://no-such-bucket/x: the bucket does not exist; check the location"):
        open_store("s3://no-such-bucket/x", options=s3.storage_options).prepare()


def test_an_unreachable_server_is_unavailable(s3: S3Server) -> None:
    store = open_store(f"{s3.url}/x", options=s3.storage_options | {"endpoint_url": "http://127.0.0.1:1"})
    with pytest.raises(
        Unavailable, match=r"^store s3://tests/x: .*127\.0\.0\.1:1.*; check the credentials, the bucket and the"
    ):
        store.prepare()
    with pytest.raises(Unavailable, match=r"^name x: .*; check the .* endpoint \(s3://tests/x\)$"):
        store.names.get("x")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"endpoint_url": "nonsense"}, "Invalid endpoint: nonsense"),
        ({"endpoint_url": 5}, "check the location and its options"),
        ({"client_kwargs": "eu"}, "store option client_kwargs: expected nested options as"),
        ({"s3_additional_kwargs": 5}, "store option s3_additional_kwargs: expected nested options as"),
        ({"client_kwargs": {"region_name": 3}}, "check the location and its options"),
        ({"config_kwargs": {"nope": 1}}, "unexpected keyword argument 'nope'"),
        ({"nope": 1}, "unexpected keyword argument 'nope'"),
        ({"profile": "nope"}, r"profile \(nope\) could not be found"),
    ],
)
def test_invalid_options_are_refused_before_any_request(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        open_store("s3://tests/x", options={"endpoint_url": "http://127.0.0.1:1", "key": "k", "secret": "s"} | options)
