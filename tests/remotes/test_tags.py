"""Lists of tags: in linked and unlinked pages, of correct and of malicious registries."""

import itertools
import json
import logging
import re
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from urllib.parse import parse_qs

import pytest

from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import Denied, DistError, InvalidInput, NotFound, Unavailable, Unsupported
from prefect_dist.remotes import Hosts, HostSettings, Registries, RegistrySettings
from tests import images
from tests.fakes.access import Basic, Bearer
from tests.fakes.faults import Action, Answer, Cut, Fault, Redirect, Replace, Response, WithHeaders, WithoutHeaders
from tests.fakes.registry import FakeRegistry
from tests.fakes.scripted import Scripted
from tests.peers.processes import free_port
from tests.peers.registry import LOGIN, CncfRegistry, cncf_registry
from tests.remotes.asking import REPOSITORY, SETTINGS, anonymous, check_message, fetcher, list_requests, user

IMAGE = images.image(seed=1)
LIST = f"/v2/{REPOSITORY}/tags/list"
TAGS = [f"v{number}" for number in range(5)]


def fill(registry: FakeRegistry, tags: list[str] = TAGS) -> None:
    for tag in tags:
        images.load(registry, REPOSITORY, IMAGE, tag)


def listed(registries: Registries, host: FakeRegistry | str) -> list[str]:
    return list(fetcher(registries, host).tags())


def refusal(registries: Registries, registry: FakeRegistry, kind: type[DistError]) -> str:
    with pytest.raises(kind) as caught:
        listed(registries, registry)
    check_message(caught.value, f"tags of {registry.host}/{REPOSITORY}")
    return str(caught.value)


@dataclass(frozen=True)
class _Instead:
    """Another page, with the Link of the page that it replaces."""

    body: bytes

    def apply(self, response: Response) -> Response:
        return response.with_body(self.body)


def _page(body: bytes, following: str) -> Action:
    return Answer(200, (("Link", f'<{following}>; rel="next"'),), body)


class _Endless:
    """Pages that each link to another page; each has a new tag, or none."""

    def __init__(self, *, has_tags: bool) -> None:
        self._has_tags, self._numbers = has_tags, itertools.count()

    def apply(self, response: Response) -> Response:
        number = next(self._numbers)
        body = json.dumps({"tags": [f"v{number}"] if self._has_tags else []}).encode()
        return _page(body, f"{LIST}?page={number}").apply(response)


def _link(to: str) -> Action:
    return WithHeaders((("Link", f'<{to}>; rel="next"'),))


def queries(registry: FakeRegistry) -> list[dict[str, list[str]]]:
    return [parse_qs(one.query) for one in registry.requests]


@pytest.fixture
def paged() -> Iterator[FakeRegistry]:
    """A registry with five tags, two on a page."""
    with FakeRegistry(page_entries=2) as paged:
        fill(paged)
        yield paged


def test_tags_of_one_page_are_listed(registries: Registries, registry: FakeRegistry) -> None:
    fill(registry)
    assert listed(registries, registry) == TAGS
    assert list_requests(registry) == [f"GET {LIST}"]
    assert queries(registry) == [{"n": ["1000"]}]


def test_linked_pages_are_followed(registries: Registries, paged: FakeRegistry) -> None:
    assert listed(registries, paged) == TAGS
    assert queries(paged) == [{"n": ["1000"]}, {"n": ["1000"], "last": ["v1"]}, {"n": ["1000"], "last": ["v3"]}]


def test_pages_are_requested_as_the_caller_reads_on(registries: Registries, paged: FakeRegistry) -> None:
    with closing(fetcher(registries, paged).tags()) as tags:  # type: ignore[type-var] # it is a generator
        assert [next(tags), next(tags)] == ["v0", "v1"]
        assert len(paged.requests) == 1
        assert next(tags) == "v2"
        assert len(paged.requests) == 2


def test_a_rejected_page_size_is_lowered_for_the_whole_run(registries: Registries) -> None:
    tags = sorted(f"v{number}" for number in range(250))
    with FakeRegistry(max_names=100) as registry:
        fill(registry, tags)
        images.load(registry, "other/app", IMAGE, "v1")
        assert listed(registries, registry) == tags
        assert list(registries.open_source(Reference.parse(f"{registry.host}/other/app:1")).tags()) == ["v1"]
        numbers = [parse_qs(one.query)["n"] for one in registry.requests]
        assert numbers == [["1000"], ["100"], ["100"], ["100"], ["100"]]


