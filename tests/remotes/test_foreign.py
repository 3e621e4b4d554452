"""Non-distributable layers: fetched from the URLs of a descriptor after the registry, without credentials, and verified."""

import re
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prefect_dist.ocispec import Descriptor
from prefect_dist.ocispec.errors import Corrupt, Denied, DistError, InvalidInput, NotFound, Unavailable
from prefect_dist.remotes import Hosts, HostSettings, Registries, RegistrySettings, Tls, foreign
from prefect_dist.remotes.errors import RegistryError, RegistryUnavailable
from prefect_dist.storage import open_store
from prefect_dist.transfer import content as transfer
from prefect_dist.transfer.events import ignore_event
from tests import images
from tests.fakes.access import Basic
from tests.fakes.faults import Action, Answer, Cut, Fault, Flip, Redirect, Stall, WithHeaders
from tests.fakes.proxy import FakeProxy
from tests.fakes.registry import FakeRegistry
from tests.peers.processes import free_port
from tests.peers.tls import self_signed
from tests.remotes.asking import (
    BLOB,
    REPOSITORY,
    SETTINGS,
    anonymous,
    check_message,
    descriptor,
    fetcher,
    list_requests,
    ranges,
    read,
    read_until_error,
    user,
)

SIZE = len(BLOB)
FOREIGN_LAYER = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
WANTED = descriptor(BLOB, FOREIGN_LAYER)
BLOB_PATH = f"/v2/{REPOSITORY}/blobs/{WANTED.digest}"
# The servers of urls are registries, too, which serve a blob of another repository.
ELSEWHERE = f"/v2/elsewhere/blobs/{WANTED.digest}"


def at(*urls: str | FakeRegistry, of: Descriptor = WANTED) -> Descriptor:
    return replace(of, urls=tuple(url if isinstance(url, str) else f"http://{url.host}{ELSEWHERE}" for url in urls))


def knowing(*servers: FakeRegistry, **more: HostSettings) -> RegistrySettings:
    hosts = Hosts(named={**{server.host: HostSettings() for server in servers}, **more})
    return replace(SETTINGS, hosts=hosts)


@pytest.fixture
def first() -> Iterator[FakeRegistry]:
    with FakeRegistry() as first:
        first.put_blob("elsewhere", BLOB)
        yield first


@pytest.fixture
def second(other: FakeRegistry) -> FakeRegistry:
    other.put_blob("elsewhere", BLOB)
    return other


@pytest.fixture
def known(first: FakeRegistry, second: FakeRegistry) -> Iterator[Registries]:
    """All registries, with credentials for every host. The hosts file has the servers of URLs: they are on loopback."""
    with Registries(knowing(first, second), credentials=lambda *_: user("me", "secret")) as known:
        yield known


def refusal(registries: Registries, registry: FakeRegistry, wanted: Descriptor) -> DistError:
    """The one error, with the answer of each server."""
    arrived, error = read_until_error(fetcher(registries, registry), wanted)
    assert (arrived, error is None) == (b"", False)
    assert error is not None
    check_message(error, str(WANTED.digest), f"{registry.host}/{REPOSITORY}", "404", "its URLs failed, too: ")
    return error


# The order of requests.


def test_content_of_the_registry_is_not_requested_from_urls(
    known: Registries, registry: FakeRegistry, first: FakeRegistry
) -> None:
    registry.put_blob(REPOSITORY, BLOB)
    assert read(fetcher(known, registry), at(first)) == BLOB
    assert list_requests(registry) == [f"GET {BLOB_PATH}"]
    assert first.requests == []


@pytest.mark.parametrize("offset", [0, 1000, SIZE - 1])
def test_content_that_the_registry_lacks_is_fetched_from_its_url(
    known: Registries, registry: FakeRegistry, first: FakeRegistry, second: FakeRegistry, offset: int
) -> None:
    assert read(fetcher(known, registry), at(first, second), offset=offset) == BLOB[offset:]
    assert list_requests(registry) == [f"GET {BLOB_PATH}"]
    assert list_requests(first) == [f"GET {ELSEWHERE}"]
    assert ranges(first) == [f"bytes={offset}-{SIZE - 1}" if offset else None]
    assert second.requests == []


