import httpx
import pytest

from prefect_dist.remotes import Hosts, HostSettings, Tls


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("docker.io", "https://registry-1.docker.io"),
        ("index.docker.io", "https://registry-1.docker.io"),
        ("ghcr.io", "https://ghcr.io"),
        ("registry.example:5000", "https://registry.example:5000"),
        ("localhost", "http://localhost"),
        ("localhost:5000", "http://localhost:5000"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("127.1.2.3", "http://127.1.2.3"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("[::1]", "http://[::1]"),
        ("[2001:db8::1]:5000", "https://[2001:db8::1]:5000"),
        ("10.0.0.1:5000", "https://10.0.0.1:5000"),
        ("localhost.example", "https://localhost.example"),
        ("127.0.0.1.example", "https://127.0.0.1.example"),
    ],
)
def test_the_url_of_a_registry_has_the_right_scheme(host: str, url: str) -> None:
    assert Hosts().url(host) == url


@pytest.mark.parametrize(
    ("hostname", "url"),
    [
        ("real.example:5000", "https://real.example:5000"),
        ("localhost:5000", "http://localhost:5000"),
        (None, "https://reg.example"),
    ],
)
def test_hostname_replaces_the_name_of_a_registry(hostname: str | None, url: str) -> None:
    hosts = Hosts(named={"reg.example": HostSettings(hostname=hostname, headers=(("X-Key", "k"),))})
    assert hosts.url("reg.example") == url
    assert hosts.settings_at(httpx.URL(f"{url}/v2/")).headers


@pytest.mark.parametrize(("host", "url"), [("ghcr.io", "http://ghcr.io"), ("docker.io", "http://registry-1.docker.io")])
def test_plain_http_applies_to_registries_without_a_scheme(host: str, url: str) -> None:
    assert Hosts(plain_http=True).url(host) == url


@pytest.mark.parametrize("tls", [Tls(ca_file="ca.pem"), Tls(cert_file="cert.pem"), Tls(verify=False)])
def test_tls_settings_switch_a_loopback_registry_to_https(tls: Tls) -> None:
    named = {"localhost:5000": HostSettings(tls=tls), "localhost:5001": HostSettings(tls=tls, scheme="http")}
    hosts = Hosts(named=named)
    assert [hosts.url(f"localhost:{port}")[:5] for port in (5000, 5001, 5002)] == ["https", "http:", "http:"]
    assert Hosts(named=named, plain_http=True).url("localhost:5000") == "http://localhost:5000"


def test_a_ca_file_for_all_hosts_does_not_switch_to_https() -> None:
    assert Hosts(ca_file="ca.pem").url("localhost:5000") == "http://localhost:5000"


def test_settings_for_https_do_not_apply_to_http() -> None:
    hosts = Hosts(named={"reg.example": HostSettings(headers=(("X-Key", "k"),))})
    assert hosts.settings_at(httpx.URL("https://reg.example/v2/")).headers
    assert not hosts.settings_at(httpx.URL("http://reg.example/v2/")).headers
