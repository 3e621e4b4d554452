"""Registry mirrors: tried in order, replaced by the next registry after a failure, and verified."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_dist.ocispec.errors import Corrupt, Denied, DistError, NotFound, Unavailable
from prefect_dist.remotes import Exchange, Hosts, HostSettings, Registries, RegistrySettings
from prefect_dist.remotes.errors import RegistryDenied, RegistryNotFound, RegistryUnavailable
from prefect_dist.remotes.mirrors import most_informative
from prefect_dist.storage import open_store
from prefect_dist.transfer import content as transfer
from prefect_dist.transfer.events import ignore_event
from tests import images
from tests.fakes.faults import Answer, Cut, Fault, Flip
from tests.fakes.registry import FakeRegistry
from tests.peers.processes import free_port
from tests.remotes.asking import (
    BLOB,
    REPOSITORY,
    anonymous,
    check_message,
    descriptor,
    fetcher,
    list_requests,
    ranges,
    read,
    reference,
)

IMAGE = images.image(seed=1)
BUSY = Answer(503, (), b"{}")


def put(registry: FakeRegistry) -> None:
    root = IMAGE.manifests[-1]
    registry.put_manifest(REPOSITORY, root.raw, root.media_type, tag="v1")
    registry.put_blob(REPOSITORY, BLOB)


@pytest.fixture
def mirror(other: FakeRegistry) -> FakeRegistry:
    return other


@pytest.fixture
def mirrored(registry: FakeRegistry, mirror: FakeRegistry) -> Iterator[Registries]:
    put(registry)
    hosts = Hosts(named={registry.host: HostSettings(mirrors=(mirror.host,))})
    with Registries(RegistrySettings(hosts=hosts, connect_timeout_s=10, read_timeout_s=10), credentials=anonymous) as found:
        yield found


def test_content_of_a_mirror_is_not_requested_from_the_registry(
    mirrored: Registries, registry: FakeRegistry, mirror: FakeRegistry
) -> None:
    put(mirror)
    found = mirrored.resolve(reference(registry))
    assert (found.name, str(found.descriptor.digest)) == (f"{registry.host}/{REPOSITORY}:v1", IMAGE.root.digest)
    assert read(fetcher(mirrored, registry), descriptor(BLOB)) == BLOB
    assert list_requests(registry) == []
    assert list_requests(mirror) == [
        f"HEAD /v2/{REPOSITORY}/manifests/v1",
        f"GET /v2/{REPOSITORY}/blobs/{descriptor(BLOB).digest}",
    ]


def test_content_that_a_mirror_lacks_comes_from_the_registry(
    mirrored: Registries, registry: FakeRegistry, mirror: FakeRegistry
) -> None:
    assert str(mirrored.resolve(reference(registry)).descriptor.digest) == IMAGE.root.digest
    assert read(fetcher(mirrored, registry), descriptor(BLOB)) == BLOB
    assert len(list_requests(registry)) == len(list_requests(mirror)) == 2


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_a_failing_mirror_is_skipped(mirrored: Registries, registry: FakeRegistry, mirror: FakeRegistry, status: int) -> None:
    put(mirror)
    for method in ("HEAD", "GET"):
        mirror.inject(Fault(method=method, nth=None, action=Answer(status, (), b"{}")))
    assert str(mirrored.resolve(reference(registry)).descriptor.digest) == IMAGE.root.digest
    assert read(fetcher(mirrored, registry), descriptor(BLOB)) == BLOB


def test_the_registry_resumes_where_a_mirror_broke_off(
    mirrored: Registries, registry: FakeRegistry, mirror: FakeRegistry
) -> None:
    put(mirror)
    mirror.inject(Fault(path=".*/blobs/.*", nth=None, action=Cut(0)))
    mirror.inject(Fault(path=".*/blobs/.*", nth=1, action=Cut(100_000)))
    assert read(fetcher(mirrored, registry), descriptor(BLOB)) == BLOB
    (asked_for,) = ranges(registry)
    assert asked_for is not None
    assert asked_for.startswith("bytes=")
    assert int(asked_for.removeprefix("bytes=").partition("-")[0]) > 0


def test_a_mirror_that_sends_no_byte_is_skipped(mirrored: Registries, registry: FakeRegistry, mirror: FakeRegistry) -> None:
    # containerd #9552: 200, the right length, and no body
    put(mirror)
    mirror.inject(Fault(path=".*/blobs/.*", nth=None, action=Cut(0)))
    assert read(fetcher(mirrored, registry), descriptor(BLOB)) == BLOB
    assert ranges(registry) == [None]
    assert ranges(mirror) == [None] * 3


def test_a_mirror_with_wrong_bytes_is_not_asked_for_the_digest_again(
    mirrored: Registries, registry: FakeRegistry, mirror: FakeRegistry, tmp_path: Path
) -> None:
    put(mirror)
    mirror.inject(Fault(path=".*/blobs/.*", nth=None, action=Flip(1000)))
    store, wanted = open_store(str(tmp_path / "store")), descriptor(BLOB)
    with pytest.raises(Corrupt):
        transfer.fetch(store, fetcher(mirrored, registry), wanted, notify=ignore_event, pause=time.sleep)
    assert list_requests(registry) == []
    assert transfer.fetch(store, fetcher(mirrored, registry), wanted, notify=ignore_event, pause=time.sleep).status == "fetched"
    assert len(list_requests(mirror)) == 1
    assert store.manifest(wanted) == BLOB


def test_the_error_of_the_registry_wins_over_an_unreachable_mirror(registry: FakeRegistry) -> None:
    hosts = Hosts(named={registry.host: HostSettings(mirrors=(f"127.0.0.1:{free_port()}",))})
    with (
        Registries(RegistrySettings(hosts=hosts, connect_timeout_s=10), credentials=anonymous) as found,
        pytest.raises(NotFound) as caught,
    ):
        found.resolve(reference(registry))
    check_message(caught.value, registry.host)


def test_a_404_of_the_registry_wins_over_a_denial_of_a_mirror(
    mirrored: Registries, registry: FakeRegistry, mirror: FakeRegistry
) -> None:
    refusal = b'{"errors": [{"code": "DENIED", "message": "no such project"}]}'
    mirror.inject(Fault(method="HEAD", nth=None, action=Answer(403, (), b"")))
    mirror.inject(Fault(method="GET", nth=None, action=Answer(403, (), refusal)))
    for ask in (
        lambda: mirrored.resolve(reference(registry, ":none")),
        lambda: read(fetcher(mirrored, registry), descriptor(b"none")),
    ):
        with pytest.raises(RegistryNotFound) as caught:
            ask()
        check_message(caught.value, registry.host, f"; at {mirror.host}/{REPOSITORY}: 403 DENIED: no such project")
        assert caught.value.exchange.status == 404


def test_the_error_names_each_mirror(registry: FakeRegistry, mirror: FakeRegistry) -> None:
    absent = f"127.0.0.1:{free_port()}"
    hosts = Hosts(named={registry.host: HostSettings(mirrors=(absent, mirror.host))})
    registry.inject(Fault(method="HEAD", nth=None, action=BUSY))
    with (
        Registries(RegistrySettings(hosts=hosts, connect_timeout_s=10), credentials=anonymous) as found,
        pytest.raises(RegistryUnavailable) as caught,
    ):
        found.resolve(reference(registry))
    check_message(caught.value, f"http://{registry.host}/", f"; at {absent}/{REPOSITORY}: ", "Connection refused")
    check_message(caught.value, f"; at {mirror.host}/{REPOSITORY}: 404")


EXCHANGE = Exchange(method="GET", url="https://a.example/", status=400)


@pytest.mark.parametrize(
    ("errors", "telling"),
    [
        # the registry, which is the last, answered
        ([RegistryDenied("a", EXCHANGE), RegistryNotFound("b", EXCHANGE)], 1),
        ([RegistryNotFound("a", EXCHANGE), RegistryDenied("b", EXCHANGE)], 1),
        ([RegistryDenied("a", EXCHANGE), RegistryUnavailable("b", EXCHANGE)], 1),
        ([RegistryNotFound("a", EXCHANGE), RegistryNotFound("b", EXCHANGE)], 1),
        ([Unavailable("a"), RegistryNotFound("b", EXCHANGE)], 1),
        # it is not to be trusted, or what it sends
        ([RegistryNotFound("a", EXCHANGE), Denied("b")], 1),
        ([RegistryDenied("a", EXCHANGE), Corrupt("b")], 1),
        # it did not answer, or its host is not known
        ([RegistryNotFound("a", EXCHANGE), Unavailable("b")], 0),
        ([RegistryNotFound("a", EXCHANGE), NotFound("b")], 0),
        ([RegistryNotFound("a", EXCHANGE), RegistryDenied("b", EXCHANGE), Unavailable("c")], 1),
        ([RegistryDenied("a", EXCHANGE), RegistryNotFound("b", EXCHANGE), Unavailable("c")], 0),
        ([Unavailable("a"), Unavailable("b")], 1),
    ],
)
def test_the_most_informative_error_is_raised(errors: list[DistError], telling: int) -> None:
    assert most_informative(errors) is errors[telling]