@pytest.mark.parametrize("action", [Answer(404), Answer(403), Answer(503), Cut(0), Answer(204)])
def test_the_urls_are_tried_in_their_order(
    known: Registries, registry: FakeRegistry, first: FakeRegistry, second: FakeRegistry, action: Action
) -> None:
    first.inject(Fault(nth=None, action=action))
    assert read(fetcher(known, registry), at("ftp://files.example/x", first, second)) == BLOB
    assert list_requests(first)[0] == list_requests(second)[0] == f"GET {ELSEWHERE}"


@pytest.mark.parametrize("status", [400, 401, 403, 429, 500])
def test_an_error_other_than_404_is_not_followed_by_urls(
    known: Registries, registry: FakeRegistry, first: FakeRegistry, status: int
) -> None:
    registry.inject(Fault(path=BLOB_PATH, nth=None, action=Answer(status, (), b"{}")))
    _, error = read_until_error(fetcher(known, registry), at(first))
    assert isinstance(error, RegistryError)
    assert error.exchange.status == status
    assert first.requests == []


def test_a_manifest_is_never_fetched_from_urls(known: Registries, registry: FakeRegistry, first: FakeRegistry) -> None:
    _, error = read_until_error(fetcher(known, registry), at(first, of=descriptor(BLOB, images.OCI_MANIFEST)))
    assert isinstance(error, NotFound)
    assert first.requests == []


@pytest.mark.parametrize("registry_has", [True, False])
def test_a_registry_mirror_never_uses_urls(registry: FakeRegistry, first: FakeRegistry, *, registry_has: bool) -> None:
    if registry_has:
        registry.put_blob(REPOSITORY, BLOB)
    with FakeRegistry() as mirror:
        settings = knowing(first, **{registry.host: HostSettings(mirrors=(mirror.host,))})
        with Registries(settings, credentials=anonymous) as found:
            assert read(fetcher(found, registry), at(first)) == BLOB
        assert list_requests(mirror) == list_requests(registry) == [f"GET {BLOB_PATH}"]
        assert len(first.requests) == (0 if registry_has else 1)


# Messages.


def test_the_error_has_the_answer_of_each_url(
    known: Registries, registry: FakeRegistry, first: FakeRegistry, second: FakeRegistry
) -> None:
    first.inject(Fault(nth=None, action=Answer(404)))
    second.inject(Fault(nth=None, action=Answer(410)))
    urls = [f"http://{first.host}/a?sig=abcsecret", "ftp://files.example/b?sig=abcsecret", f"http://{second.host}/c", "::"]
    error = refusal(known, registry, at(*urls))
    assert isinstance(error, NotFound)
    check_message(
        error, f"http://{first.host}/a?sig=…: 404", "ftp://files.example/b", "expected http or https", hides=["abcsecret"]
    )
    check_message(error, f"http://{second.host}/c: 410", "invalid URL")


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "file:///etc/passwd", "data:text/plain,x", "/etc/passwd", "", "http://"])
def test_a_url_of_another_scheme_is_not_requested(known: Registries, registry: FakeRegistry, url: str) -> None:
    error = refusal(known, registry, at(url))
    assert isinstance(error, NotFound)
    check_message(error, "expected http or https; not requested")


def test_a_url_with_a_password_is_not_requested(known: Registries, registry: FakeRegistry, first: FakeRegistry) -> None:
    error = refusal(known, registry, at(f"http://me:topsecret@{first.host}{ELSEWHERE}"))
    check_message(error, "contains a user or password", hides=["topsecret"])
    assert first.requests == []


def test_only_the_first_five_urls_are_requested(known: Registries, registry: FakeRegistry, first: FakeRegistry) -> None:
    first.inject(Fault(nth=None, action=Answer(404)))
    urls = [f"http://{first.host}/{'x' * 300}/{number}" for number in range(1000)]
    arrived, error = read_until_error(fetcher(known, registry), at(*urls))
    assert arrived == b""
    assert re.search("; 995 more, not requested$", str(error))
    assert [one.path.rpartition("/")[2] for one in first.requests] == ["0", "1", "2", "3", "4"]


