import random
import re
import socket
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from prefect_dist.ocispec import Descriptor
from prefect_dist.ocispec.errors import Corrupt, DistError, InvalidInput, NotFound, Unavailable, Unsupported
from prefect_dist.remotes import Hosts, HostSettings, Registries, RegistrySettings
from prefect_dist.storage import ContentStore, open_store
from prefect_dist.transfer import content as transfer
from prefect_dist.transfer.events import ignore_event
from tests import images
from tests.fakes.faults import (
    Action,
    Answer,
    Cut,
    Fault,
    Flip,
    IgnoreRange,
    Lengthen,
    NoContentRange,
    Replace,
    Reset,
    ShiftRange,
    Shorten,
    ShortRange,
    Stall,
    WithHeaders,
    WithoutHeaders,
)
from tests.fakes.registry import FakeRegistry
from tests.fakes.scripted import Scripted
from tests.peers.processes import free_port
from tests.remotes.asking import (
    BLOB,
    HASTY,
    REPOSITORY,
    anonymous,
    check_message,
    descriptor,
    fetcher,
    list_requests,
    ranges,
    read,
    read_until_error,
    reference,
)

SIZE = len(BLOB)
WANTED = descriptor(BLOB)
BLOB_PATH = f"/v2/{REPOSITORY}/blobs/{WANTED.digest}"
UNKNOWN_TYPE = "application/vnd.example.thing"
THREADS = 32


@pytest.fixture(autouse=True)
def _blob(registry: FakeRegistry) -> None:
    registry.put_blob(REPOSITORY, BLOB)


def strike(registry: FakeRegistry, *actions: Action) -> None:
    """Let each action strike one GET of the blob, in order."""
    for nth, action in enumerate(actions, 1):
        registry.inject(Fault(path=BLOB_PATH, nth=nth, action=action))


def strike_one(registry: FakeRegistry, *actions: Action) -> None:
    """Let all actions strike the first GET of the blob."""
    for action in actions:
        registry.inject(Fault(path=BLOB_PATH, action=action))


def from_byte(offset: int) -> str:
    return f"bytes={offset}-{SIZE - 1}"


def refusal(registries: Registries, registry: FakeRegistry, *, offset: int = 0) -> DistError:
    _, error = read_until_error(fetcher(registries, registry), WANTED, offset=offset)
    assert error is not None
    check_message(error, f"{registry.host}/{REPOSITORY}", str(WANTED.digest))
    return error


# Endpoints.


@pytest.mark.parametrize("media_type", [images.OCI_LAYER, images.OCI_CONFIG, images.DOCKER_LAYER, UNKNOWN_TYPE])
def test_blobs_are_requested_from_the_blobs_endpoint(registries: Registries, registry: FakeRegistry, media_type: str) -> None:
    assert read(fetcher(registries, registry), descriptor(BLOB, media_type)) == BLOB
    (get,) = registry.requests
    assert get.path == BLOB_PATH
    assert get.headers["accept"] == f"{media_type}, */*"
    assert "range" not in get.headers


@pytest.mark.parametrize("image", [images.image(seed=1), images.index([images.image(seed=1)])], ids=["oci", "index"])
def test_manifests_are_requested_from_the_manifests_endpoint(
    registries: Registries, registry: FakeRegistry, image: images.BuiltImage
) -> None:
    images.load(registry, REPOSITORY, image)
    raw = image.manifests[-1].raw
    assert read(fetcher(registries, registry), descriptor(raw, image.root.media_type)) == raw
    assert list_requests(registry) == [f"GET /v2/{REPOSITORY}/manifests/{image.root.digest}"]


def test_a_manifest_that_was_pushed_as_a_blob_is_found(registries: Registries, registry: FakeRegistry) -> None:
    wanted = descriptor(BLOB, images.OCI_MANIFEST)
    assert read(fetcher(registries, registry), wanted) == BLOB
    assert list_requests(registry) == [f"GET /v2/{REPOSITORY}/manifests/{WANTED.digest}", f"GET {BLOB_PATH}"]


