"""Pushing, as the fake registry sees it: the requests and the sent bytes."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest

from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.errors import Corrupt, Denied, DistError, InvalidInput, NotFound, Unavailable, Unsupported
from prefect_dist.ocispec.units import size
from prefect_dist.remotes import Hosts, HostSettings, Registries, RegistrySettings
from prefect_dist.remotes.auth import HostAuth
from prefect_dist.remotes.credentials import RegistryLogin
from prefect_dist.remotes.pusher import Pusher
from prefect_dist.remotes.repository import Repository
from prefect_dist.remotes.sizes import RegistrySizes
from prefect_dist.remotes.transport import Urllib3Transport
from tests import images
from tests.fakes.access import Basic, Bearer
from tests.fakes.faults import (
    Action,
    Answer,
    Drop,
    Fault,
    Redirect,
    Refuse,
    Silence,
    WithHeaders,
    WithoutHeaders,
)
from tests.fakes.registry import FakeRegistry
from tests.fakes.uploads import Uploads
from tests.peers.processes import PATIENCE_S
from tests.remotes.asking import BLOB, HASTY, REPOSITORY, anonymous, check_message, descriptor, list_requests, reference, user
from tests.remotes.pushing import CHUNK, Reader, pusher, sent_ranges, shape

SIZE = len(BLOB)
WANTED = descriptor(BLOB)
OTHER = "other/app"
THREADS = 16
UPLOADS = f"/v2/{REPOSITORY}/blobs/uploads/.*"
BLOB_PATH = f"/v2/{REPOSITORY}/blobs/{WANTED.digest}"
IMAGE = images.image(seed=1)
MANIFEST = Descriptor(media_type=IMAGE.root.media_type, digest=Digest.parse(IMAGE.root.digest), size=IMAGE.root.size)
RAW = IMAGE.manifests[-1].raw


def strike(registry: FakeRegistry, method: str, action: Action, *, nth: int | None = 1, times: int = 1) -> None:
    registry.inject(Fault(method=method, path=UPLOADS, nth=nth, times=times, action=action))


def stored(registry: FakeRegistry, wanted: Descriptor = WANTED) -> bytes | None:
    return registry.blob(REPOSITORY, str(wanted.digest))


def upload(registries: Registries, registry: FakeRegistry, wanted: Descriptor = WANTED, content: bytes = BLOB) -> None:
    """Upload in chunks; the blob has three."""
    pusher(registries, registry, chunk_bytes=CHUNK).upload(wanted, Reader(content))


def refusal(act: Callable[[], object], *names: str) -> DistError:
    with pytest.raises(DistError) as caught:
        act()
    check_message(caught.value, *names)
    return caught.value


# Presence.


def test_has_finds_a_blob(registries: Registries, registry: FakeRegistry) -> None:
    target = pusher(registries, registry)
    assert not target.has(WANTED)
    registry.put_blob(REPOSITORY, BLOB)
    assert target.has(WANTED)
    assert list_requests(registry) == [f"HEAD {BLOB_PATH}"] * 2


@pytest.mark.parametrize("image", [IMAGE, images.index([IMAGE])], ids=["oci", "index"])
def test_has_finds_a_manifest(registries: Registries, registry: FakeRegistry, image: images.BuiltImage) -> None:
    wanted = descriptor(image.manifests[-1].raw, image.root.media_type)
    assert not pusher(registries, registry).has(wanted)
    images.load(registry, REPOSITORY, image)
    assert pusher(registries, registry).has(wanted)
    assert list_requests(registry) == [f"HEAD /v2/{REPOSITORY}/manifests/{wanted.digest}"] * 2


@pytest.mark.parametrize("status", [403, 405, 501])
@pytest.mark.parametrize("there", [True, False])
def test_has_uses_get_if_head_is_refused(registries: Registries, registry: FakeRegistry, status: int, *, there: bool) -> None:
    registry.inject(Fault(method="HEAD", nth=None, action=Answer(status)))
    big = BLOB * 100
    if there:
        registry.put_blob(REPOSITORY, big)
    assert pusher(registries, registry).has(descriptor(big)) is there
    head, get = registry.requests
    assert (head.method, get.method) == ("HEAD", "GET")
    assert get.sent < len(big)


def test_the_body_of_a_refused_get_has_the_reason(registries: Registries, registry: FakeRegistry) -> None:
    body = b'{"errors": [{"code": "DENIED", "message": "not for you"}]}'
    for method in ("HEAD", "GET"):
        registry.inject(Fault(method=method, action=Answer(403, (), body)))
    error = refusal(lambda: pusher(registries, registry).has(WANTED), str(WANTED.digest), "DENIED: not for you")
    assert isinstance(error, Denied)


def test_has_rejects_another_size(registries: Registries, registry: FakeRegistry) -> None:
    registry.put_blob(REPOSITORY, BLOB)
    wanted = replace(WANTED, size=SIZE + 1)
    error = refusal(lambda: pusher(registries, registry).has(wanted), str(SIZE), str(SIZE + 1), registry.host)
    assert isinstance(error, Corrupt)


def test_has_rejects_another_digest(registries: Registries, registry: FakeRegistry) -> None:
    registry.put_blob(REPOSITORY, BLOB)
    registry.inject(Fault(method="HEAD", action=WithHeaders((("Docker-Content-Digest", f"sha256:{'0' * 64}"),))))
    assert isinstance(refusal(lambda: pusher(registries, registry).has(WANTED), str(WANTED.digest)), Corrupt)


def test_has_accepts_a_response_without_length(registries: Registries, registry: FakeRegistry) -> None:
    registry.put_blob(REPOSITORY, BLOB)
    registry.inject(Fault(method="HEAD", action=WithoutHeaders(("Content-Length", "Docker-Content-Digest"))))
    assert pusher(registries, registry).has(WANTED)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_has_raises_an_error_if_the_registry_fails(registries: Registries, registry: FakeRegistry, status: int) -> None:
    registry.inject(Fault(method="HEAD", action=Answer(status)))
    assert isinstance(refusal(lambda: pusher(registries, registry).has(WANTED)), Unavailable)


# Mounting.


def test_a_blob_is_mounted_from_another_repository(registries: Registries, registry: FakeRegistry) -> None:
    registry.put_blob(OTHER, BLOB)
    assert pusher(registries, registry).mount(WANTED, source=OTHER)
    assert stored(registry) == BLOB
    (post,) = registry.requests
    assert (post.method, post.query) == ("POST", f"mount=sha256%3A{WANTED.digest.hex}&from=other%2Fapp")


def test_a_blob_is_mounted_from_a_repository_of_the_registrys_choice(registries: Registries) -> None:
    with FakeRegistry(mounts="any") as registry:
        registry.put_blob(OTHER, BLOB)
        assert pusher(registries, registry).mount(WANTED)
        assert stored(registry) == BLOB
        assert registry.requests[0].query == f"mount=sha256%3A{WANTED.digest.hex}"


def test_a_blob_that_is_not_mounted_is_uploaded_in_the_session_that_the_mount_opened(
    registries: Registries, registry: FakeRegistry
) -> None:
    target = pusher(registries, registry)
    assert not target.mount(WANTED, source=OTHER)
    target.upload(WANTED, Reader(BLOB))
    assert stored(registry) == BLOB
    assert shape(registry) == ["POST", "PUT"]
    assert registry.uploads.open == 0


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405])
def test_a_refused_mount_returns_false(registries: Registries, registry: FakeRegistry, status: int) -> None:
    registry.put_blob(OTHER, BLOB)
    strike(registry, "POST", Refuse(status))
    target = pusher(registries, registry)
    assert not target.mount(WANTED, source=OTHER)
    target.upload(WANTED, Reader(BLOB))
    assert stored(registry) == BLOB
    assert shape(registry) == ["POST", "POST", "PUT"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failed_mount_raises_an_error(registries: Registries, registry: FakeRegistry, status: int) -> None:
    strike(registry, "POST", Answer(status))
    assert isinstance(refusal(lambda: pusher(registries, registry).mount(WANTED, source=OTHER)), Unavailable)


def test_an_expired_session_is_replaced(registries: Registries, registry: FakeRegistry) -> None:
    target = pusher(registries, registry)
    assert not target.mount(WANTED, source=OTHER)
    registry.uploads.forget()
    target.upload(WANTED, Reader(BLOB))
    assert stored(registry) == BLOB
    assert shape(registry) == ["POST", "PUT", "HEAD", "POST", "PUT"]


# Uploading at once.


@pytest.mark.parametrize("size", [0, 1, 1000, SIZE])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_small_blob_is_uploaded_in_one_request(
    registries: Registries, registry: FakeRegistry, size: int, algorithm: str
) -> None:
    content = BLOB[:size]
    wanted = descriptor(content, algorithm=algorithm)
    pusher(registries, registry).upload(wanted, Reader(content))
    assert stored(registry, wanted) == content
    post, put = registry.requests
    assert (post.method, put.method) == ("POST", "PUT")
    assert post.headers["content-length"] == "0"
    assert put.headers["content-length"] == str(size) == str(put.received)
    assert put.headers["content-type"] == "application/octet-stream"
    assert put.query.endswith(f"&digest={wanted.digest}")
    assert "transfer-encoding" not in put.headers
    assert registry.connections == 1


def test_chunks_can_be_disabled(registries: Registries, registry: FakeRegistry) -> None:
    pusher(registries, registry, chunked=False, chunk_bytes=CHUNK).upload(WANTED, Reader(BLOB))
    assert shape(registry) == ["POST", "PUT"]


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_every_success_status_is_accepted(registries: Registries, registry: FakeRegistry, status: int) -> None:
    strike(registry, "PUT", Answer(status))
    upload(registries, registry)
    assert stored(registry) == BLOB


@pytest.mark.parametrize("status", [400, 403, 413, 500, 507])
def test_a_rejected_session_is_reported(registries: Registries, registry: FakeRegistry, status: int) -> None:
    body = b'{"errors": [{"code": "QUOTA", "message": "your quota of 5 GB is full"}]}'
    strike(registry, "PUT", Answer(status, (), body))
    target = pusher(registries, registry)
    messages = (str(WANTED.digest), registry.host, str(status), "your quota of 5 GB")
    error = refusal(lambda: target.upload(WANTED, Reader(BLOB)), *messages)
    assert "proxy" not in str(error)
    assert isinstance(error, {403: Denied, 500: Unavailable, 507: Unavailable}.get(status, InvalidInput))
    assert shape(registry) == ["POST", "PUT"]


@pytest.mark.parametrize("chunk_bytes", [CHUNK, 2 * SIZE])
def test_a_413_of_a_proxy_names_the_remedy(registries: Registries, registry: FakeRegistry, chunk_bytes: int) -> None:
    for method in ("PATCH", "PUT"):
        strike(registry, method, Answer(413, (), b"<html>413 Request Entity Too Large</html>"), nth=None)
    target = pusher(registries, registry, chunk_bytes=chunk_bytes)
    message = f"raise its limit to {size(chunk_bytes)} (nginx: client_max_body_size)"
    error = refusal(lambda: target.upload(WANTED, Reader(BLOB)), str(WANTED.digest), registry.host, "413", message)
    assert isinstance(error, InvalidInput)


MIB = 2**20
BIG = bytes(range(256)) * (36 * MIB // 256)


@pytest.mark.parametrize(
    ("limit", "sent"),
    [
        (20_000_000, ["0", str(36 * MIB), "0", *[str(16 * MIB)] * 2, str(4 * MIB), "0"]),
        (5_000_000, ["0", str(36 * MIB), "0", str(16 * MIB), "0", *[str(4 * MIB)] * 9, "0"]),
    ],
)
def test_requests_that_are_too_large_become_smaller_for_the_whole_run(
    registries: Registries, limit: int, sent: list[str]
) -> None:
    other = BIG[1:]
    with FakeRegistry(max_request_bytes=limit) as registry:
        registries.open_target(reference(registry, "")).upload(descriptor(BIG), Reader(BIG))
        assert registry.blob(REPOSITORY, str(descriptor(BIG).digest)) == BIG
        lengths = [one.headers["content-length"] for one in registry.requests]
        assert lengths == sent
        elsewhere = registries.open_target(Reference.parse(f"{registry.host}/other/app:1"))
        elsewhere.upload(descriptor(other), Reader(other))
        assert registry.blob("other/app", str(descriptor(other).digest)) == other
        more = [one.headers["content-length"] for one in registry.requests][len(lengths) :]
        assert (more[0], max(map(int, more)) <= limit, more.count("0")) == ("0", True, 2)


def test_a_limit_below_the_smallest_chunk_is_reported(registries: Registries) -> None:
    with FakeRegistry(max_request_bytes=1_000_000) as registry:
        target = registries.open_target(reference(registry, ""))
        message = f"raise its limit to {size(4 * MIB)} (nginx: client_max_body_size)"
        refusal(lambda: target.upload(descriptor(BIG), Reader(BIG)), "413", message)


@pytest.mark.parametrize(
    ("settings", "methods"),
    [
        (HostSettings(chunk_bytes=150_000), ["POST", "PATCH", "PATCH", "PUT"]),
        (HostSettings(chunk_bytes=150_000, whole_bytes=SIZE), ["POST", "PUT"]),
        (HostSettings(chunk_bytes=150_000, whole_bytes=SIZE - 1), ["POST", "PATCH", "PATCH", "PUT"]),
        (HostSettings(chunk_bytes=150_000, whole_bytes=-1), ["POST", "PUT"]),
        (HostSettings(whole_bytes=1000), ["POST", "PATCH", "PUT"]),
    ],
)
def test_the_sizes_of_uploads_are_configurable(registry: FakeRegistry, settings: HostSettings, methods: list[str]) -> None:
    hosts = Hosts(named={registry.host: settings})
    with Registries(RegistrySettings(hosts=hosts), credentials=anonymous) as registries:
        registries.open_target(reference(registry, "")).upload(WANTED, Reader(BLOB))
    assert shape(registry) == methods
    assert stored(registry) == BLOB


@pytest.mark.parametrize("host", ["europe-west1-docker.pkg.dev", "gcr.io", "eu.gcr.io"])
def test_registries_of_google_get_no_chunks(registry: FakeRegistry, host: str) -> None:
    registry.names.add(host)
    strike(registry, "PATCH", Refuse(404), nth=None)
    settings = HostSettings(hostname=registry.host, chunk_bytes=CHUNK)
    with Registries(RegistrySettings(hosts=Hosts(named={host: settings})), credentials=anonymous) as registries:
        registries.open_target(Reference.parse(f"{host}/{REPOSITORY}:1")).upload(WANTED, Reader(BLOB))
    assert shape(registry) == ["POST", "PUT"]


def test_wrong_content_is_corrupt(registries: Registries, registry: FakeRegistry) -> None:
    error = refusal(lambda: upload(registries, registry, WANTED, bytes(SIZE)), str(WANTED.digest), "DIGEST_INVALID")
    assert isinstance(error, InvalidInput)
    assert stored(registry) is None


def test_a_contradicting_digest_header_is_corrupt(registries: Registries, registry: FakeRegistry) -> None:
    strike(registry, "PUT", WithHeaders((("Docker-Content-Digest", f"sha256:{'0' * 64}"),)))
    assert isinstance(refusal(lambda: upload(registries, registry), str(WANTED.digest), "0" * 64), Corrupt)


def test_a_digest_header_in_another_algorithm_is_accepted(registries: Registries, registry: FakeRegistry) -> None:
    strike(registry, "PUT", WithHeaders((("Docker-Content-Digest", f"sha512:{'0' * 128}"),)))
    upload(registries, registry)


@pytest.mark.parametrize("content", [b"", BLOB[:-1]])
@pytest.mark.parametrize("chunked", [True, False])
def test_content_that_ends_early_is_corrupt(
    registries: Registries, registry: FakeRegistry, content: bytes, *, chunked: bool
) -> None:
    target = pusher(registries, registry, chunked=chunked, chunk_bytes=CHUNK)
    error = refusal(lambda: target.upload(WANTED, Reader(content)), str(SIZE), str(len(content)))
    assert isinstance(error, Corrupt)
    assert stored(registry) is None


def test_errors_of_reading_the_content_are_raised(registries: Registries, registry: FakeRegistry) -> None:
    def read(_offset: int) -> Iterator[bytes]:
        yield BLOB[:1000]
        raise NotFound("no such blob in the store")

    target = pusher(registries, registry)
    with pytest.raises(NotFound, match="in the store"):
        target.upload(WANTED, read)
    target.upload(WANTED, Reader(BLOB))
    assert stored(registry) == BLOB


def test_a_rejected_upload_is_reported(registries: Registries, registry: FakeRegistry) -> None:
    strike(registry, "POST", Answer(400, (), b'{"errors": [{"code": "NAME_INVALID"}]}'))
    assert isinstance(refusal(lambda: upload(registries, registry), "NAME_INVALID", REPOSITORY), InvalidInput)


# Uploading in chunks.


def test_a_large_blob_is_uploaded_in_chunks(registries: Registries, registry: FakeRegistry) -> None:
    upload(registries, registry)
    assert stored(registry) == BLOB
    assert sent_ranges(registry) == ["0-99999", "100000-199999", f"200000-{SIZE - 1}"]
    assert shape(registry) == ["POST", "PATCH", "PATCH", "PATCH", "PUT"]
    *_, put = registry.requests
    assert (put.received, put.headers["content-length"]) == (0, "0")
    assert registry.connections == 1


@pytest.mark.parametrize(("minimum", "requests"), [(1000, 5), (150_000, 4), (SIZE - 1, 4), (SIZE, 2), (10**15, 2)])
def test_the_minimum_chunk_length_of_the_registry_is_used(registries: Registries, minimum: int, requests: int) -> None:
    with FakeRegistry(uploads=Uploads(min_chunk_bytes=minimum)) as registry:
        upload(registries, registry)
        assert stored(registry) == BLOB
        assert len(registry.requests) == requests
        assert all(one.received >= minimum for one in registry.find_requests("PATCH", ".*")[:-1])


def test_a_blob_is_uploaded_in_one_request_after_a_chunk_was_too_large(registries: Registries) -> None:
    # GHCR: 416, "exceeds the maximum permissible limit of 4.00MiB", although one PUT of everything is fine
    with FakeRegistry(uploads=Uploads(max_chunk_bytes=1000)) as registry:
        upload(registries, registry)
        assert stored(registry) == BLOB
        assert shape(registry) == ["POST", "PATCH", "HEAD", "POST", "PUT"]


def test_no_chunk_is_sent_after_the_registry_rejected_one(registries: Registries) -> None:
    with FakeRegistry(uploads=Uploads(max_chunk_bytes=1000)) as registry:
        target = pusher(registries, registry, chunk_bytes=CHUNK)
        target.upload(WANTED, Reader(BLOB))
        target.upload(descriptor(BLOB[1:]), Reader(BLOB[1:]))
        assert shape(registry) == ["POST", "PATCH", "HEAD", "POST", "PUT", "POST", "PUT"]


@pytest.mark.parametrize("status", [400, 404, 405, 416])
def test_a_registry_without_chunks_gets_whole_blobs(registries: Registries, registry: FakeRegistry, status: int) -> None:
    strike(registry, "PATCH", Refuse(status), nth=None)
    if status == 404:  # may be a session that is gone: so chunks are tried once more
        assert isinstance(refusal(lambda: upload(registries, registry)), NotFound)
        return
    upload(registries, registry)
    assert stored(registry) == BLOB
    assert shape(registry) == ["POST", "PATCH", "HEAD", "POST", "PUT"]


@pytest.mark.parametrize("action", [Drop(0), Drop(30_000), Drop(CHUNK), Refuse(500), Refuse(503), Answer(502)], ids=str)
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_an_interrupted_chunk_is_resumed(registries: Registries, registry: FakeRegistry, action: Action, nth: int) -> None:
    strike(registry, "PATCH", action, nth=nth)
    upload(registries, registry)
    assert stored(registry) == BLOB
    begins = [int(span.partition("-")[0]) for span in sent_ranges(registry)]
    assert begins == sorted(begins)
    assert sum(one.received for one in registry.find_requests("PATCH", UPLOADS)) == SIZE  # what arrived is not sent again
    assert shape(registry).count("GET") == 1


def test_the_offset_is_requested_after_a_stalled_response(registry: FakeRegistry) -> None:
    strike(registry, "PATCH", Silence(), nth=2)
    with Registries(HASTY, credentials=anonymous) as registries:
        upload(registries, registry)
    assert stored(registry) == BLOB
    assert (registry.find_requests("PATCH", UPLOADS)[1].status, "GET" in shape(registry)) == (0, True)
    assert sum(one.received for one in registry.find_requests("PATCH", UPLOADS)) == SIZE  # what arrived is not sent again


def test_an_interrupted_completion_is_repeated(registries: Registries, registry: FakeRegistry) -> None:
    strike(registry, "PUT", Refuse(503))
    upload(registries, registry)
    assert stored(registry) == BLOB
    assert shape(registry)[-3:] == ["PUT", "GET", "PUT"]


def test_a_completion_whose_response_was_lost_is_not_repeated(registries: Registries, registry: FakeRegistry) -> None:
    strike(registry, "PUT", Answer(504))
    upload(registries, registry)
    assert stored(registry) == BLOB
    assert shape(registry)[-3:] == ["PUT", "GET", "HEAD"]


def test_an_upload_without_progress_is_given_up(registries: Registries, registry: FakeRegistry) -> None:
    strike(registry, "PATCH", Drop(0), nth=2, times=100)
    assert isinstance(refusal(lambda: upload(registries, registry), str(WANTED.digest)), Unavailable)
    assert shape(registry) == ["POST", "PATCH", "PATCH", "GET", "PATCH", "GET", "PATCH"]


def test_an_upload_with_progress_goes_on(registries: Registries, registry: FakeRegistry) -> None:
    strike(registry, "PATCH", Drop(10_000), nth=None)
    upload(registries, registry)
    assert stored(registry) == BLOB
    assert shape(registry).count("PATCH") == 26


@pytest.mark.parametrize("answer", [Refuse(429), Refuse(503, (("Retry-After", "7"),))])
def test_an_upload_resumes_after_the_pause_that_the_registry_wants(registry: FakeRegistry, answer: Action) -> None:
    strike(registry, "PATCH", answer, nth=2)
    with httpx.Client(transport=Urllib3Transport(connect_timeout_s=10, read_timeout_s=10)) as client:  # which does not wait
        locator = f"{registry.host}/{REPOSITORY}"
        url = f"http://{registry.host}/v2/{REPOSITORY}"
        own = Repository(client, HostAuth(RegistryLogin(host=registry.host)), url=url, name=REPOSITORY, locator=locator)
        target = Pusher(own, RegistrySizes(chunk_bytes=CHUNK))
        assert isinstance(refusal(lambda: target.upload(WANTED, Reader(BLOB))), Unavailable)
        assert shape(registry) == ["POST", "PATCH", "PATCH"]
        target.upload(WANTED, Reader(BLOB))
    assert stored(registry) == BLOB
    assert shape(registry) == ["POST", "PATCH", "PATCH", "GET", "PATCH", "PATCH", "PUT"]
    assert sum(one.received for one in registry.find_requests("PATCH", UPLOADS)) == SIZE


@pytest.mark.parametrize("has_state", [True, False])
def test_an_upload_continues_at_the_offset_after_a_chunk_out_of_order(
    registries: Registries, registry: FakeRegistry, *, has_state: bool
) -> None:
    strike(registry, "PATCH", Drop(30_000), nth=2)
    strike(registry, "GET", WithHeaders((("Range", "0-99999"),)))  # a stale view: 130,000 are there
    if not has_state:
        strike(registry, "PATCH", WithoutHeaders(("Range",)), nth=3)
    upload(registries, registry)
    assert stored(registry) == BLOB
    expected = ["POST", "PATCH", "PATCH", "GET", "PATCH"] + ([] if has_state else ["GET"]) + ["PATCH", "PATCH", "PUT"]
    assert shape(registry) == expected
    assert sent_ranges(registry)[2:4] == ["100000-199999", "130000-229999"]


def test_a_registry_that_rejects_every_offset_is_given_up(registries: Registries, registry: FakeRegistry) -> None:
    strike(registry, "PATCH", Refuse(416, (("Range", "0-99"),)), nth=2, times=100)
    error = refusal(lambda: upload(registries, registry), "out of order")
    assert isinstance(error, Unavailable)
    assert shape(registry) == ["POST", "PATCH", "PATCH", "PATCH", "PATCH"]


def test_the_range_after_an_accepted_chunk_is_ignored(registries: Registries, registry: FakeRegistry) -> None:
    # ECR's stays where it was after the first chunk (aws/containers-roadmap#2831)
    strike(registry, "PATCH", WithHeaders((("Range", "0-99999"),)), nth=None)
    upload(registries, registry)
    assert stored(registry) == BLOB
    assert shape(registry) == ["POST", "PATCH", "PATCH", "PATCH", "PUT"]


@pytest.mark.parametrize("answer", [Answer(404), Answer(400), Answer(405), WithoutHeaders(("Range",))], ids=str)
def test_a_registry_that_reports_no_offset_gets_the_blob_again(
    registries: Registries, registry: FakeRegistry, answer: Action
) -> None:
    strike(registry, "PATCH", Drop(10), nth=2)
    strike(registry, "GET", answer)
    upload(registries, registry)
    assert stored(registry) == BLOB
    assert shape(registry)[3:6] == ["GET", "HEAD", "POST"]
    assert sent_ranges(registry)[2:] == ["0-99999", "100000-199999", f"200000-{SIZE - 1}"]


def test_an_offset_beyond_the_size_is_corrupt(registries: Registries, registry: FakeRegistry) -> None:
    strike(registry, "PATCH", Drop(10), nth=2)
    strike(registry, "GET", WithHeaders((("Range", f"0-{SIZE}"),)))
    assert isinstance(refusal(lambda: upload(registries, registry), str(SIZE + 1)), Corrupt)


def test_a_lost_session_is_restarted_once(registries: Registries, registry: FakeRegistry) -> None:
    strike(registry, "PATCH", Answer(404), nth=2)
    upload(registries, registry)
    assert stored(registry) == BLOB
    assert shape(registry) == ["POST", "PATCH", "PATCH", "HEAD", "POST", "PATCH", "PATCH", "PATCH", "PUT"]


def test_a_lost_session_is_not_restarted_twice(registries: Registries, registry: FakeRegistry) -> None:
    strike(registry, "PATCH", Refuse(404, (), b'{"errors": [{"code": "BLOB_UPLOAD_UNKNOWN"}]}'), nth=2, times=2)
    strike(registry, "PATCH", Refuse(404), nth=3, times=100)
    assert isinstance(refusal(lambda: upload(registries, registry), str(WANTED.digest)), NotFound)
    assert shape(registry).count("POST") == 2


def test_progress_is_reported_for_each_piece(registries: Registries, registry: FakeRegistry) -> None:
    strike(registry, "PATCH", Refuse(503), nth=2)
    heard: list[tuple[int, int]] = []
    target = pusher(registries, registry, chunk_bytes=CHUNK)
    target.upload(WANTED, Reader(BLOB), observer=lambda offset, gained: heard.append((offset, gained)))
    assert heard[-1][0] == SIZE
    assert max(gained for _, gained in heard) <= CHUNK
    assert sum(gained for _, gained in heard) >= SIZE


def test_large_pieces_are_split_for_slow_connections(registries: Registries, registry: FakeRegistry) -> None:
    heard: list[int] = []
    pusher(registries, registry).upload(WANTED, lambda _: iter([BLOB]), observer=lambda _, gained: heard.append(gained))
    assert heard == [128 * 1024, SIZE - 128 * 1024]
    assert stored(registry) == BLOB


# Locations and redirects of uploads.


@pytest.mark.parametrize("chunk_bytes", [CHUNK, SIZE])
def test_an_absolute_location_is_followed(registries: Registries, registry: FakeRegistry, chunk_bytes: int) -> None:
    where = registry.uploads.begin(REPOSITORY).header("Location")
    strike(registry, "POST", WithHeaders((("Location", f"http://{registry.host}{where}&x=%2F%3d+%20;y"),)))
    pusher(registries, registry, chunk_bytes=chunk_bytes).upload(WANTED, Reader(BLOB))
    assert stored(registry) == BLOB
    first = registry.requests[1]
    assert first.query.partition("&")[2].removesuffix(f"&digest={WANTED.digest}") == "x=%2F%3D+%20;y"


@pytest.mark.parametrize("chunk_bytes", [CHUNK, SIZE])
def test_a_location_at_another_server_gets_the_bytes_without_credentials(other: FakeRegistry, chunk_bytes: int) -> None:
    with (
        FakeRegistry(auth=Basic("me", "secret")) as guarded,
        Registries(HASTY, credentials=lambda *_: user("me", "secret")) as registries,
    ):
        where = other.uploads.begin(REPOSITORY).header("Location")
        strike(guarded, "POST", WithHeaders((("Location", f"http://{other.host}{where}"),)))
        pusher(registries, guarded, chunk_bytes=chunk_bytes).upload(WANTED, Reader(BLOB))
        assert stored(other) == BLOB
        assert [one.status for one in guarded.requests] == [401, 202]
        assert all("authorization" not in one.headers for one in other.requests)


def test_a_location_at_another_server_never_gets_credentials(registry: FakeRegistry) -> None:
    with (
        FakeRegistry(auth=Basic("me", "secret")) as elsewhere,
        Registries(HASTY, credentials=lambda *_: user("me", "secret")) as registries,
    ):
        where = elsewhere.uploads.begin(REPOSITORY).header("Location")
        strike(registry, "POST", WithHeaders((("Location", f"http://{elsewhere.host}{where}"),)))
        assert isinstance(refusal(lambda: upload(registries, registry), elsewhere.host), Denied)
        assert all("authorization" not in one.headers for one in elsewhere.requests)


@pytest.mark.parametrize("location", [None, "ftp://x/", "http://[::1/", "file:///etc/passwd"])
def test_an_invalid_location_is_an_error(registries: Registries, registry: FakeRegistry, location: str | None) -> None:
    strike(registry, "POST", WithHeaders((("Location", location),)) if location else WithoutHeaders(("Location",)))
    assert isinstance(refusal(lambda: upload(registries, registry), str(WANTED.digest), "Location"), Unavailable)


@pytest.mark.parametrize("status", [307, 308])
def test_a_redirected_upload_is_sent_again(
    registries: Registries, registry: FakeRegistry, other: FakeRegistry, status: int
) -> None:
    where = other.uploads.begin(REPOSITORY).header("Location")
    strike(registry, "PUT", Redirect(f"http://{other.host}{where}&digest={WANTED.digest}", status))
    pusher(registries, registry).upload(WANTED, Reader(BLOB))
    assert stored(other) == BLOB


@pytest.mark.parametrize("status", [302, 303])
def test_a_redirect_that_turns_a_write_into_get_is_an_error(
    registries: Registries, registry: FakeRegistry, other: FakeRegistry, status: int
) -> None:
    other.put_blob(REPOSITORY, BLOB)
    strike(registry, "PUT", Redirect(f"http://{other.host}{BLOB_PATH}", status))
    target = pusher(registries, registry)
    error = refusal(lambda: target.upload(WANTED, Reader(BLOB)), str(WANTED.digest), "redirect", other.host)
    assert isinstance(error, Unsupported)


# By many at once.


def test_many_uploads_run_concurrently(registries: Registries) -> None:
    contents = [bytes([number]) * (CHUNK + number) for number in range(THREADS)]
    with FakeRegistry(auth=Bearer()) as registry:
        target = pusher(registries, registry, chunk_bytes=CHUNK // 2)
        registry.inject(Fault(method="PATCH", path=UPLOADS, nth=10, times=3, action=Drop(5)))
        with ThreadPoolExecutor(THREADS) as threads:
            for done in [threads.submit(target.upload, descriptor(content), Reader(content)) for content in contents]:
                done.result(timeout=PATIENCE_S)
        assert [stored(registry, descriptor(content)) for content in contents] == contents
        assert len(registry.find_requests("GET", "/token")) == 1
        assert registry.uploads.open == 0


# Manifests.


@pytest.fixture
def children(registry: FakeRegistry) -> None:
    for content in IMAGE.blobs.values():
        registry.put_blob(REPOSITORY, content)


@pytest.mark.usefixtures("children")
@pytest.mark.parametrize("tag", [None, "v1"])
def test_a_manifest_is_pushed_by_digest_and_tag(registries: Registries, registry: FakeRegistry, tag: str | None) -> None:
    assert pusher(registries, registry).put(RAW, MANIFEST, tag=tag) is None
    assert registry.manifest(REPOSITORY, tag or str(MANIFEST.digest)) == (MANIFEST.media_type, RAW)
    (put,) = registry.requests
    assert put.path == f"/v2/{REPOSITORY}/manifests/{tag or MANIFEST.digest}"
    assert put.headers["content-type"] == MANIFEST.media_type


@pytest.mark.usefixtures("children")
@pytest.mark.parametrize("noted", [True, False])
def test_put_returns_whether_the_registry_lists_the_referrer(registries: Registries, *, noted: bool) -> None:
    artifact = images.artifact(1, subject=IMAGE)
    with FakeRegistry(referrers=noted) as registry:
        for content in artifact.blobs.values():
            registry.put_blob(REPOSITORY, content)
        raw = artifact.manifests[-1].raw
        subject = pusher(registries, registry).put(raw, descriptor(raw, artifact.root.media_type))
        assert subject == (Digest.parse(IMAGE.root.digest) if noted else None)


def test_a_missing_child_is_reported(registries: Registries, registry: FakeRegistry) -> None:
    error = refusal(lambda: pusher(registries, registry).put(RAW, MANIFEST), str(MANIFEST.digest), "MANIFEST_BLOB_UNKNOWN")
    assert isinstance(error, NotFound)


@pytest.mark.parametrize(
    ("codes", "kind"),
    [
        (("DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN"), Unavailable),
        (("DIGEST_INVALID",), InvalidInput),
        (("MANIFEST_BLOB_UNKNOWN",), InvalidInput),
    ],
    ids=str,
)
def test_a_manifest_rejected_while_its_blob_is_pushed_again_is_retryable(
    registries: Registries, registry: FakeRegistry, codes: tuple[str, ...], kind: type[DistError]
) -> None:
    body = json.dumps({"errors": [{"code": code, "message": ""} for code in codes]}).encode()
    registry.inject(Fault(method="PUT", action=Answer(400, (("Content-Type", "application/json"),), body)))
    error = refusal(lambda: pusher(registries, registry).put(RAW, MANIFEST), str(MANIFEST.digest), *codes)
    assert isinstance(error, kind)


@pytest.mark.usefixtures("children")
def test_a_manifest_that_the_registry_changed_is_corrupt(registries: Registries, registry: FakeRegistry) -> None:
    registry.inject(Fault(method="PUT", action=WithHeaders((("Docker-Content-Digest", f"sha256:{'0' * 64}"),))))
    assert isinstance(refusal(lambda: pusher(registries, registry).put(RAW, MANIFEST, tag="v1"), "0" * 64), Corrupt)


def test_a_manifest_above_the_limit_is_reported(registries: Registries, registry: FakeRegistry) -> None:
    raw = RAW + b" " * (4 * 1024 * 1024)
    wanted = descriptor(raw, MANIFEST.media_type)
    error = refusal(lambda: pusher(registries, registry).put(raw, wanted), str(wanted.digest), str(len(raw)), "4194304", "413")
    assert isinstance(error, InvalidInput)


@pytest.mark.parametrize("raw", [b"", RAW[:-1], RAW + b" ", bytes(len(RAW))])
def test_bytes_that_do_not_match_the_descriptor_are_not_sent(
    registries: Registries, registry: FakeRegistry, raw: bytes
) -> None:
    assert isinstance(refusal(lambda: pusher(registries, registry).put(raw, MANIFEST), str(MANIFEST.digest)), Corrupt)
    assert registry.requests == []


@pytest.mark.parametrize("tag", ["", "a/b", "../x", "a?b", "a#b", "a@b", "a b", "-a", "x" * 129, "a:b"])
def test_an_invalid_tag_is_not_sent(registries: Registries, registry: FakeRegistry, tag: str) -> None:
    assert isinstance(refusal(lambda: pusher(registries, registry).put(RAW, MANIFEST, tag=tag)), InvalidInput)
    assert registry.requests == []


@pytest.mark.parametrize("media_type", ["text/plain\r\nX-Evil: yes", "caf\xe9/au-lait", "*", "", "a/b c\x00"])
def test_an_invalid_media_type_is_not_sent(registries: Registries, registry: FakeRegistry, media_type: str) -> None:
    wanted = replace(MANIFEST, media_type=media_type)
    assert isinstance(refusal(lambda: pusher(registries, registry).put(RAW, wanted)), InvalidInput)
    assert not pusher(registries, registry).has(wanted)
    assert [one.method for one in registry.requests] == ["HEAD"]
