"""Redirects, upload locations and token servers at addresses that are not public.

The registries of these tests are on loopback addresses, some of which the tests treat as public or private.
"""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import httpx
import pytest

from prefect_dist.ocispec.errors import Denied
from prefect_dist.remotes import Hosts, HostSettings, Registries, guard, public
from prefect_dist.remotes.guard import Guard, GuardedOrigin
from prefect_dist.remotes.pusher import Pusher
from tests import images
from tests.fakes.access import Bearer
from tests.fakes.faults import Fault, Redirect, WithHeaders
from tests.fakes.registry import FakeRegistry
from tests.fakes.scripted import Scripted
from tests.remotes.asking import (
    BLOB,
    REPOSITORY,
    SETTINGS,
    check_message,
    descriptor,
    fetcher,
    read,
    read_until_error,
    reference,
    user,
)
from tests.remotes.pushing import Reader, pusher

if TYPE_CHECKING:
    from prefect_dist.remotes.public import Kind

WANTED = descriptor(BLOB)
BLOBS = ".*/blobs/.*"
METADATA = "169.254.169.254"
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
KINDS = {"public": "127.0.0.2", "other public": "127.0.0.3", "private": "127.0.0.4", "other private": "127.0.0.5"}


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Iterator["Places"]:
    """Registries at addresses that count as public or private."""
    real = public.address_kind
    kinds = {address: cast("Kind", name.split()[-1]) for name, address in KINDS.items()}
    for module in ("prefect_dist.remotes.public", "prefect_dist.remotes.transport"):
        monkeypatch.setattr(f"{module}.address_kind", lambda address: kinds.get(address) or real(address))
    with ExitStack() as stack:
        yield Places(stack)


class Places:
    """Starts registries; each has the blob."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def __getitem__(self, place: str) -> FakeRegistry:
        started = self._stack.enter_context(FakeRegistry(address=KINDS.get(place, "127.0.0.1")))
        started.put_blob(REPOSITORY, BLOB)
        return started


def opened(*allowed: FakeRegistry | str, by: FakeRegistry) -> Registries:
    """All registries, with credentials for each; `by` may redirect to the `allowed` ones."""
    names = frozenset(one if isinstance(one, str) else one.host for one in allowed)
    hosts = Hosts(named={by.host: HostSettings(private_hosts=names)} if names else {}, plain_http=True)
    return Registries(replace(SETTINGS, hosts=hosts), credentials=lambda *_: user("me", "topsecret"))


def plain() -> Registries:
    """All registries, over http and without credentials."""
    return Registries(replace(SETTINGS, hosts=Hosts(plain_http=True)), credentials=lambda *_: None)


def redirect(registry: FakeRegistry, to: FakeRegistry | str) -> None:
    host = to if isinstance(to, str) else to.host
    registry.inject(Fault(path=BLOBS, nth=None, action=Redirect(f"http://{host}{{path}}?sig=topsecret")))


def refusal(registries: Registries, registry: FakeRegistry) -> Denied:
    arrived, error = read_until_error(fetcher(registries, registry), WANTED)
    assert arrived == b""
    assert isinstance(error, Denied), error
    return error


@pytest.mark.parametrize("host", [METADATA, f"{METADATA}:8080", "[fe80::1]", "[fd00:ec2::254]", "0.0.0.0", "0xa9fea9fe"])  # noqa: S104
def test_a_registry_on_this_machine_cannot_redirect_to_a_metadata_service(registry: FakeRegistry, host: str) -> None:
    redirect(registry, host)
    with opened(by=registry) as registries:
        error = refusal(registries, registry)
    check_message(error, str(WANTED.digest), " address", f"to privateHosts of {registry.host}", hides=["topsecret"])


@pytest.mark.parametrize(
    ("first", "second"), [("public", "private"), ("public", "loopback"), ("private", "loopback"), ("other public", "private")]
)
def test_a_redirect_to_a_less_public_address_is_refused_before_a_connection_is_made(
    at: Places, first: str, second: str
) -> None:
    registry, target = at[first], at[second]
    redirect(registry, target)
    with opened(by=registry) as registries:
        error = refusal(registries, registry)
    address = target.host.partition(":")[0]
    check_message(error, f"{address} is a {second} address; to allow it, add ", hides=["topsecret"])
    check_message(
        error, f"add {target.host} to privateHosts of {registry.host} in the hosts file (GET http://{target.host}/v2/"
    )
    assert target.connections == 0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("private", "other private"),
        ("loopback", "loopback"),
        ("loopback", "private"),
        ("private", "public"),
        ("public", "other public"),
    ],
)
def test_a_redirect_within_a_private_network_or_to_the_internet_is_followed(at: Places, first: str, second: str) -> None:
    registry, target = at[first], at[second]
    redirect(registry, target)
    with opened(by=registry) as registries:
        assert read(fetcher(registries, registry), WANTED) == BLOB
    (got,) = target.requests
    assert "authorization" not in got.headers


@pytest.mark.parametrize("has_port", [True, False])
def test_a_listed_private_host_is_reached_without_credentials(at: Places, *, has_port: bool) -> None:
    registry, target = at["public"], at["private"]
    redirect(registry, target)
    with opened(target if has_port else target.host.partition(":")[0], by=registry) as registries:
        assert read(fetcher(registries, registry), WANTED) == BLOB
    (got,) = target.requests
    assert "authorization" not in got.headers


def test_a_private_host_is_allowed_only_for_its_registry(at: Places) -> None:
    registry, other, target = at["public"], at["other public"], at["private"]
    redirect(registry, target)
    with opened(target, by=other) as registries:
        refusal(registries, registry)
    assert target.connections == 0


def test_a_public_server_cannot_redirect_back_into_the_private_network(at: Places) -> None:
    registry, between, target = at["private"], at["public"], at["other private"]
    redirect(registry, between)
    redirect(between, target)
    with opened(by=registry) as registries:
        refusal(registries, registry)
    assert (len(between.requests), target.connections) == (1, 0)


def test_a_registry_that_answers_from_a_public_and_a_private_address_counts_as_public() -> None:
    origin = GuardedOrigin(httpx.URL("https://registry.example/v2/"), name="registry.example")
    origin.note_answer("private")
    assert origin.allowed_kinds() == {"public", "private"}
    origin.note_answer("public")
    origin.note_answer("private")
    assert origin.allowed_kinds() == {"public"}


def test_a_registry_with_an_unknown_address_counts_as_public() -> None:
    assert GuardedOrigin(httpx.URL("https://registry.example"), name="registry.example").allowed_kinds() == {"public"}


def test_answers_may_be_noted_while_another_thread_reads_the_allowed_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    origin = GuardedOrigin(httpx.URL("https://registry.example"), name="registry.example")
    origin.note_answer("private")
    reachable = guard._ALLOWED_KINDS

    class Noting(dict["Kind", "frozenset[Kind]"]):
        """Notes an answer of another thread in the middle of the look-up."""

        def __getitem__(self, kind: "Kind") -> "frozenset[Kind]":
            origin.note_answer("public")
            return reachable[kind]

    monkeypatch.setattr(guard, "_ALLOWED_KINDS", Noting())
    assert origin.allowed_kinds() == {"public", "private"}
    assert origin.allowed_kinds() == {"public"}


class Names:
    """Resolves `registry.test` to an address that the test changes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
        self.address = address
        real = socket.getaddrinfo
        monkeypatch.setattr(
            socket,
            "getaddrinfo",
            lambda host, *how, **more: real(self.address if host == "registry.test" else host, *how, **more),
        )