def test_content_of_an_unknown_type_that_was_pushed_as_a_manifest_is_found(
    registries: Registries, registry: FakeRegistry
) -> None:
    raw = b'{"mediaType": "application/vnd.example.thing"}'
    digest = registry.put_manifest(REPOSITORY, raw, UNKNOWN_TYPE)
    assert read(fetcher(registries, registry), descriptor(raw, UNKNOWN_TYPE)) == raw
    assert list_requests(registry) == [f"GET /v2/{REPOSITORY}/blobs/{digest}", f"GET /v2/{REPOSITORY}/manifests/{digest}"]


def test_a_missing_layer_is_not_requested_as_a_manifest(registries: Registries, registry: FakeRegistry) -> None:
    missing = descriptor(b"nowhere")
    _, error = read_until_error(fetcher(registries, registry), missing)
    assert isinstance(error, NotFound)
    check_message(error, str(missing), "BLOB_UNKNOWN")
    assert list_requests(registry) == [f"GET /v2/{REPOSITORY}/blobs/{missing.digest}"]


@pytest.mark.parametrize("status", [400, 401, 403, 429, 500, 503])
def test_the_other_endpoint_is_tried_only_after_a_404(registries: Registries, registry: FakeRegistry, status: int) -> None:
    registry.inject(Fault(nth=None, action=Answer(status)))
    _, error = read_until_error(fetcher(registries, registry), descriptor(BLOB, UNKNOWN_TYPE))
    assert error is not None
    assert list_requests(registry) == [f"GET {BLOB_PATH}"]


@pytest.mark.parametrize("media_type", ["text/plain\r\nX-Evil: yes", "caf\xe9/au-lait", "*", "", "a/b c\x00", f"a/{'b' * 128}"])
def test_an_invalid_media_type_is_not_sent(registries: Registries, registry: FakeRegistry, media_type: str) -> None:
    assert read(fetcher(registries, registry), descriptor(BLOB, media_type)) == BLOB
    assert registry.requests[0].headers["accept"] == "*/*"


def test_a_manifest_above_the_limit_is_refused_without_a_request(registries: Registries, registry: FakeRegistry) -> None:
    wanted = Descriptor(media_type=images.OCI_MANIFEST, digest=WANTED.digest, size=4 * 1024 * 1024 + 1)
    with pytest.raises(Unsupported) as caught:
        fetcher(registries, registry).fetch(wanted)
    check_message(caught.value, str(wanted))
    assert registry.requests == []


# Threads.


def test_one_fetcher_reads_hundreds_of_blobs(registries: Registries, registry: FakeRegistry) -> None:
    # One base URL, changed by all threads, gave them each other's blobs: containerd 2e0c92b168.
    blobs = [random.Random(seed).randbytes(seed * 37 + 1) for seed in range(400)]
    for blob in blobs:
        registry.put_blob(REPOSITORY, blob)
    source = fetcher(registries, registry)
    wanted = [descriptor(blob) for blob in random.Random(0).sample(blobs, len(blobs))]
    with ThreadPoolExecutor(THREADS) as threads:
        got = list(threads.map(lambda one: sha256(read(source, one)).hexdigest(), wanted))
    assert got == [one.digest.hex for one in wanted]
    assert Counter(list_requests(registry)) == Counter(f"GET /v2/{REPOSITORY}/blobs/{one.digest}" for one in wanted)
    assert registry.connections <= THREADS


# Resuming inside one attempt.


@pytest.mark.parametrize("offset", [0, 1, 1000, 70_000, SIZE - 1])
def test_a_cut_transfer_is_resumed_at_its_last_byte(registries: Registries, registry: FakeRegistry, offset: int) -> None:
    strike(registry, Cut(offset))
    assert read(fetcher(registries, registry), WANTED) == BLOB
    assert ranges(registry) == [None, from_byte(offset) if offset else None]