@pytest.mark.parametrize(
    ("count", "lasts"), [(5, [None, "v1", "v3"]), (4, [None, "v1", "v3"]), (3, [None, "v1"])], ids=["odd", "even", "short"]
)
def test_a_full_page_without_a_link_is_followed_by_a_request_for_more(
    registries: Registries, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch, count: int, lasts: list[str | None]
) -> None:
    # "A Link header MAY be included": a registry that sends a full page may have more
    monkeypatch.setattr("prefect_dist.remotes.sizes.PAGE_NAMES", 2)
    fill(registry, TAGS[:count])
    registry.inject(Fault(nth=None, action=WithoutHeaders(("Link",))))
    assert listed(registries, registry) == TAGS[:count]
    assert queries(registry) == [{"n": ["2"]} | ({"last": [last]} if last else {}) for last in lasts]


@pytest.mark.parametrize("page", [2, 5])
def test_a_registry_that_ignores_the_page_size_is_listed_completely(
    registries: Registries, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr("prefect_dist.remotes.sizes.PAGE_NAMES", page)
    fill(registry)
    registry.inject(Fault(nth=None, action=Answer(200, (), json.dumps({"tags": TAGS}).encode())))
    assert listed(registries, registry) == TAGS
    assert len(registry.requests) == (2 if page == len(TAGS) else 1)


@pytest.mark.parametrize("body", [b'{"name": "team/app", "tags": null}', b'{"tags": []}'])
def test_a_repository_without_tags_yields_nothing(registries: Registries, registry: FakeRegistry, body: bytes) -> None:
    registry.inject(Fault(nth=None, action=Answer(200, (), body)))
    assert listed(registries, registry) == []
    assert len(registry.requests) == 1


def test_each_tag_is_yielded_once(registries: Registries, paged: FakeRegistry) -> None:
    paged.inject(Fault(nth=2, action=_Instead(b'{"tags": ["v1", "v2", "v2", "v3"]}')))
    assert listed(registries, paged) == TAGS


def test_an_empty_page_does_not_end_the_list(registries: Registries, paged: FakeRegistry) -> None:
    paged.inject(Fault(nth=2, action=_Instead(b'{"tags": null}')))
    assert listed(registries, paged) == ["v0", "v1", "v4"]


# Missing or inaccessible lists.


def test_an_unknown_repository_is_not_found(registries: Registries, registry: FakeRegistry) -> None:
    assert "not found" in refusal(registries, registry, NotFound)
    assert list_requests(registry) == [f"GET {LIST}"]


@pytest.mark.parametrize(("status", "kind"), [(401, Denied), (403, Denied), (429, Unavailable), (500, Unavailable)])
def test_an_error_of_the_registry_is_reported(
    registries: Registries, paged: FakeRegistry, status: int, kind: type[DistError]
) -> None:
    paged.inject(Fault(nth=2, action=Answer(status, (), b"{}")))
    assert str(status) in refusal(registries, paged, kind)


@pytest.mark.parametrize("auth", [Basic("me", "secret"), Bearer(user="me", password="secret", refuse_anonymous=True)])
def test_tags_are_listed_with_credentials(auth: Basic | Bearer) -> None:
    with FakeRegistry(auth=auth, page_entries=2) as guarded:
        fill(guarded)
        with Registries(SETTINGS, credentials=lambda *_: user("me", "secret")) as known:
            assert listed(known, guarded) == TAGS


# Malicious registries.


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b"{}",
        b'{"tags": {}}',
        b'{"tags": [1]}',
        b'{"tags": [null]}',
        b'{"tags": [""]}',
        b'{"tags": ["a b"]}',
        b'{"tags": ["../../x"]}',
        b'{"tags": ["\\u001b[2J"]}',
        b'{"tags": ["a\\nb"]}',
        b'{"tags": ["' + b"x" * 129 + b'"]}',
    ],
)
def test_a_page_without_a_list_of_tags_is_an_error(registries: Registries, registry: FakeRegistry, body: bytes) -> None:
    registry.inject(Fault(nth=None, action=Replace(body)))
    refusal(registries, registry, InvalidInput)