@pytest.mark.parametrize("has_same_port", [True, False])
@pytest.mark.usefixtures("at")
def test_a_public_registry_that_changes_its_address_and_redirects_to_itself_reaches_nothing_private(
    monkeypatch: pytest.MonkeyPatch, *, has_same_port: bool
) -> None:
    names = Names(monkeypatch, KINDS["public"])
    targets: list[str] = []

    def change_and_redirect() -> Iterator[bytes]:
        names.address = KINDS["private"]
        yield f"HTTP/1.1 307 Moved\r\nLocation: {targets[0]}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()

    with Scripted(change_and_redirect(), address=KINDS["public"]) as registry:
        number = int(registry.host.partition(":")[2])
        with Scripted(EMPTY, address=KINDS["private"], port=number if has_same_port else 0) as metadata, plain() as registries:
            targets.append(f"http://registry.test:{metadata.host.partition(':')[2]}/latest/meta-data/iam")
            arrived, error = read_until_error(registries.open_source(reference(f"registry.test:{number}", "")), WANTED)
    assert arrived == b""
    assert isinstance(error, Denied), error
    check_message(error, f"registry.test resolves to the private address {KINDS['private']}")
    assert (len(registry.heads), metadata.heads) == (1, [])


@pytest.mark.usefixtures("at")
def test_a_registry_that_changes_its_address_before_a_later_request_reaches_nothing_private(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = Names(monkeypatch, KINDS["public"])
    content = f"HTTP/1.1 200 OK\r\nContent-Length: {len(BLOB)}\r\nConnection: close\r\n\r\n".encode() + BLOB
    with (
        Scripted(content, content, address=KINDS["public"]) as registry,
        Scripted(content, address=KINDS["private"], port=int(registry.host.partition(":")[2])) as metadata,
        plain() as registries,
    ):
        source = registries.open_source(reference(f"registry.test:{registry.host.partition(':')[2]}", ""))
        for _ in range(2):
            assert read(source, WANTED) == BLOB
        names.address = KINDS["private"]
        _, error = read_until_error(source, WANTED)
    assert isinstance(error, Denied), error
    assert (len(registry.heads), metadata.heads) == (2, [])


@pytest.mark.parametrize(
    ("url", "is_origin"),
    [
        ("https://registry.example/x", True),
        ("https://registry.example:443/x", True),
        ("http://registry.example/x", False),
        ("https://registry.example:80/x", False),
        ("https://other.example/x", False),
    ],
)
def test_the_scheme_and_the_port_are_part_of_the_registry_itself(url: str, *, is_origin: bool) -> None:
    origin = GuardedOrigin(httpx.URL("https://registry.example"), name="registry.example")
    assert origin.is_origin(httpx.URL(url)) == is_origin
    origin.note_answer("public")
    assert (Guard(origin).address_rule(httpx.URL(url), is_named=True) is origin) == is_origin


def test_headers_of_another_registry_are_sent_only_if_the_redirecting_registry_may_refer_to_it(at: Places) -> None:
    registry, target = at["public"], at["other public"]
    redirect(registry, target)
    secret = HostSettings(headers=(("X-Api-Key", "topsecret"),))
    for private_hosts, sent in ((frozenset[str](), None), (frozenset({target.host}), "topsecret")):
        named = {target.host: secret, registry.host: HostSettings(private_hosts=private_hosts)}
        with Registries(
            replace(SETTINGS, hosts=Hosts(named=named, plain_http=True)), credentials=lambda *_: None
        ) as registries:
            assert read(fetcher(registries, registry), WANTED) == BLOB
            assert target.requests[-1].headers.get("x-api-key") == sent
            assert read(fetcher(registries, target), WANTED) == BLOB
            assert target.requests[-1].headers.get("x-api-key") == "topsecret"


def change(target: Pusher, image: images.BuiltImage, method: str) -> None:
    """Put or delete the manifest of an image."""
    root = descriptor(image.manifests[-1].raw, image.root.media_type)
    if method == "DELETE":
        target.delete(root.digest)
    else:
        target.put(image.manifests[-1].raw, root)


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_a_manifest_or_a_deletion_is_not_redirected_to_another_registry(
    registry: FakeRegistry, other: FakeRegistry, method: str
) -> None:
    registry.inject(Fault(method=method, path=".*/manifests/.*", nth=None, action=Redirect(f"http://{other.host}{{path}}")))
    image = images.image(seed=1)
    images.load(other, REPOSITORY, image, "v1")
    for content in image.blobs.values():
        registry.put_blob(REPOSITORY, content)
    with opened(by=registry) as registries, pytest.raises(Denied) as caught:
        change(pusher(registries, registry), image, method)
    check_message(
        caught.value,
        f"{method} http://{other.host}/v2/",
        "the registry redirected a write to another server; the redirect is not followed",
        hides=["topsecret"],
    )
    assert (other.requests, other.connections) == ([], 0)


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_a_manifest_or_a_deletion_is_redirected_within_its_registry(registry: FakeRegistry, method: str) -> None:
    image = images.image(seed=1)
    images.load(registry, REPOSITORY, image, "v1")
    action = Redirect(f"http://{registry.host}{{path}}")
    registry.inject(Fault(method=method, path=".*/manifests/.*", nth=1, action=action))
    with opened(by=registry) as registries:
        change(pusher(registries, registry), image, method)
    assert [one.method for one in registry.requests] == [method] * 2


@pytest.mark.parametrize("is_allowed", [True, False])
def test_an_upload_goes_to_a_private_location_only_if_it_is_listed(at: Places, *, is_allowed: bool) -> None:
    registry, target = at["public"], at["private"]
    content = BLOB[:1000]
    elsewhere = WithHeaders((("Location", f"http://{target.host}/v2/{REPOSITORY}/blobs/uploads/1?_state=topsecret"),))
    registry.inject(Fault(method="POST", path=".*/uploads/", nth=None, action=elsewhere))
    with opened(*[target] if is_allowed else [], by=registry) as registries:
        with pytest.raises(Exception, match=r"404|private address.*; to allow it, add .* to privateHosts") as caught:
            pusher(registries, registry).upload(descriptor(content), Reader(content))
        assert isinstance(caught.value, Denied) != is_allowed
    assert (target.connections > 0) == is_allowed
    assert not any("authorization" in one.headers for one in target.requests)


@pytest.mark.parametrize("is_allowed", [True, False])
@pytest.mark.usefixtures("at")
def test_a_token_is_requested_at_a_private_server_only_if_it_is_listed(*, is_allowed: bool) -> None:
    bearer = Bearer()
    with (
        FakeRegistry(auth=bearer) as tokens,
        FakeRegistry(address=KINDS["public"], auth=replace(bearer, realm=f"http://{tokens.host}/token")) as registry,
    ):
        registry.put_blob(REPOSITORY, BLOB)
        with opened(*[tokens] if is_allowed else [], by=registry) as registries:
            error = refusal(registries, registry)
        check_message(error, tokens.host, hides=["topsecret"])
        assert (tokens.connections > 0) == is_allowed
