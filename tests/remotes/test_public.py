"""Public addresses, and connections only to these."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from prefect_dist.remotes.guard import GUARD, Guard
from prefect_dist.remotes.hosts import Hosts, HostSettings
from prefect_dist.remotes.public import PUBLIC_ONLY, AddressRefused, address_kind, refuse_literal
from prefect_dist.remotes.transport import Urllib3Transport
from tests.fakes.registry import FakeRegistry
from tests.fakes.scripted import Scripted
from tests.peers.tls import self_signed

PUBLIC = "127.0.0.2"  # taken for a public address by some of these tests
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "1.1.1.1",
        "172.32.0.1",
        "100.128.0.1",
        "2001:4860:4860::8888",
        "2606:4700::1111",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "2002:808:808::1",
    ],
)
def test_public_addresses_are_recognized(address: str) -> None:
    assert address_kind(address) == "public"


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",  # noqa: S104 - nothing listens there
        "10.0.0.1",
        "100.64.0.1",
        "127.0.0.1",
        "127.255.255.254",
        "169.254.169.254",
        "172.16.0.1",
        "192.168.1.1",
        "198.18.0.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::808:808",
        "2002:7f00:1::1",
        "2002:a00:1::1",
        "2001::1",
        "2001:db8::1",
        "4000::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1%lo",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_addresses_that_are_not_public_are_recognized(address: str) -> None:
    assert address_kind(address) != "public"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "0x7f000001", "0x7f.1", "2130706433", "017700000001", "::1", "::ffff:7f00:1"]
)
def test_an_address_is_refused_in_any_spelling(host: str) -> None:
    with pytest.raises(AddressRefused):
        refuse_literal(host, PUBLIC_ONLY)


@pytest.mark.parametrize("host", ["registry.invalid", "8.8.8.8", "a" * 64])
def test_names_and_public_addresses_are_not_refused(host: str) -> None:
    refuse_literal(host, PUBLIC_ONLY)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Answer the n-th look-up of a name in .test with the n-th list; return the names that were looked up."""
    real = socket.getaddrinfo

    def set_up(*lists: list[str]) -> list[str]:
        left, names = iter(lists), []

        def look_up(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
            if not str(host).endswith(".test"):
                return real(host, port, *args, **kwargs)
            names.append(host)
            return [found for address in next(left) for found in real(address, port, *args, **kwargs)]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        monkeypatch.setattr(
            "prefect_dist.remotes.public.address_kind",
            lambda address: "public" if address in (PUBLIC, "127.0.0.3") else "loopback",
        )
        return names

    return set_up


def ask(url: str, hosts: Hosts | None = None, *, extensions: dict[str, Any] | None = None) -> bytes:
    transport = Urllib3Transport(connect_timeout_s=10, read_timeout_s=10, hosts=hosts)
    with httpx.Client(transport=transport, follow_redirects=True) as client:
        return client.get(url, extensions={GUARD: Guard()} if extensions is None else extensions).content


def port(server: Scripted) -> str:
    return server.host.rpartition(":")[2]


def test_the_connection_goes_to_the_checked_address(answers: Callable[..., list[str]]) -> None:
    with Scripted(OK, address=PUBLIC) as server, Scripted(OK) as private:
        names = answers([PUBLIC], ["127.0.0.1"])  # the second look-up of the name has another result
        assert ask(f"http://rebound.test:{port(server)}/") == b"ok"
        assert names == ["rebound.test"]
        assert "Host: rebound.test" in server.heads[0].title().replace("Rebound.Test", "rebound.test")
        assert private.heads == []


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["127.0.0.1", "::1"]])
def test_no_connection_is_made_to_a_name_without_a_public_address(
    answers: Callable[..., list[str]], addresses: list[str]
) -> None:
    with Scripted(OK) as server:
        answers(addresses)
        with pytest.raises(httpx.ConnectError, match=r"inner\.test resolves to the loopback address 127\.0\.0\.1"):
            ask(f"http://inner.test:{port(server)}/")
        assert server.heads == []


@pytest.mark.parametrize("addresses", [["127.0.0.1", PUBLIC], ["127.0.0.3", PUBLIC]], ids=["private", "dead"])
def test_the_next_public_address_is_tried_after_a_failure(answers: Callable[..., list[str]], addresses: list[str]) -> None:
    with Scripted(OK, address=PUBLIC) as server:
        answers(addresses)
        assert ask(f"http://several.test:{port(server)}/") == b"ok"


def test_the_address_of_each_redirect_is_checked(answers: Callable[..., list[str]]) -> None:
    with Scripted(OK) as private:
        head = f"HTTP/1.1 302 Found\r\nLocation: http://{private.host}/\r\nContent-Length: 0\r\n\r\n"
        with Scripted(head.encode(), address=PUBLIC) as server:
            answers([PUBLIC])
            with pytest.raises(httpx.ConnectError, match=r"127\.0\.0\.1 is a loopback address"):
                ask(f"http://outer.test:{port(server)}/")
        assert private.heads == []


def test_the_certificate_is_checked_against_the_name(
    answers: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeRegistry(tls=self_signed(tmp_path, "DNS:secure.test")) as server:
        at = f"test:{server.host.rpartition(':')[2]}"
        server.names |= {f"secure.{at}", f"other.{at}"}
        answers(["127.0.0.1"], ["127.0.0.1"])
        monkeypatch.setattr("prefect_dist.remotes.public.address_kind", lambda _: "public")
        hosts = Hosts(ca_file=str(tmp_path / "cert.pem"))
        assert ask(f"https://secure.{at}/v2/", hosts) == b"{}"
        with pytest.raises(httpx.ConnectError, match="Hostname mismatch"):
            ask(f"https://other.{at}/v2/", hosts)
        assert len(server.requests) == 1


def test_a_pooled_connection_is_not_used_by_a_request_that_may_not_make_it() -> None:
    with Scripted(OK, OK, keep=True) as private:
        transport = Urllib3Transport(connect_timeout_s=10, read_timeout_s=10)
        with httpx.Client(transport=transport) as client:
            assert client.get(f"http://{private.host}/").content == b"ok"
            with pytest.raises(httpx.ConnectError, match="is a loopback address"):
                client.get(f"http://{private.host}/", extensions={GUARD: Guard()})
        assert len(private.heads) == 1


@pytest.mark.parametrize(("named", "is_asked"), [("{}", True), ("127.0.0.1", False), ("127.0.0.1:1", False)])
def test_only_a_host_in_the_hosts_file_may_have_any_address(named: str, *, is_asked: bool) -> None:
    with Scripted(OK) as private:
        hosts = Hosts(named={named.format(private.host): HostSettings(headers=(("X-Api-Key", "topsecret"),))})
        if is_asked:
            assert ask(f"http://{private.host}/", hosts) == b"ok"
            assert "topsecret" not in private.heads[0]
        else:
            with pytest.raises(httpx.ConnectError, match="is a loopback address"):
                ask(f"http://{private.host}/", hosts)
            assert private.heads == []


def test_requests_without_a_guard_may_go_to_any_address() -> None:
    with Scripted(OK) as private:
        assert ask(f"http://{private.host}/", extensions={}) == b"ok"


@pytest.mark.parametrize("host", ["unknown.test", f"{'a' * 64}.test"])
def test_invalid_host_names_are_an_error(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setattr("prefect_dist.remotes.public.address_kind", lambda _: "public")
    with pytest.raises((httpx.TransportError, httpx.InvalidURL)):
        ask(f"http://{host}/")