def test_a_reset_transfer_is_resumed_at_its_last_byte(registries: Registries, registry: FakeRegistry) -> None:
    strike(registry, Reset(70_000))
    assert read(fetcher(registries, registry), WANTED) == BLOB
    (whole, rest) = ranges(registry)
    assert whole is None
    # a reset may throw away what was sent
    reached = re.fullmatch(rf"bytes=(\d+)-{SIZE - 1}", rest or f"bytes=0-{SIZE - 1}")
    assert reached is not None
    assert 0 <= int(reached[1]) <= 70_000


@pytest.mark.parametrize("offset", [1, 70_000, SIZE - 2])
def test_a_cut_transfer_from_an_offset_is_resumed(registries: Registries, registry: FakeRegistry, offset: int) -> None:
    strike(registry, Cut(1))
    assert read(fetcher(registries, registry), WANTED, offset=offset) == BLOB[offset:]
    assert ranges(registry) == [from_byte(offset), from_byte(offset + 1)]


def test_a_body_that_ends_early_without_content_length_is_resumed(registries: Registries, registry: FakeRegistry) -> None:
    strike_one(registry, Shorten(1000), WithoutHeaders(("Content-Length",)))
    assert read(fetcher(registries, registry), WANTED) == BLOB
    assert ranges(registry) == [None, from_byte(SIZE - 1000)]


def test_a_connection_that_gained_a_byte_is_followed_by_another(registries: Registries, registry: FakeRegistry) -> None:
    strike(registry, *[Cut(1000)] * 20)
    assert read(fetcher(registries, registry), WANTED) == BLOB
    assert ranges(registry) == [None, *(from_byte(1000 * gained) for gained in range(1, 21))]


def test_three_connections_without_a_new_byte_end_the_transfer(registries: Registries, registry: FakeRegistry) -> None:
    strike(registry, Cut(1000), *[Cut(0)] * 9)
    error = refusal(registries, registry)
    assert isinstance(error, Unavailable)
    assert ranges(registry) == [None, *[from_byte(1000)] * 3]


def test_three_connections_without_any_byte_end_the_transfer(registries: Registries, registry: FakeRegistry) -> None:
    strike(registry, *[Cut(0)] * 9)
    assert isinstance(refusal(registries, registry), Unavailable)
    assert ranges(registry) == [None] * 3


def test_only_successive_connections_without_a_new_byte_count(registries: Registries, registry: FakeRegistry) -> None:
    strike(registry, *[Cut(0), Cut(0), Cut(5)] * 3)
    assert read(fetcher(registries, registry), WANTED) == BLOB
    assert len(registry.requests) == 10


def test_a_complete_blob_causes_no_request(registries: Registries, registry: FakeRegistry) -> None:
    source = fetcher(registries, registry)
    assert read(source, WANTED, offset=SIZE) == b""
    assert read(source, descriptor(b"")) == b""
    assert registry.requests == []


def test_no_request_is_sent_before_the_first_byte_is_read(registries: Registries, registry: FakeRegistry) -> None:
    fetcher(registries, registry).fetch(WANTED)
    assert registry.requests == []


def test_a_manifest_is_resumed_without_a_range(registries: Registries, registry: FakeRegistry) -> None:
    image = images.image(seed=1)
    images.load(registry, REPOSITORY, image)
    wanted, raw = descriptor(image.manifests[-1].raw, images.OCI_MANIFEST), image.manifests[-1].raw
    registry.inject(Fault(path=".*/manifests/.*", action=Cut(100)))
    assert read(fetcher(registries, registry), wanted) == raw
    assert read(fetcher(registries, registry), wanted, offset=50) == raw[50:]
    assert ranges(registry) == [None, None, None]


# Servers that answer with something else.