def test_a_temporary_failure_of_a_url_is_retryable(
    known: Registries, registry: FakeRegistry, first: FakeRegistry, second: FakeRegistry
) -> None:
    first.inject(Fault(nth=None, action=Answer(429, (("Retry-After", "7"),))))
    second.inject(Fault(nth=None, action=Answer(403)))
    error = refusal(known, registry, at(first, second))
    assert isinstance(error, RegistryUnavailable)
    assert error.exchange.retry_after_s == 7
    nowhere = at(f"http://127.0.0.1:{free_port()}/", first)
    with Registries(knowing(**{nowhere.urls[0].split("/")[2]: HostSettings()}), credentials=anonymous) as found:
        error = refusal(found, registry, nowhere)
    assert isinstance(error, Unavailable)
    check_message(error, "Connection refused", "a loopback address")


# Refused addresses.


def test_an_address_that_is_not_public_is_refused(registries: Registries, registry: FakeRegistry, first: FakeRegistry) -> None:
    localhost = f"http://localhost:{first.host.rpartition(':')[2]}{ELSEWHERE}"
    # nor the registry itself, whose connection is there for use
    error = refusal(registries, registry, at(first, localhost, f"http://{registry.host}{ELSEWHERE}"))
    assert isinstance(error, Denied)
    check_message(error, f"127.0.0.1 is a loopback address; to allow it, add {first.host} to registries in the hosts file")
    assert str(error).count("loopback address") == 3
    assert list_requests(registry) == [f"GET {BLOB_PATH}"]
    assert (first.requests, first.connections) == ([], 0)


def test_a_redirect_to_an_address_that_is_not_public_is_refused(
    registry: FakeRegistry, first: FakeRegistry, second: FakeRegistry
) -> None:
    first.inject(Fault(nth=None, action=Redirect(f"http://{second.host}{ELSEWHERE}")))
    with Registries(knowing(first), credentials=anonymous) as found:
        error = refusal(found, registry, at(first))
    assert isinstance(error, Denied)
    check_message(error, f"{first.host}: 127.0.0.1 is a loopback address", f"GET http://{second.host}")
    assert len(first.requests) == 1
    assert (second.requests, second.connections) == ([], 0)


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/", "http://[::1"])
def test_a_redirect_to_another_scheme_is_refused(
    known: Registries, registry: FakeRegistry, first: FakeRegistry, location: str
) -> None:
    first.inject(Fault(nth=None, action=Redirect(location)))
    refusal(known, registry, at(first))
    assert len(first.requests) == 1


def test_no_request_for_an_address_that_is_not_public_goes_to_a_proxy(
    registry: FakeRegistry, first: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    first.names.add("files.invalid")
    with FakeProxy(first.host) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.host}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        with Registries(SETTINGS, credentials=anonymous) as found:
            urls = ["http://10.0.0.1/", "http://0x0a000001/", "http://[fe80::1]/", f"http://files.invalid{ELSEWHERE}"]
            assert read(fetcher(found, registry), at(*urls)) == BLOB
    assert proxy.requests == [f"GET http://files.invalid{ELSEWHERE}"]


# Sent headers.


def test_no_secret_is_sent_to_a_url(first: FakeRegistry, second: FakeRegistry) -> None:
    """Neither to a host in the hosts file nor to the registry itself, and neither after a redirect nor after a challenge."""
    first.inject(Fault(nth=None, action=Redirect(f"http://{second.host}{{path}}")))
    with FakeRegistry(auth=Basic("me", "secret")) as guarded:
        guarded.put_blob("elsewhere", BLOB)
        key = HostSettings(headers=(("X-Api-Key", "topsecret"),))
        settings = knowing(**{server.host: key for server in (guarded, first, second)})
        with Registries(settings, credentials=lambda *_: user("me", "secret")) as found:
            assert read(fetcher(found, guarded), at(guarded, first)) == BLOB
        (own, answered, foreign) = guarded.requests
    assert ("authorization" in own.headers, "authorization" in answered.headers) == (False, True)
    assert answered.headers["x-api-key"] == "topsecret"
    for one in (foreign, *first.requests, *second.requests):
        assert one.path == ELSEWHERE
        assert {"authorization", "cookie", "x-api-key"}.isdisjoint(one.headers)
    assert [foreign.status, first.requests[0].status, second.requests[0].status] == [401, 307, 200]


