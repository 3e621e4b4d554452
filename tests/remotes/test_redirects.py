"""Redirects: content is often at another server, which must not get the credentials of the registry."""

import logging
from collections.abc import Iterator
from urllib.parse import parse_qsl

import pytest

from prefect_dist.ocispec.errors import Denied, DistError, Unavailable
from prefect_dist.remotes import Registries
from tests.fakes.access import Basic, Bearer
from tests.fakes.faults import (
    Action,
    Answer,
    Cut,
    Fault,
    Redirect,
    Reset,
    Stall,
    WithHeaders,
)
from tests.fakes.registry import FakeRegistry
from tests.peers.processes import free_port
from tests.remotes.asking import (
    BLOB,
    HASTY,
    REPOSITORY,
    SETTINGS,
    anonymous,
    check_message,
    descriptor,
    fetcher,
    ranges,
    read,
    read_until_error,
    user,
)

WANTED = descriptor(BLOB)
SECRET = "f1d2c3b4a5"
SIGNED = f"X-Amz-Signature={SECRET}&X-Amz-Expires=300&{SECRET}"


@pytest.fixture(params=["basic", "bearer"])
def guarded(request: pytest.FixtureRequest) -> Iterator[FakeRegistry]:
    """A registry that requires credentials."""
    auth = Basic("me", "secret") if request.param == "basic" else Bearer(user="me", password="secret", refuse_anonymous=True)
    with FakeRegistry(auth=auth) as guarded:
        guarded.put_blob(REPOSITORY, BLOB)
        yield guarded


@pytest.fixture
def known() -> Iterator[Registries]:
    """All registries, with the credentials of the guarded registry for every host."""
    with Registries(SETTINGS, credentials=lambda *_: user("me", "secret")) as known:
        yield known


def redirect(registry: FakeRegistry, location: str, *, nth: int | None = None, status: int = 307) -> None:
    registry.put_blob(REPOSITORY, BLOB)
    registry.inject(Fault(path=".*/blobs/.*", nth=nth, action=Redirect(location, status)))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("offset", [0, 1000])
def test_the_target_gets_the_range_and_no_secret(
    known: Registries, guarded: FakeRegistry, other: FakeRegistry, status: int, offset: int
) -> None:
    other.put_blob(REPOSITORY, BLOB)
    redirect(guarded, f"http://{other.host}{{path}}?{SIGNED}", status=status)
    assert read(fetcher(known, guarded), WANTED, offset=offset) == BLOB[offset:]
    (got,) = other.requests
    assert (got.method, got.query) == ("GET", SIGNED)
    assert got.headers.get("range") == (f"bytes={offset}-{len(BLOB) - 1}" if offset else None)
    assert {"authorization", "cookie"}.isdisjoint(got.headers)
    assert got.headers["host"] == other.host
    assert any("authorization" in one.headers for one in guarded.requests)


def test_a_target_that_challenges_gets_no_credentials(known: Registries, guarded: FakeRegistry) -> None:
    with FakeRegistry(auth=Basic("me", "secret")) as other:
        other.put_blob(REPOSITORY, BLOB)
        redirect(guarded, f"http://{other.host}{{path}}?{SIGNED}")
        _, error = read_until_error(fetcher(known, guarded), WANTED)
        assert isinstance(error, Denied)
        check_message(error, other.host, hides=[SECRET, "secret"])
        (got,) = other.requests
    assert "authorization" not in got.headers


def test_a_challenge_of_a_target_causes_no_token_request(known: Registries, guarded: FakeRegistry) -> None:
    with FakeRegistry(auth=Bearer()) as other:
        redirect(guarded, f"http://{other.host}{{path}}")
        _, error = read_until_error(fetcher(known, guarded), WANTED)
        assert isinstance(error, Denied)
        assert [one.path for one in other.requests] == [guarded.requests[-1].path]


def test_a_resumed_transfer_starts_at_the_registry_again(
    registries: Registries, registry: FakeRegistry, other: FakeRegistry
) -> None:
    # what was signed for one request may have expired
    other.put_blob(REPOSITORY, BLOB)
    other.inject(Fault(action=Cut(1000)))
    redirect(registry, f"http://{other.host}{{path}}?n=1", nth=1)
    redirect(registry, f"http://{other.host}{{path}}?n=2", nth=2)
    assert read(fetcher(registries, registry), WANTED) == BLOB
    assert [one.query for one in other.requests] == ["n=1", "n=2"]
    rest = f"bytes=1000-{len(BLOB) - 1}"
    assert ranges(registry) == ranges(other) == [None, rest]