@pytest.mark.parametrize("offset", [1, 70_000, SIZE - 1])
def test_a_whole_body_is_skipped_up_to_the_offset(registries: Registries, registry: FakeRegistry, offset: int) -> None:
    strike(registry, IgnoreRange())
    assert read(fetcher(registries, registry), WANTED, offset=offset) == BLOB[offset:]
    assert ranges(registry) == [from_byte(offset)]


@pytest.mark.parametrize("cut", [0, 500, 5000])
def test_a_break_after_a_whole_body_is_raised(registries: Registries, registry: FakeRegistry, cut: int) -> None:
    strike(registry, Cut(1000), IgnoreRange())
    registry.inject(Fault(path=BLOB_PATH, nth=2, action=Cut(cut)))
    arrived, error = read_until_error(fetcher(registries, registry), WANTED)
    assert isinstance(error, Unavailable)
    assert arrived == BLOB[: max(1000, cut)]
    assert ranges(registry) == [None, from_byte(1000)]


@pytest.mark.parametrize(
    "action",
    [
        ShiftRange(1),
        ShiftRange(-1),
        NoContentRange(),
        WithHeaders((("Content-Range", f"bytes 1000-{SIZE - 1}/{SIZE + 1}"),)),
        WithHeaders((("Content-Range", f"bytes {'1' * 5000}-{SIZE - 1}/{SIZE}"),)),
        WithHeaders((("Content-Range", "bytes */256000"),)),
        Shorten(1),
        Lengthen(1),
    ],
    ids=lambda action: str(action)[:60],
)
def test_a_range_other_than_requested_is_corrupt(registries: Registries, registry: FakeRegistry, action: Action) -> None:
    strike(registry, action)
    assert isinstance(refusal(registries, registry, offset=1000), Corrupt)
    assert ranges(registry) == [from_byte(1000)]


def test_a_content_range_without_total_is_accepted(registries: Registries, registry: FakeRegistry) -> None:
    strike(registry, WithHeaders((("Content-Range", f"bytes 1000-{SIZE - 1}/*"),)))
    assert read(fetcher(registries, registry), WANTED, offset=1000) == BLOB[1000:]


@pytest.mark.parametrize("most", [20_000, 100_000, SIZE - 1001])
def test_a_shorter_range_than_requested_is_continued_where_it_ended(
    registries: Registries, registry: FakeRegistry, most: int
) -> None:
    registry.inject(Fault(path=".*/blobs/.*", nth=None, action=ShortRange(most)))
    assert read(fetcher(registries, registry), WANTED, offset=1000) == BLOB[1000:]
    assert ranges(registry) == [from_byte(start) for start in range(1000, SIZE, most)]
    assert sum(one.sent for one in registry.requests) == SIZE - 1000


def test_a_shorter_range_that_breaks_off_is_continued_where_it_broke_off(
    registries: Registries, registry: FakeRegistry
) -> None:
    registry.inject(Fault(path=".*/blobs/.*", nth=None, action=ShortRange(100_000)))
    registry.inject(Fault(path=".*/blobs/.*", nth=2, action=Cut(30_000)))
    assert read(fetcher(registries, registry), WANTED, offset=1000) == BLOB[1000:]
    assert ranges(registry) == [from_byte(start) for start in (1000, 101_000, 131_000, 231_000)]


def test_many_tiny_ranges_end_the_transfer(registries: Registries, registry: FakeRegistry) -> None:
    registry.inject(Fault(path=".*/blobs/.*", nth=None, action=ShortRange(1)))
    arrived, error = read_until_error(fetcher(registries, registry), WANTED, offset=1000)
    assert isinstance(error, Unavailable)
    check_message(error, str(WANTED.digest), "sent less than 65536 bytes of each range; will resume")
    assert arrived == BLOB[1000:1016]
    assert len(registry.requests) == 16


