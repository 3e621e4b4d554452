"""Proxies of the environment: the requests that go through them, and the secrecy of their credentials."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from prefect_dist.ocispec.errors import InvalidInput, Unavailable
from prefect_dist.remotes import Hosts, HostSettings, Registries, RegistrySettings, Tls
from prefect_dist.remotes.proxies import Proxies
from tests import images
from tests.fakes.proxy import FakeProxy
from tests.fakes.registry import FakeRegistry
from tests.peers.processes import free_port
from tests.peers.tls import self_signed
from tests.remotes.asking import REPOSITORY, SETTINGS, anonymous, check_message, reference

IMAGE = images.image(seed=1)
FAR = "registry.invalid"  # a name that only the proxy knows


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[FakeRegistry]:
    with FakeRegistry(tls=self_signed(tmp_path)) as registry:
        put(registry)
        registry.names.add(FAR)
        yield registry


def put(registry: FakeRegistry) -> None:
    root = IMAGE.manifests[-1]
    registry.put_manifest(REPOSITORY, root.raw, root.media_type, tag="v1")


def digest_at(host: str, hosts: Hosts) -> str:
    settings = RegistrySettings(hosts=hosts, connect_timeout_s=10, read_timeout_s=10)
    with Registries(settings, credentials=anonymous) as registries:
        return str(registries.resolve(reference(host)).descriptor.digest)


def test_http_goes_through_the_proxy(registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    put(registry)
    registry.names.add(FAR)
    with FakeProxy(registry.host) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.host}")
        assert digest_at(FAR, Hosts(plain_http=True)) == IMAGE.root.digest
    assert proxy.requests == [f"HEAD http://{FAR}/v2/{REPOSITORY}/manifests/v1"]
    assert len(registry.requests) == 1


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_https_goes_through_a_tunnel(secure: FakeRegistry, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    with FakeProxy(secure.host) as proxy:
        monkeypatch.setenv(variable, proxy.host)  # without a scheme, as curl and Go take it
        assert digest_at(FAR, Hosts(named={FAR: HostSettings(tls=Tls(verify=False))})) == IMAGE.root.digest
    assert proxy.requests == [f"CONNECT {FAR}:443"]


def test_user_and_password_are_sent_only_to_the_proxy(
    secure: FakeRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with FakeProxy(secure.host, login="me:top secret") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:top%20secret@{proxy.host}")
        assert digest_at(FAR, Hosts(named={FAR: HostSettings(tls=Tls(verify=False))})) == IMAGE.root.digest
    assert all("proxy-authorization" not in one.headers for one in secure.requests)
    assert "secret" not in caplog.text


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_refusal_of_the_proxy_is_not_blamed_on_the_registry(
    registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    with FakeProxy(registry.host, login="me:right") as proxy:
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://me:wrongsecret@{proxy.host}")
        with pytest.raises(Exception, match="407") as caught:
            digest_at(FAR, Hosts(plain_http=scheme == "http"))
    check_message(caught.value, FAR, hides=["wrongsecret"])
    assert not registry.requests


def test_an_unreachable_proxy_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:secretword@127.0.0.1:{free_port()}")
    with pytest.raises(Unavailable, match=r"proxy: .*[Rr]efused") as caught:
        digest_at(FAR, Hosts())
    check_message(caught.value, FAR, hides=["secretword"])


@pytest.mark.parametrize(
    ("no_proxy", "url", "through"),
    [
        ("", "https://ghcr.io/", True),
        ("*", "https://ghcr.io/", False),
        ("ghcr.io", "https://ghcr.io/", False),
        (".example", "https://a.example/", False),
        ("example", "https://a.example/", False),
        ("a.example:5000", "https://a.example:5000/", False),
        ("a.example:5001", "https://a.example:5000/", True),
        ("", "https://localhost:5000/", False),
        ("", "https://127.0.0.1:5000/", False),
        ("", "https://[::1]:5000/", False),
    ],
)
def test_no_proxy_and_loopback_are_reached_directly(
    monkeypatch: pytest.MonkeyPatch, no_proxy: str, url: str, *, through: bool
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert Proxies().proxy_for(httpx.URL(url)) == (httpx.URL("http://proxy:3128") if through else None)


@pytest.mark.parametrize("text", ["socks5://me:secretword@proxy:1", "ftp://secretword", "http://", "http://sec:retword:x"])
def test_an_invalid_proxy_url_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", text)
    with Registries(SETTINGS, credentials=anonymous) as registries, pytest.raises(InvalidInput) as caught:
        registries.resolve(reference(FAR))
    check_message(caught.value, "HTTPS_PROXY", hides=["secretword"])


@pytest.fixture
def https_proxy(registry: FakeRegistry, tmp_path: Path) -> Iterator[FakeProxy]:
    """A proxy that uses TLS, with a certificate of its own, for any server at the address of `registry`."""
    put(registry)
    registry.names.add(FAR)
    (tmp_path / "proxy").mkdir()
    with FakeProxy(registry.host, login="me:secretword", tls=self_signed(tmp_path / "proxy")) as proxy:
        yield proxy


@pytest.mark.parametrize("is_trusted", [True, False])
def test_the_proxy_itself_may_use_https_with_a_trusted_certificate(
    https_proxy: FakeProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_trusted: bool
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"https://me:secretword@{https_proxy.host}")
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "proxy" / "cert.pem"))
        assert digest_at(FAR, Hosts(plain_http=True)) == IMAGE.root.digest
        assert https_proxy.requests == [f"HEAD http://{FAR}/v2/{REPOSITORY}/manifests/v1"]
        return
    hosts = Hosts(named={FAR: HostSettings(scheme="http", tls=Tls(verify=False))})
    with pytest.raises(Unavailable, match=r"no connection through the proxy: .*certificate verify failed"):
        digest_at(FAR, hosts)
    assert https_proxy.requests == []


@pytest.mark.parametrize("is_trusted", [True, False])
def test_the_tls_settings_of_a_registry_do_not_apply_to_an_https_proxy(
    secure: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_trusted: bool
) -> None:
    """The proxy gets a password, so its certificate is verified although that of the registry is not."""
    (tmp_path / "proxy").mkdir()
    with FakeProxy(secure.host, login="me:secretword", tls=self_signed(tmp_path / "proxy")) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"https://me:secretword@{proxy.host}")
        hosts = Hosts(named={FAR: HostSettings(tls=Tls(verify=False))})
        if is_trusted:
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "proxy" / "cert.pem"))
            assert digest_at(FAR, hosts) == IMAGE.root.digest
            assert proxy.requests == [f"CONNECT {FAR}:443"]
        else:
            with pytest.raises(Unavailable) as caught:
                digest_at(FAR, hosts)
            check_message(caught.value, "no connection through the proxy", "certificate verify failed", hides=["secretword"])
            assert proxy.requests == []