def test_no_client_certificate_is_sent_to_a_url(registry: FakeRegistry, tmp_path: Path) -> None:
    server = self_signed(tmp_path)
    ca_file = str(tmp_path / "cert.pem")
    server.load_verify_locations(ca_file)
    server.verify_mode = ssl.CERT_REQUIRED
    tls = Tls(ca_file=ca_file, cert_file=ca_file, key_file=str(tmp_path / "key.pem"))
    with FakeRegistry(tls=server) as demanding:
        demanding.put_blob(REPOSITORY, BLOB)
        settings = knowing(**{demanding.host: HostSettings(scheme="https", tls=tls)})
        with Registries(settings, credentials=anonymous) as found:
            assert read(fetcher(found, demanding), descriptor(BLOB)) == BLOB
            refusal(found, registry, at(f"https://{demanding.host}{BLOB_PATH}"))
        assert len(demanding.requests) == 1


# Received bytes.


def test_the_next_url_resumes_where_one_broke_off(
    known: Registries, registry: FakeRegistry, first: FakeRegistry, second: FakeRegistry
) -> None:
    first.inject(Fault(nth=None, action=Cut(0)))
    first.inject(Fault(nth=1, action=Cut(100_000)))
    assert read(fetcher(known, registry), at(first, second)) == BLOB
    assert ranges(first)[:2] == [None, f"bytes=100000-{SIZE - 1}"]
    assert ranges(second) == [f"bytes=100000-{SIZE - 1}"]
    assert list_requests(registry) == [f"GET {BLOB_PATH}"]


def test_a_stalled_url_is_followed_by_the_next(registry: FakeRegistry, first: FakeRegistry, second: FakeRegistry) -> None:
    first.inject(Fault(action=Stall(1000)))
    first.inject(Fault(nth=2, times=10, action=Stall(0)))
    with Registries(replace(knowing(first, second), read_timeout_s=0.2), credentials=anonymous) as found:
        assert read(fetcher(found, registry), at(first, second)) == BLOB
    assert ranges(second) == [f"bytes=1000-{SIZE - 1}"]


@pytest.mark.parametrize(
    "action",
    [WithHeaders((("Content-Length", "5"),)), WithHeaders((("Content-Encoding", "gzip"),)), Answer(200, (), BLOB + b"x")],
)
def test_a_url_with_another_length_is_refused_at_once(
    known: Registries, registry: FakeRegistry, first: FakeRegistry, action: Action
) -> None:
    first.inject(Fault(nth=None, action=action))
    refusal(known, registry, at(first))


@pytest.mark.parametrize("mirrors", [1, 0])
def test_a_url_with_wrong_bytes_is_tried_last_next_time(
    registry: FakeRegistry, first: FakeRegistry, second: FakeRegistry, tmp_path: Path, mirrors: int
) -> None:
    first.inject(Fault(nth=None, action=Flip(1000)))
    store, wanted = open_store(str(tmp_path / "store")), at(first, second)
    with FakeRegistry() as mirror:
        settings = knowing(first, second, **{registry.host: HostSettings(mirrors=(mirror.host,) * mirrors)})
        with Registries(settings, credentials=anonymous) as known:
            with pytest.raises(Corrupt):
                transfer.fetch(store, fetcher(known, registry), wanted, notify=ignore_event, pause=time.sleep)
            assert not store.holds(wanted)
            assert (
                transfer.fetch(store, fetcher(known, registry), wanted, notify=ignore_event, pause=time.sleep).status
                == "fetched"
            )
    assert b"".join(store.chunks(wanted.digest)) == BLOB
    assert (len(first.requests), len(second.requests)) == (1, 1)


def test_a_url_that_is_the_only_one_gets_a_second_chance(
    known: Registries, registry: FakeRegistry, first: FakeRegistry, tmp_path: Path
) -> None:
    first.inject(Fault(nth=1, action=Flip(1000)))
    store, wanted = open_store(str(tmp_path / "store")), at(first)
    with pytest.raises(Corrupt):
        transfer.fetch(store, fetcher(known, registry), wanted, notify=ignore_event, pause=time.sleep)
    assert transfer.fetch(store, fetcher(known, registry), wanted, notify=ignore_event, pause=time.sleep).status == "fetched"


@example("", "\udcd7")
@given(st.sampled_from(["", "http://", "https://", "http:", "//"]), st.text(max_size=60))
def test_any_text_is_a_url_or_an_invalid_input(begin: str, text: str) -> None:
    try:
        url = foreign.parse(begin + text)
    except InvalidInput as exc:
        check_message(exc)
    else:
        assert url.scheme in ("http", "https")
        assert url.host
