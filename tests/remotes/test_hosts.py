import httpx
import pytest

from remotes import Hosts, HostSettings


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
def test_url(host: str, url: str) -> None:
    assert Hosts().url(host) == url


@pytest.mark.parametrize(("host", "url"), [("ghcr.io", "http://ghcr.io"), ("docker.io", "http://registry-1.docker.io")])
def test_plain_http_is_for_those_who_ask_for_it(host: str, url: str) -> None:
    assert Hosts(plain_http=True).url(host) == url


def test_what_is_for_https_is_not_for_http() -> None:
    hosts = Hosts(named={"reg.example": HostSettings(headers=(("X-Key", "k"),))})
    assert hosts.at(httpx.URL("https://reg.example/v2/")).headers
    assert not hosts.at(httpx.URL("http://reg.example/v2/")).headers