@pytest.mark.parametrize("status", [400, 403])
@pytest.mark.parametrize("cut", [None, 1000])
def test_an_expired_url_is_requested_again(
    registries: Registries, registry: FakeRegistry, other: FakeRegistry, status: int, cut: int | None
) -> None:
    # the registry hands out one signed URL until it notices, too: before the first byte, or after a break
    other.put_blob(REPOSITORY, BLOB)
    good = 0 if cut is None else 1
    if cut is not None:
        other.inject(Fault(action=Cut(cut)))
    other.inject(Fault(nth=good + 1, action=Answer(status, (), b"<Error><Code>AccessDenied</Code></Error>")))
    registry.put_blob(REPOSITORY, BLOB)
    for nth in range(1, good + 3):
        signed = f"n={1 if nth <= good + 1 else 2}"
        registry.inject(Fault(path=".*/blobs/.*", nth=nth, action=Redirect(f"http://{other.host}{{path}}?{signed}")))
    assert read(fetcher(registries, registry), WANTED) == BLOB
    rest = [f"bytes={cut}-{len(BLOB) - 1}" if cut else None] * 2
    assert ranges(registry) == ranges(other) == [*[None] * good, *rest]
    assert [one.query for one in other.requests] == ["n=1"] * (good + 1) + ["n=2"]
    assert [one.status for one in other.requests][-2:] == [status, 206 if cut else 200]


def test_a_target_that_keeps_refusing_gets_two_requests(
    registries: Registries, registry: FakeRegistry, other: FakeRegistry
) -> None:
    other.put_blob(REPOSITORY, BLOB)
    other.inject(Fault(nth=None, action=Answer(403)))
    redirect(registry, f"http://{other.host}{{path}}?{SIGNED}")
    _, error = read_until_error(fetcher(registries, registry), WANTED)
    assert isinstance(error, Denied)
    check_message(error, other.host, hides=[SECRET])
    assert (len(registry.requests), len(other.requests)) == (2, 2)


def test_a_registry_that_refuses_gets_one_request(registries: Registries, registry: FakeRegistry) -> None:
    registry.put_blob(REPOSITORY, BLOB)
    redirect(registry, "{path}?again=1", nth=1)
    registry.inject(Fault(path=".*/blobs/.*", nth=2, action=Answer(403)))
    _, error = read_until_error(fetcher(registries, registry), WANTED)
    assert isinstance(error, Denied)
    assert len(registry.requests) == 2


def test_a_relative_redirect_keeps_the_credentials(known: Registries, guarded: FakeRegistry) -> None:
    redirect(guarded, "{path}?again=1", nth=1)
    assert read(fetcher(known, guarded), WANTED) == BLOB
    last = guarded.requests[-1]
    assert (last.query, last.status) == ("again=1", 200)
    assert "authorization" in last.headers


@pytest.mark.parametrize(
    "query",
    [
        "sig=a%2Fb%2B%3D%3D&se=2030-01-01T00%3A00%3A00Z",
        "a=b+c&d=e%20f",
        "response-content-disposition=attachment%3B%20filename%3D%22x%22",
        "Policy=eyJ~_-__&Key-Pair-Id=APK",
        "sig=a%2fb",
        "x=a/b:c@d!$'()*,;~-._",
        "empty=&bare&=value",
    ],
)
def test_a_signed_query_is_sent_unchanged(
    registries: Registries, registry: FakeRegistry, other: FakeRegistry, query: str
) -> None:
    other.put_blob(REPOSITORY, BLOB)
    redirect(registry, f"http://{other.host}{{path}}?{query}")
    assert read(fetcher(registries, registry), WANTED) == BLOB
    sent = other.requests[0].query
    assert parse_qsl(sent, keep_blank_values=True) == parse_qsl(query, keep_blank_values=True)
    assert sent == query.replace("%2f", "%2F")  # escapes are equal in either case, RFC 3986, 6.2.2.1


