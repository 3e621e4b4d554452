"""Where a registry may send us: redirects, upload locations and token servers at addresses that are not public.

The registries of these tests are on loopback addresses, some of which the tests take for public or private ones.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import httpx
import pytest

from ocispec.errors import Denied
from remotes import Hosts, HostSettings, Registries, public
from remotes.guard import Origin
from tests.fakes.access import Bearer
from tests.fakes.faults import Fault, Redirect, WithHeaders
from tests.fakes.registry import FakeRegistry
from tests.remotes.asking import BLOB, REPOSITORY, SETTINGS, check_told, descriptor, fetcher, read, read_until_error, user
from tests.remotes.pushing import Reader, pusher

if TYPE_CHECKING:
    from remotes.public import Kind

WANTED = descriptor(BLOB)
BLOBS = ".*/blobs/.*"
METADATA = "169.254.169.254"
KINDS = {"public": "127.0.0.2", "other public": "127.0.0.3", "private": "127.0.0.4", "other private": "127.0.0.5"}


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Iterator["Places"]:
    """Registries at addresses that count as public or private."""
    real = public.kind_of
    kinds = {address: cast("Kind", name.split()[-1]) for name, address in KINDS.items()}
    for module in ("remotes.public", "remotes.transport"):
        monkeypatch.setattr(f"{module}.kind_of", lambda address: kinds.get(address) or real(address))
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
    """All registries, with credentials for each; `by` may redirect to those that are `allowed`."""
    names = frozenset(one if isinstance(one, str) else one.host for one in allowed)
    hosts = Hosts(named={by.host: HostSettings(private_hosts=names)} if names else {}, plain_http=True)
    return Registries(replace(SETTINGS, hosts=hosts), credentials=lambda *_: user("me", "topsecret"))


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
    check_told(error, str(WANTED.digest), " address; ", f"to privateHosts of {registry.host}", hides=["topsecret"])


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
    check_told(error, f"{address} is a {second} address; if {registry.host} may name this server", hides=["topsecret"])
    check_told(error, f"add {target.host} to privateHosts of {registry.host} (GET http://{target.host}/v2/")
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
def test_a_private_host_that_is_named_is_asked_without_credentials(at: Places, *, has_port: bool) -> None:
    registry, target = at["public"], at["private"]
    redirect(registry, target)
    with opened(target if has_port else target.host.partition(":")[0], by=registry) as registries:
        assert read(fetcher(registries, registry), WANTED) == BLOB
    (got,) = target.requests
    assert "authorization" not in got.headers


def test_a_private_host_is_named_for_one_registry_only(at: Places) -> None:
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
    url = httpx.URL("https://registry.example/v2/")
    origin = Origin(url, name="registry.example")
    origin.note_answer(url, "private")
    assert origin.reachable() == {"public", "private"}
    origin.note_answer(url, "public")
    origin.note_answer(url, "private")
    assert origin.reachable() == {"public"}


def test_a_registry_whose_address_is_not_known_counts_as_public() -> None:
    assert Origin(httpx.URL("https://registry.example"), name="registry.example").reachable() == {"public"}


@pytest.mark.parametrize("is_allowed", [True, False])
def test_an_upload_goes_to_a_private_location_only_if_it_is_named(at: Places, *, is_allowed: bool) -> None:
    registry, target = at["public"], at["private"]
    content = BLOB[:1000]
    elsewhere = WithHeaders((("Location", f"http://{target.host}/v2/{REPOSITORY}/blobs/uploads/1?_state=topsecret"),))
    registry.inject(Fault(method="POST", path=".*/uploads/", nth=None, action=elsewhere))
    with opened(*[target] if is_allowed else [], by=registry) as registries:
        with pytest.raises(Exception, match=r"404|is a private address; if .* add .* to privateHosts") as caught:
            pusher(registries, registry).upload(descriptor(content), Reader(content))
        assert isinstance(caught.value, Denied) != is_allowed
    assert (target.connections > 0) == is_allowed
    assert not any("authorization" in one.headers for one in target.requests)


@pytest.mark.parametrize("is_allowed", [True, False])
@pytest.mark.usefixtures("at")
def test_a_token_is_requested_at_a_private_server_only_if_it_is_named(*, is_allowed: bool) -> None:
    bearer = Bearer()
    with (
        FakeRegistry(auth=bearer) as tokens,
        FakeRegistry(address=KINDS["public"], auth=replace(bearer, realm=f"http://{tokens.host}/token")) as registry,
    ):
        registry.put_blob(REPOSITORY, BLOB)
        with opened(*[tokens] if is_allowed else [], by=registry) as registries:
            error = refusal(registries, registry)
        check_told(error, tokens.host, hides=["topsecret"])
        assert (tokens.connections > 0) == is_allowed