def test_a_link_to_another_server_is_not_followed(other: FakeRegistry) -> None:
    fill(other)
    with FakeRegistry(auth=Basic("me", "secret")) as guarded:
        fill(guarded)
        guarded.inject(Fault(nth=None, action=_link(f"http://{other.host}{LIST}?last=v1")))
        with Registries(SETTINGS, credentials=lambda *_: user("me", "secret")) as known:
            assert "on another server" in refusal(known, guarded, Unsupported)
    assert other.requests == []


def test_credentials_do_not_follow_a_redirect_to_another_server(other: FakeRegistry) -> None:
    fill(other)
    with FakeRegistry(auth=Basic("me", "secret")) as guarded:
        guarded.inject(Fault(nth=None, action=Redirect(f"http://{other.host}{{path}}")))
        with Registries(SETTINGS, credentials=lambda *_: user("me", "secret")) as known:
            assert listed(known, guarded) == TAGS
    assert "authorization" not in other.requests[0].headers


@pytest.mark.parametrize("link", [f"{LIST}?n=1000", "?n=1000", f"{LIST}?last=v4"])
def test_links_in_a_circle_are_an_error(registries: Registries, registry: FakeRegistry, link: str) -> None:
    fill(registry)
    registry.inject(Fault(nth=None, action=_link(link)))
    message = refusal(registries, registry, Unsupported)
    assert "circle" in message or "only names of earlier pages" in message
    assert len(registry.requests) <= 2


def test_a_repeated_page_with_a_new_link_is_an_error(registries: Registries, registry: FakeRegistry) -> None:
    fill(registry)
    for number in range(10):
        registry.inject(Fault(nth=number + 1, action=_page(b'{"tags": ["v1"]}', f"{LIST}?page={number}")))
    assert "only names of earlier pages" in refusal(registries, registry, Unsupported)
    assert len(registry.requests) == 2


@pytest.mark.parametrize(("limit", "says"), [("MAX_PAGES", "at most 3 pages"), ("MAX_NAMES", "at most 3 names in ")])
def test_endless_pages_are_an_error(
    registries: Registries, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch, limit: str, says: str
) -> None:
    monkeypatch.setattr(f"prefect_dist.remotes.listing.{limit}", 3)
    for number in range(10):
        page = _page(b'{"tags": ["v%d"]}' % number, f"{LIST}?page={number}")
        registry.inject(Fault(nth=number + 1, action=page))
    fill(registry)
    assert says in refusal(registries, registry, Unsupported)
    assert len(registry.requests) == (3 if limit == "MAX_PAGES" else 4)