def test_a_rejected_range_is_followed_by_one_request_without_range(registries: Registries, registry: FakeRegistry) -> None:
    strike(registry, Answer(416))
    assert read(fetcher(registries, registry), WANTED, offset=1000) == BLOB[1000:]
    assert ranges(registry) == [from_byte(1000), None]


def test_no_range_is_requested_after_one_was_rejected(registries: Registries, registry: FakeRegistry) -> None:
    strike(registry, Answer(416), Cut(2000))
    arrived, error = read_until_error(fetcher(registries, registry), WANTED, offset=1000)
    assert isinstance(error, Unavailable)
    assert arrived == BLOB[1000:2000]
    assert ranges(registry) == [from_byte(1000), None]


def test_a_416_without_a_requested_range_is_an_error(registries: Registries, registry: FakeRegistry) -> None:
    strike(registry, Answer(416), Answer(416))
    assert isinstance(refusal(registries, registry, offset=1000), InvalidInput)
    assert ranges(registry) == [from_byte(1000), None]


@pytest.mark.parametrize("action", [Lengthen(1), Shorten(1), Replace(b"<html>"), Answer(200)], ids=str)
def test_another_announced_length_is_corrupt(registries: Registries, registry: FakeRegistry, action: Action) -> None:
    strike(registry, action)
    arrived, error = read_until_error(fetcher(registries, registry), WANTED)
    assert isinstance(error, Corrupt)
    check_message(error, str(SIZE))
    assert (arrived, len(registry.requests)) == (b"", 1)


@pytest.mark.parametrize("more", [1, 1_000_000])
def test_bytes_beyond_the_size_are_never_yielded(registries: Registries, registry: FakeRegistry, more: int) -> None:
    strike_one(registry, Lengthen(more), WithoutHeaders(("Content-Length",)))
    arrived, error = read_until_error(fetcher(registries, registry), WANTED)
    assert isinstance(error, Corrupt)
    assert BLOB.startswith(arrived)


@pytest.mark.parametrize("status", [201, 204, 400, 404, 500, 503])
def test_the_body_of_another_status_is_not_content(registries: Registries, registry: FakeRegistry, status: int) -> None:
    # containerd 2e856be03: the right bytes, or as many, may be the page of an error
    strike(registry, Answer(status, (), BLOB))
    arrived, error = read_until_error(fetcher(registries, registry), WANTED)
    assert error is not None
    assert (arrived, len(registry.requests)) == (b"", 1)


def test_a_206_without_a_requested_range_is_checked(registries: Registries, registry: FakeRegistry) -> None:
    whole = (("Content-Range", f"bytes 0-{SIZE - 1}/{SIZE}"),)
    strike(registry, Answer(206, whole, BLOB), Answer(206, (), BLOB))
    assert read(fetcher(registries, registry), WANTED) == BLOB
    assert isinstance(refusal(registries, registry), Corrupt)


@pytest.mark.parametrize("coding", ["gzip", "zstd", "GZIP", "x" * 3000])
def test_a_body_with_a_content_coding_is_refused(registries: Registries, registry: FakeRegistry, coding: str) -> None:
    strike(registry, WithHeaders((("Content-Encoding", coding),)))
    arrived, error = read_until_error(fetcher(registries, registry), WANTED)
    assert isinstance(error, Unsupported)
    check_message(error, str(WANTED.digest), coding[:50].lower())
    assert arrived == b""


def test_the_content_coding_identity_is_accepted(registries: Registries, registry: FakeRegistry) -> None:
    strike(registry, WithHeaders((("Content-Encoding", "identity"),)))
    assert read(fetcher(registries, registry), WANTED) == BLOB


# Into a store.


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return open_store(str(tmp_path / "store"))


def blobs(store: ContentStore) -> Iterable[str]:
    return [str(info.digest) for info in store.walk()]