def test_a_redirect_loop_ends(registries: Registries, registry: FakeRegistry) -> None:
    redirect(registry, f"{{path}}?{SIGNED}")
    _, error = read_until_error(fetcher(registries, registry), WANTED)
    assert isinstance(error, Unavailable)
    check_message(error, str(WANTED.digest), "redirect", hides=[SECRET])
    assert len(registry.requests) <= 21


@pytest.mark.parametrize(
    "location",
    [
        f"ftp://example.invalid/?{SIGNED}",
        f"file:///etc/passwd?{SIGNED}",
        f"http://?{SIGNED}",
        f"http://127.0.0.1:99999/?{SIGNED}",
        f"http://[::1/?{SIGNED}",
        f"//{'a' * 64}.invalid/?{SIGNED}",
        f"http://a%20b/?{SIGNED}",
        f"http://exa<mple/?{SIGNED}",
        f"http://.../?{SIGNED}",
        f"javascript:alert(1)?{SIGNED}",
        "http://127.0.0.1:1/?{SIGNED}\x00",
    ],
)
def test_a_redirect_to_an_invalid_url_is_an_error(registries: Registries, registry: FakeRegistry, location: str) -> None:
    redirect(registry, location)
    _, error = read_until_error(fetcher(registries, registry), WANTED)
    assert isinstance(error, DistError)
    check_message(error, str(WANTED.digest), hides=[SECRET])


@pytest.mark.parametrize(
    "action",
    [
        Answer(403, (), b'{"errors": [{"code": "EXPIRED"}]}'),
        Answer(404),
        Answer(429),
        Answer(503),
        Answer(307, (("Location", f"http://127.0.0.1:1/?{SIGNED}"),)),
        Cut(0),
        Reset(0),
        Stall(0),
        WithHeaders((("Content-Encoding", "gzip"),)),
        WithHeaders((("Content-Length", "5"),)),
    ],
    ids=lambda action: str(action)[:40],
)
def test_no_error_shows_a_signature(registry: FakeRegistry, other: FakeRegistry, action: Action) -> None:
    other.put_blob(REPOSITORY, BLOB)
    other.inject(Fault(nth=None, action=action))
    redirect(registry, f"http://user:{SECRET}@{other.host}{{path}}?{SIGNED}#{SECRET}")
    with Registries(HASTY, credentials=anonymous) as registries:
        arrived, error = read_until_error(fetcher(registries, registry), WANTED)
    assert error is not None
    check_message(error, str(WANTED.digest), hides=[SECRET])
    assert BLOB.startswith(arrived)


def test_no_log_line_shows_a_signature(
    registries: Registries, registry: FakeRegistry, other: FakeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "prefect_dist.remotes")
    other.put_blob(REPOSITORY, BLOB)
    other.inject(Fault(action=Cut(1000)))
    redirect(registry, f"http://user:{SECRET}@{other.host}{{path}}?{SIGNED}")
    assert read(fetcher(registries, registry), WANTED) == BLOB
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("prefect_dist.remotes")]
    assert sum(other.host in one for one in messages) == 2
    assert not any(SECRET in one for one in messages)


def test_a_connection_error_shows_no_signature(registries: Registries, registry: FakeRegistry) -> None:
    redirect(registry, f"http://127.0.0.1:{free_port()}/data?{SIGNED}")
    _, error = read_until_error(fetcher(registries, registry), WANTED)
    assert isinstance(error, Unavailable)
    check_message(error, "Connection refused", "X-Amz-Signature=…", hides=[SECRET])


def test_cookies_are_not_sent_back(registries: Registries, registry: FakeRegistry, other: FakeRegistry) -> None:
    cookie = WithHeaders((("Set-Cookie", "session=1; Path=/"),))
    other.put_blob(REPOSITORY, BLOB)
    redirect(registry, f"http://{other.host}{{path}}", nth=1)
    for one in (registry, other):
        one.inject(Fault(nth=None, action=cookie))
    for _ in range(3):
        assert read(fetcher(registries, registry), WANTED) == BLOB
    assert len(registry.requests) == 3
    assert all("cookie" not in one.headers for one in (*registry.requests, *other.requests))