def test_endless_pages_without_tags_are_an_error(
    registries: Registries, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_dist.remotes.listing.MAX_BYTES", 3000)
    for number in range(10):
        page = _page(b'{"tags": []' + b" " * 988 + b"}", f"{LIST}?page={number}")
        registry.inject(Fault(nth=number + 1, action=page))
    fill(registry)
    assert " in 3000 bytes, got more" in refusal(registries, registry, Unsupported)
    assert len(registry.requests) == 4


def test_empty_pages_without_end_are_given_up_soon(registries: Registries, registry: FakeRegistry) -> None:
    fill(registry)
    registry.inject(Fault(nth=None, action=_Endless(has_tags=False)))
    assert "100 pages in a row have no new name" in refusal(registries, registry, Unsupported)
    assert len(registry.requests) == 100


def test_a_list_that_takes_too_long_is_given_up(
    registries: Registries, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_dist.remotes.listing.MAX_SECONDS", 0.2)
    fill(registry)
    registry.inject(Fault(nth=None, action=_Endless(has_tags=True)))
    message = refusal(registries, registry, Unavailable)
    assert re.search(
        r"expected the whole list within 0.2 s, got (\d+) names in \1 pages; try again, or name the wanted items", message
    )
    assert 1 < len(registry.requests) < 10_000


def test_a_page_that_arrives_too_slowly_is_given_up(registries: Registries, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_dist.remotes.listing.MAX_SECONDS", 0.3)

    def trickle() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
        for _ in range(500):
            yield b" "
            time.sleep(0.01)

    with Scripted(trickle()) as slow:
        with pytest.raises(Unavailable, match=r"expected the whole list within 0\.3 s, got 0 names in 0 pages;"):
            list(fetcher(registries, slow.host).tags())
        assert slow.sent[0] < 500


def test_the_delays_of_the_throttle_do_not_count(registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_dist.remotes.listing.MAX_SECONDS", 1.0)
    fill(registry)
    registry.inject(Fault(times=8, action=_Endless(has_tags=True)))
    hosts = Hosts(named={registry.host: HostSettings(per_second=4)})
    with Registries(replace(SETTINGS, hosts=hosts), credentials=anonymous) as registries:
        began = time.monotonic()
        assert listed(registries, registry) == [f"v{number}" for number in range(8)]
        assert time.monotonic() - began > 1.5


def test_an_endless_page_is_an_error(registries: Registries, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_dist.remotes.listing.MAX_PAGE_BYTES", 1000)
    registry.inject(Fault(action=WithoutHeaders(("Content-Length",))))
    registry.inject(Fault(action=Replace(b'{"tags": []' + b" " * 1_000_000 + b"}")))
    assert "at most 1000 bytes" in refusal(registries, registry, Unsupported)


def test_an_interrupted_page_is_unavailable(registries: Registries, registry: FakeRegistry) -> None:
    fill(registry)
    registry.inject(Fault(action=Cut(10)))
    refusal(registries, registry, Unavailable)


# Registry mirrors: a mirror has only the tags that were pulled through it.


@pytest.fixture
def mirror(other: FakeRegistry) -> FakeRegistry:
    fill(other, ["v1"])
    return other


def through(mirror: FakeRegistry, host: str) -> Registries:
    hosts = Hosts(named={host: HostSettings(mirrors=(f"127.0.0.1:{free_port()}", mirror.host))})
    return Registries(RegistrySettings(hosts=hosts, connect_timeout_s=10, read_timeout_s=10), credentials=anonymous)


def test_tags_are_listed_by_the_registry_and_not_by_a_mirror(paged: FakeRegistry, mirror: FakeRegistry) -> None:
    with through(mirror, paged.host) as found:
        assert listed(found, paged) == TAGS
    assert mirror.requests == []


@pytest.mark.parametrize("action", [Answer(404, (), b"{}"), Answer(401), Answer(500), Answer(429), Replace(b"<html>")])
@pytest.mark.parametrize("nth", [1, 2])
def test_an_error_response_of_the_registry_is_final(
    paged: FakeRegistry, mirror: FakeRegistry, action: Action, nth: int
) -> None:
    paged.inject(Fault(nth=nth, action=action))
    with through(mirror, paged.host) as found, pytest.raises(DistError) as caught:
        listed(found, paged)
    check_message(caught.value, paged.host)
    assert mirror.requests == []


def test_a_mirror_lists_the_tags_if_the_registry_is_unreachable(mirror: FakeRegistry, caplog: pytest.LogCaptureFixture) -> None:
    host = f"127.0.0.1:{free_port()}"
    with through(mirror, host) as found, caplog.at_level(logging.WARNING):
        assert listed(found, host) == ["v1"]
    (warning,) = caplog.messages
    assert f"tags of {host}/{REPOSITORY}: Connection refused" in warning
    assert f"using the tags of the registry mirror {mirror.host}/{REPOSITORY}" in warning


def test_the_error_of_the_registry_is_raised_if_no_mirror_lists_tags(other: FakeRegistry) -> None:
    host = f"127.0.0.1:{free_port()}"
    with through(other, host) as found, pytest.raises(Unavailable) as caught:
        listed(found, host)
    check_message(caught.value, host, "Connection refused")


# The real registry.


@pytest.fixture(scope="module")
def cncf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CncfRegistry]:
    with cncf_registry(tmp_path_factory.mktemp("cncf"), basic_auth=True) as cncf:
        for tag in TAGS:
            images.push(cncf.host, REPOSITORY, IMAGE, tag, login=LOGIN)
        yield cncf


def test_tags_of_the_cncf_registry_are_listed(cncf: CncfRegistry) -> None:
    with Registries(SETTINGS, credentials=lambda *_: user(*LOGIN)) as known:
        before = len(cncf.requests())
        assert sorted(listed(known, cncf.host)) == TAGS
        assert [one.path for one in cncf.requests(at_least=before + 2)[before:]] == [LIST] * 2  # 401, 200
        with pytest.raises(NotFound, match="NAME_UNKNOWN"):
            list(known.open_source(Reference.parse(f"{cncf.host}/nobody/has")).tags())