def test_a_flipped_byte_is_detected_and_not_stored(registries: Registries, registry: FakeRegistry, store: ContentStore) -> None:
    strike(registry, Flip(SIZE - 1))
    source = fetcher(registries, registry)
    with pytest.raises(Corrupt) as caught:
        transfer.fetch(store, source, WANTED, notify=ignore_event, pause=time.sleep)
    check_message(caught.value, str(WANTED.digest))
    assert blobs(store) == []
    assert not list(store.active())
    assert transfer.fetch(store, source, WANTED, notify=ignore_event, pause=time.sleep).transferred == SIZE
    assert blobs(store) == [str(WANTED.digest)]
    assert ranges(registry) == [None, None]


def test_received_bytes_are_kept_for_the_next_attempt(
    registries: Registries, registry: FakeRegistry, store: ContentStore
) -> None:
    strike(registry, Cut(70_000), Answer(503))
    source = fetcher(registries, registry)
    with pytest.raises(Unavailable):
        transfer.fetch(store, source, WANTED, notify=ignore_event, pause=time.sleep)
    assert blobs(store) == []
    assert transfer.fetch(store, source, WANTED, notify=ignore_event, pause=time.sleep).transferred == SIZE - 70_000
    assert transfer.fetch(store, source, WANTED, notify=ignore_event, pause=time.sleep).status == "existed"
    assert b"".join(store.chunks(WANTED.digest)) == BLOB
    assert ranges(registry) == [None, from_byte(70_000), from_byte(70_000)]


def stored(store: ContentStore, wanted: Descriptor, content: bytes) -> bool:
    """Return True if the store has exactly this content, and no partial ingest."""
    return (
        blobs(store) == [str(wanted.digest)] and not list(store.active()) and b"".join(store.chunks(wanted.digest)) == content
    )


def test_a_complete_ingest_is_committed_without_a_request(
    registries: Registries, registry: FakeRegistry, store: ContentStore
) -> None:
    # A process may end between the last byte and the commit; a range that begins at the end is answered with 416.
    with store.writer(f"layer-{WANTED.digest}", expected=WANTED.digest, total=SIZE) as writer:
        writer.write(BLOB)
    assert transfer.fetch(store, fetcher(registries, registry), WANTED, notify=ignore_event, pause=time.sleep).transferred == 0
    assert registry.requests == []
    assert stored(store, WANTED, BLOB)


def test_an_empty_blob_needs_no_request(registries: Registries, registry: FakeRegistry, store: ContentStore) -> None:
    source, empty = fetcher(registries, registry), descriptor(b"")
    assert transfer.fetch(store, source, empty, notify=ignore_event, pause=time.sleep).status == "fetched"
    assert stored(store, empty, b"")
    with pytest.raises(Corrupt):  # no size is no licence to have any digest
        transfer.fetch(store, source, replace(WANTED, size=0), notify=ignore_event, pause=time.sleep)
    assert registry.requests == []
    assert blobs(store) == [str(empty.digest)]


def test_a_sha512_digest_is_verified(registries: Registries, registry: FakeRegistry, store: ContentStore) -> None:
    registry.put_blob(REPOSITORY, BLOB, algorithm="sha512")
    wanted = descriptor(BLOB, algorithm="sha512")
    registry.inject(Fault(path=".*/sha512:.*", action=Flip(7)))
    source = fetcher(registries, registry)
    with pytest.raises(Corrupt) as caught:
        transfer.fetch(store, source, wanted, notify=ignore_event, pause=time.sleep)
    check_message(caught.value, str(wanted.digest))
    assert transfer.fetch(store, source, wanted, notify=ignore_event, pause=time.sleep).transferred == SIZE
    assert stored(store, wanted, BLOB)


