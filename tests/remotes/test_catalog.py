"""Lists of repositories: the differences from lists of tags, at registries with and without a catalog."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from prefect_dist.ocispec.errors import Denied, DistError, InvalidInput, NotFound, Unavailable, Unsupported
from prefect_dist.remotes import Credentials, Hosts, HostSettings, Registries, RegistrySettings
from tests import images
from tests.fakes.access import Basic, Bearer
from tests.fakes.faults import Action, Answer, Fault, Replace, WithHeaders, WithoutHeaders
from tests.fakes.registry import FakeRegistry
from tests.peers.registry import CncfRegistry, cncf_registry
from tests.peers.token_server import PASSWORD, USER, TokenServer
from tests.remotes.asking import SETTINGS, anonymous, check_message, fetcher, list_requests, user

IMAGE = images.image(seed=1)
CATALOG = "/v2/_catalog"
SCOPE = "registry:catalog:*"
NAMES = ["app", "team/app", "team/base", "x/y/z"]


def fill(registry: FakeRegistry) -> None:
    for name in NAMES:
        images.load(registry, name, IMAGE, "v1")


def refusal(registries: Registries, registry: FakeRegistry, kind: type[DistError]) -> str:
    with pytest.raises(kind) as caught:
        list(registries.list_repositories(registry.host))
    check_message(caught.value, registry.host, hides=["secret"])
    return str(caught.value)


def open_registries(settings: RegistrySettings = SETTINGS) -> Registries:
    return Registries(settings, credentials=lambda *_: user("me", "secret"))


def queries(registry: FakeRegistry) -> list[dict[str, list[str]]]:
    return [parse_qs(one.query) for one in registry.requests]


@pytest.fixture
def paged() -> Iterator[FakeRegistry]:
    """A registry with four repositories, two on a page."""
    with FakeRegistry(page_entries=2) as paged:
        fill(paged)
        yield paged


def test_a_catalog_of_one_page_is_listed(registries: Registries, registry: FakeRegistry) -> None:
    fill(registry)
    assert list(registries.list_repositories(registry.host)) == NAMES
    assert list_requests(registry) == [f"GET {CATALOG}"]
    assert queries(registry) == [{"n": ["1000"]}]


def test_pages_are_requested_as_the_caller_reads_on(registries: Registries, paged: FakeRegistry) -> None:
    with closing(registries.list_repositories(paged.host)) as names:  # type: ignore[type-var] # it is a generator
        assert [next(names), next(names)] == NAMES[:2]
        assert len(paged.requests) == 1
        assert list(names) == NAMES[2:]
    assert queries(paged) == [{"n": ["1000"]}, {"n": ["1000"], "last": ["team/app"]}]


def test_a_full_page_without_a_link_is_followed_by_a_request_for_more(
    registries: Registries, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_dist.remotes.sizes.PAGE_NAMES", 3)
    fill(registry)
    registry.inject(Fault(nth=None, action=WithoutHeaders(("Link",))))
    assert list(registries.list_repositories(registry.host)) == NAMES
    assert queries(registry) == [{"n": ["3"]}, {"n": ["3"], "last": ["team/base"]}]


def test_an_empty_catalog_yields_nothing(registries: Registries, registry: FakeRegistry) -> None:
    assert list(registries.list_repositories(registry.host)) == []


def test_only_repositories_below_the_path_prefix_are_listed(paged: FakeRegistry) -> None:
    # what a reference does not have: docs/reference/registries.md, pathPrefix
    hosts = Hosts(named={paged.host: HostSettings(path_prefix="team/")})
    with Registries(RegistrySettings(hosts=hosts), credentials=anonymous) as found:
        assert list(found.list_repositories(paged.host)) == ["app", "base"]
    assert list_requests(paged) == [f"GET {CATALOG}"] * 2


def test_a_registry_mirror_is_not_asked_for_the_catalog(paged: FakeRegistry, other: FakeRegistry) -> None:
    with Registries(
        RegistrySettings(hosts=Hosts(named={paged.host: HostSettings(mirrors=(other.host,))})), credentials=anonymous
    ) as found:
        assert list(found.list_repositories(paged.host)) == NAMES
    assert other.requests == []


def test_the_registry_chooses_the_page_size_after_it_rejected_ours(registries: Registries, paged: FakeRegistry) -> None:
    paged.inject(Fault(action=Answer(400)))
    assert list(registries.list_repositories(paged.host)) == NAMES
    assert queries(paged) == [{"n": ["1000"]}, {}, {"last": ["team/app"]}]


@pytest.mark.parametrize(("nth", "times"), [(1, 2), (2, 1)], ids=["again", "later"])
def test_any_other_400_is_reported(registries: Registries, paged: FakeRegistry, nth: int, times: int) -> None:
    paged.inject(Fault(nth=nth, times=times, action=Answer(400)))
    assert "400" in refusal(registries, paged, InvalidInput)
    assert len(paged.requests) == 2


# Tokens.


def test_a_token_for_the_catalog_scope_is_requested() -> None:
    with FakeRegistry(auth=Bearer(user="me", password="secret", refuse_anonymous=True), page_entries=2) as guarded:
        fill(guarded)
        with open_registries() as found:
            assert list(found.list_repositories(guarded.host)) == NAMES
            assert list(fetcher(found, guarded).tags()) == ["v1"]
        scopes = [parse_qs(one.query)["scope"] for one in guarded.find_requests("GET", "/token")]
        assert [one.status for one in guarded.requests].count(401) == 2
    assert scopes == [[SCOPE], ["repository:team/app:pull"]]


# Registries without a catalog, or without access to it.


@pytest.mark.parametrize(("status", "kind"), [(401, Denied), (403, Denied), (404, NotFound), (405, InvalidInput)])
def test_a_registry_without_a_catalog_is_reported(
    registries: Registries, registry: FakeRegistry, status: int, kind: type[DistError]
) -> None:
    registry.inject(Fault(nth=None, action=Answer(status, (), b'{"errors": [{"code": "UNSUPPORTED"}]}')))
    message = refusal(registries, registry, kind)
    assert message.startswith(f"repositories of {registry.host}: ")
    assert f"{status} UNSUPPORTED" in message
    assert message.endswith("; the registry has no list of repositories for this user: name the repositories instead")
    assert len(registry.requests) == 1


def test_a_token_without_the_catalog_scope_is_reported() -> None:
    with FakeRegistry(auth=Bearer(user="me", password="secret", withheld=frozenset({"catalog"}))) as guarded:
        with open_registries() as found:
            message = refusal(found, guarded, Denied)
        assert [one.status for one in guarded.find_requests("GET", CATALOG)] == [401, 401]
    assert "name the repositories instead" in message


@pytest.mark.parametrize(("status", "kind"), [(429, Unavailable), (500, Unavailable)])
def test_other_failures_do_not_mention_a_missing_catalog(
    registries: Registries, paged: FakeRegistry, status: int, kind: type[DistError]
) -> None:
    paged.inject(Fault(nth=2, action=Answer(status)))
    assert "name the repositories" not in refusal(registries, paged, kind)


# Malicious registries. test_tags.py has the cases for all lists.


@pytest.mark.parametrize(
    "name",
    ["", "App", "a b", "/a", "a/", "a//b", "../x", "a/../b", "a\\u001b[2J", "a\\nb", "a?b", "a:b", "a" * 256, "_catalog"],
)
def test_an_invalid_repository_name_is_an_error(registries: Registries, registry: FakeRegistry, name: str) -> None:
    registry.inject(Fault(nth=None, action=Replace(f'{{"repositories": ["{name}"]}}'.encode())))
    assert "bad repository" in refusal(registries, registry, InvalidInput)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"tags": []}', b'{"repositories": {}}', b'{"repositories": [1]}'])
def test_a_page_without_a_list_is_an_error(registries: Registries, registry: FakeRegistry, body: bytes) -> None:
    registry.inject(Fault(nth=None, action=Replace(body)))
    refusal(registries, registry, InvalidInput)


def _link(to: Callable[[str], str]) -> Callable[[str], Action]:
    return lambda host: WithHeaders((("Link", f'<{to(host)}>; rel="next"'),))


@pytest.mark.parametrize(
    ("link", "says"),
    [
        (_link(lambda host: f"http://{host}{CATALOG}?last=app"), "on another server"),
        (_link(lambda _: f"{CATALOG}?n=1000"), "circle"),
        (_link(lambda _: f"{CATALOG}?x=1"), "only names of earlier pages"),
    ],
    ids=["elsewhere", "circle", "repeated"],
)
def test_an_invalid_link_is_an_error(other: FakeRegistry, link: Callable[[str], Action], says: str) -> None:
    with FakeRegistry(auth=Basic("me", "secret")) as guarded:
        fill(guarded)
        guarded.inject(Fault(nth=None, action=link(other.host)))
        with open_registries() as found:
            assert says in refusal(found, guarded, Unsupported)
    assert other.requests == []


# The real registry.


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[CncfRegistry, TokenServer]]:
    """A registry that requires tokens, and accepts at most three repositories per page."""
    directory: Path = tmp_path_factory.mktemp("catalog")
    with cncf_registry(directory) as open_to_all:
        for name in NAMES:
            images.push(open_to_all.host, name, IMAGE, "v1")
    with TokenServer(directory) as tokens, cncf_registry(directory, tokens=tokens, most_entries=3) as guarded:
        yield guarded, tokens


def test_the_catalog_of_the_cncf_registry_is_listed(guarded: tuple[CncfRegistry, TokenServer]) -> None:
    registry, tokens = guarded
    before = len(registry.requests())
    with Registries(SETTINGS, credentials=lambda *_: Credentials(USER, PASSWORD)) as found:
        assert list(found.list_repositories(registry.host)) == NAMES
    assert [one.fields["scope"] for one in tokens.requests] == [[SCOPE]]
    statuses = [one.status for one in registry.requests(at_least=before + 4)[before:]]
    assert statuses == [401, 400, 200, 200]


def test_a_denied_catalog_names_the_remedy(guarded: tuple[CncfRegistry, TokenServer]) -> None:
    registry, _ = guarded
    with Registries(SETTINGS, credentials=anonymous) as found, pytest.raises(Denied) as caught:
        list(found.list_repositories(registry.host))
    check_message(caught.value, f"repositories of {registry.host}", "name the repositories instead")


def test_an_empty_and_a_one_page_catalog_of_the_cncf_registry_are_listed(registries: Registries, tmp_path: Path) -> None:
    with cncf_registry(tmp_path) as registry:
        assert list(registries.list_repositories(registry.host)) == []
        images.push(registry.host, "team/app", IMAGE, "v1")
        assert list(registries.list_repositories(registry.host)) == ["team/app"]
        answers = [(one.method, one.status) for one in registry.requests(at_least=2) if one.path == CATALOG]
    assert answers == [("GET", 200)] * 2
