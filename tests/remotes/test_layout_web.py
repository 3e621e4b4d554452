"""Reading a layout from a web server, with and without ranges, and the servers that get credentials."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import Denied, DistError, InvalidInput, NotFound, Unavailable, Unsupported
from prefect_dist.remotes import Registries, RegistrySettings
from prefect_dist.remotes.hosts import Hosts, HostSettings
from prefect_dist.remotes.layout_remote import LayoutRemote
from prefect_dist.remotes.remotes import OpenContext
from tests import images
from tests.peers.nginx import static_registry
from tests.peers.processes import free_port
from tests.remotes.asking import SETTINGS, user
from tests.remotes.layouts import blob, blob_file, fetch, layout, open_layouts, root_of, write_layout
from tests.remotes.web import WebServer, web_server

ONE = images.image(1900)
DATA = bytes(range(256)) * 8000


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = write_layout(tmp_path / "site" / "dir" / "layout", {"v1": ONE})
    blob_file(place, blob(DATA).digest).write_bytes(DATA)
    return place


@pytest.fixture
def web(place: Path) -> Iterator[WebServer]:
    with web_server(place.parents[1]) as web:
        yield web


@pytest.fixture
def remote() -> Iterator[LayoutRemote]:
    with open_layouts() as remote:
        yield remote


def at(web: WebServer, tail: str = "") -> Reference:
    return layout(f"{web.url}/dir/layout", tail)


@pytest.mark.parametrize("ranges", [True, False])
def test_an_image_is_resolved_and_fetched(remote: LayoutRemote, web: WebServer, *, ranges: bool) -> None:
    web.ranges = ranges
    source = remote.open_source(at(web))
    assert source.resolve(at(web, ":v1")) == source.resolve(at(web)) == root_of(ONE)
    assert list(source.tags()) == ["v1"]
    assert fetch(source, root_of(ONE)) == ONE.manifests[-1].raw
    assert fetch(source, blob(DATA), offset=1_000_000) == DATA[1_000_000:]
    expected = f"bytes=1000000-{len(DATA) - 1}"
    assert web.find_requests(blob(DATA).digest.hex) == [("GET", expected)]


def test_a_blob_outside_the_index_is_resolved_by_a_head_request(remote: LayoutRemote, web: WebServer) -> None:
    described = remote.resolve(at(web, f"@{blob(DATA).digest}"), media_type="application/x").descriptor
    assert (described.media_type, described.size) == ("application/x", len(DATA))
    assert web.find_requests("blobs") == [("HEAD", None)]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_transfer_that_breaks_off_is_resumed(remote: LayoutRemote, web: WebServer, *, ranges: bool) -> None:
    web.ranges, web.cut_at = ranges, 500_000
    assert fetch(remote.open_source(at(web)), blob(DATA)) == DATA
    (_, first), (_, second) = web.find_requests(blob(DATA).digest.hex)
    assert (first, second) == (None, f"bytes=500000-{len(DATA) - 1}")


def test_missing_content_is_named(remote: LayoutRemote, web: WebServer) -> None:
    source = remote.open_source(at(web))
    with pytest.raises(NotFound, match=f"oci:{web.url}/dir/layout"):
        fetch(source, blob(b"missing"))
    with pytest.raises(NotFound, match=f"oci:{web.url}/dir/layout: blob sha256:"):
        source.resolve(at(web, f"@{blob(b'missing').digest}"))
    with pytest.raises(NotFound, match=f"oci:{web.url}/nothing: no image layout found"):
        remote.resolve(layout(f"{web.url}/nothing", ":v1"))
    assert remote.open_source(layout(f"{web.url}/nothing")).exists() is False


def test_a_server_that_is_down_is_unavailable(remote: LayoutRemote) -> None:
    with pytest.raises(Unavailable):
        remote.resolve(layout(f"http://127.0.0.1:{free_port()}/x", ":v1"))


def test_an_unknown_host_is_named(remote: LayoutRemote) -> None:
    with pytest.raises(DistError, match=r"host\.invalid"):
        remote.resolve(layout("https://host.invalid/x", ":v1"))


def test_abort_ends_the_transfer(remote: LayoutRemote, web: WebServer) -> None:
    source = remote.open_source(at(web))
    pieces = source.fetch(blob(DATA))
    next(pieces)
    remote.abort()
    remote._registries.abort()
    with pytest.raises(Unavailable):
        list(pieces)
    with pytest.raises(Unavailable):
        fetch(source, root_of(ONE))


def test_a_layout_on_a_web_server_is_read_only(remote: LayoutRemote, web: WebServer) -> None:
    with pytest.raises(Unsupported, match="a layout on a web server is read-only; write to a path or to an object store"):
        remote.open_target(at(web, ":v1"))
    assert web.requests == []


def test_real_nginx_serves_a_layout_with_ranges(remote: LayoutRemote, tmp_path: Path) -> None:
    place = write_layout(tmp_path / "root" / "layout", {"v1": ONE})
    blob_file(place, blob(DATA).digest).write_bytes(DATA)
    with static_registry(tmp_path) as nginx:
        source = remote.open_source(layout(f"http://{nginx.host}/layout"))
        assert source.resolve(layout(f"http://{nginx.host}/layout", ":v1")) == root_of(ONE)
        assert fetch(source, blob(DATA)) == DATA
        assert fetch(source, blob(DATA), offset=1_999_999) == DATA[1_999_999:]


# Credentials


@pytest.fixture
def known() -> Iterator[LayoutRemote]:
    """All layouts, with credentials for every host."""
    with Registries(SETTINGS, credentials=lambda *_: user("me", "secret")) as registries:
        yield LayoutRemote(OpenContext(registries=registries, open_store=lambda: pytest.fail("no store")))


def test_only_the_server_of_the_layout_gets_credentials(known: LayoutRemote, web: WebServer, place: Path) -> None:
    with web_server(place.parents[1]) as other:
        web.login, web.redirect = ("me", "secret"), other.url
        source = known.open_source(at(web))
        assert source.resolve(at(web, ":v1")) == root_of(ONE)
        assert fetch(source, root_of(ONE)) == ONE.manifests[-1].raw
        assert [secret for *_, secret in other.requests] == [None]
    assert any(secret for *_, secret in web.requests)


def test_credentials_are_looked_up_for_the_host_only(web: WebServer) -> None:
    asked = list[tuple[str, str]]()

    def look_up(host: str, repository: str) -> None:
        asked.append((host, repository))

    with Registries(SETTINGS, credentials=look_up) as registries:
        remote = LayoutRemote(OpenContext(registries=registries, open_store=lambda: pytest.fail("no store")))
        remote.resolve(at(web, ":v1"))
    assert set(asked) == {(web.host, "")}


def test_missing_credentials_are_denied(remote: LayoutRemote, web: WebServer) -> None:
    web.login = ("me", "secret")
    with pytest.raises(Denied, match=f"oci:{web.url}/dir/layout: index.json"):
        remote.resolve(at(web, ":v1"))


@pytest.mark.parametrize("target", ["http://169.254.169.254/latest", "http://[fe80::1]/x"])
def test_a_redirect_to_a_metadata_service_is_refused(remote: LayoutRemote, web: WebServer, target: str) -> None:
    web.redirect = target
    with pytest.raises(DistError, match=r"169.254.169.254|fe80::1"):
        fetch(remote.open_source(at(web)), root_of(ONE))


def test_plain_http_is_refused_except_on_loopback_and_in_the_hosts_file() -> None:
    settings = RegistrySettings(hosts=Hosts(named={"plain.invalid": HostSettings(scheme="http")}))
    with Registries(settings, credentials=lambda *_: pytest.fail("no credentials are needed")) as registries:
        remote = LayoutRemote(OpenContext(registries=registries, open_store=lambda: pytest.fail("no store")))
        for place in ("http://example.invalid/x", "http://192.0.2.1/x", "http://[2001:db8::1]:80/x"):
            with pytest.raises(InvalidInput, match="plain http is allowed only on loopback addresses; use https://"):
                remote.resolve(layout(place, ":v1"))
    with Registries(settings, credentials=lambda *_: None) as registries:
        remote = LayoutRemote(OpenContext(registries=registries, open_store=lambda: pytest.fail("no store")))
        with pytest.raises(DistError, match=r"plain\.invalid") as caught:
            remote.resolve(layout("http://plain.invalid/x", ":v1"))
        assert not isinstance(caught.value, InvalidInput)


@pytest.mark.parametrize("place", ["https:///x", "https://[/x", "https://host:99999/x", "https://ho st/x", "https://host:x/x"])
def test_a_bad_url_is_refused(remote: LayoutRemote, place: str) -> None:
    with pytest.raises(InvalidInput):
        remote.resolve(layout(place, ":v1"))


def test_a_compressed_index_bomb_is_refused(remote: LayoutRemote, web: WebServer, place: Path) -> None:
    (place / "index.json").write_bytes(gzip.compress(bytes(50_000_000)))
    with pytest.raises(DistError, match=r"index.json: not JSON"):
        remote.resolve(at(web, ":v1"))


def test_an_oversized_index_is_not_read(remote: LayoutRemote, web: WebServer, place: Path) -> None:
    (place / "index.json").write_bytes(bytes(5_000_000))
    with pytest.raises(Unsupported, match="expected at most"):
        remote.resolve(at(web, ":v1"))