def test_inline_data_is_used_and_checked(registries: Registries, registry: FakeRegistry, store: ContentStore) -> None:
    source, small = fetcher(registries, registry), descriptor(b"inline")
    with pytest.raises(Corrupt):
        transfer.fetch(store, source, replace(small, data=b"inlinE"), notify=ignore_event, pause=time.sleep)
    assert blobs(store) == []
    assert transfer.fetch(store, source, replace(small, data=b"inline"), notify=ignore_event, pause=time.sleep).transferred == 0
    assert stored(store, small, b"inline")
    assert registry.requests == []


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("size", [SIZE - 1, SIZE + 1])
def test_a_wrong_size_in_the_descriptor_is_corrupt(
    registries: Registries, registry: FakeRegistry, store: ContentStore, size: int, *, announced: bool
) -> None:
    if not announced:
        registry.inject(Fault(path=BLOB_PATH, nth=None, action=WithoutHeaders(("Content-Length",))))
    with pytest.raises(Corrupt if announced or size < SIZE else Unavailable) as caught:
        transfer.fetch(store, fetcher(registries, registry), replace(WANTED, size=size), notify=ignore_event, pause=time.sleep)
    check_message(caught.value, str(WANTED.digest), f"expected {size} bytes")
    assert blobs(store) == []
    assert len(registry.requests) <= 3


# Connections that fail.


@pytest.mark.parametrize("after", [0, 1000])
def test_a_stall_ends_after_the_read_timeout(registry: FakeRegistry, after: int) -> None:
    strike(registry, Stall(after), *[Stall(0)] * 9)
    with Registries(HASTY, credentials=anonymous) as registries:
        arrived, error = read_until_error(fetcher(registries, registry), WANTED)
    assert isinstance(error, Unavailable)
    check_message(error, f"layer {WANTED.digest}", registry.host, "no data received within the read timeout of 0.2 s")
    assert BLOB[:after].startswith(arrived)  # all of it, unless the machine is so busy that the head came late


def test_a_registry_that_never_answers_causes_a_read_timeout() -> None:
    with Scripted() as silent, Registries(HASTY, credentials=anonymous) as registries:
        with pytest.raises(Unavailable) as caught:
            registries.resolve(reference(silent.host))
        check_message(caught.value, silent.host, "no data received within the read timeout of 0.2 s")
    assert len(silent.heads) == 1


def test_a_refused_connection_is_unavailable(registries: Registries) -> None:
    host = f"127.0.0.1:{free_port()}"
    with pytest.raises(Unavailable) as caught:
        registries.resolve(reference(host))
    check_message(caught.value, host, "Connection refused")


def test_a_connection_that_takes_too_long_causes_a_connect_timeout(registry: FakeRegistry) -> None:
    # 192.0.2.0/24 is reserved for documentation, so no server answers. Some networks refuse the connection at once.
    settings = RegistrySettings(connect_timeout_s=0.1, read_timeout_s=0.1)
    with Registries(settings, credentials=anonymous) as registries:
        registry.inject(Fault(nth=None, action=Answer(307, (("Location", "http://192.0.2.1/"),))))
        error = refusal(registries, registry)
    assert isinstance(error, Unavailable)


def test_a_tls_handshake_without_end_causes_a_connect_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts the connection, and no server answers
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        hosts = Hosts(named={host: HostSettings(scheme="https")})
        settings = RegistrySettings(hosts=hosts, connect_timeout_s=0.2, read_timeout_s=10)
        with Registries(settings, credentials=anonymous) as registries, pytest.raises(Unavailable) as caught:
            registries.resolve(reference(host))
    check_message(caught.value, host, "no connection within the connect timeout of 0.2 s")


@pytest.mark.parametrize("host", ["nosuch.invalid", "a" * 64 + ".invalid"])
def test_an_unknown_host_is_not_found(registries: Registries, host: str) -> None:
    with pytest.raises(DistError) as caught:
        registries.resolve(reference(host))
    assert isinstance(caught.value, NotFound | Unavailable)  # a resolver may say "no such name" or "try again"
    check_message(caught.value, host)
