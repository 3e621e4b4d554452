import json
from collections.abc import Generator
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dist.ocispec.errors import Denied, DistError, InvalidInput, Unavailable
from prefect_dist.remotes import Credentials, Origin
from prefect_dist.remotes.credentials import RegistryLogin
from prefect_dist.remotes.token import Token, Tokens, TokenServer, merge_scopes, pull_scope, push_scope
from tests.remotes.asking import check_message, user

SECRET, IDENTITY = "hunter2hunter2", "identity-identity"
SECRETS = [SECRET, IDENTITY, user("me", SECRET).basic().removeprefix("Basic ")]
HOST = "registry.example:5000"
SERVER = TokenServer(realm=httpx.URL("https://auth.example/token?account=a"), service="registry.example")
SCOPES = "repository:a/new:pull,push repository:a/old:pull"
Ask = Generator[httpx.Request, httpx.Response, Token]


def ask(tokens: Tokens, *answers: tuple[int, dict[str, Any]], server: TokenServer = SERVER) -> tuple[list[str], Token | None]:
    """Fetch a token with these responses; return the requests in short form, and the token."""
    flow = tokens.fetch_token(server, SCOPES)
    sent: list[str] = []
    try:
        request = next(flow)
        for status, document in answers:
            sent.append(short(request))
            request = flow.send(httpx.Response(status, stream=httpx.ByteStream(json.dumps(document).encode()), request=request))
        sent.append(short(request))
    except StopIteration as stop:
        return sent, stop.value
    flow.close()
    return sent, None


def short(request: httpx.Request) -> str:
    """The method, and the kind of credentials."""
    fields = form(request)
    return f"{request.method} {fields.get('refresh_token') or fields.get('password') or request.headers.get('authorization')}"


def form(request: httpx.Request) -> dict[str, str]:
    pairs = parse_qsl(request.content.decode())
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def refusal(tokens: Tokens, *answers: tuple[int, dict[str, Any]]) -> DistError:
    with pytest.raises(DistError) as caught:
        ask(tokens, *answers)
    check_message(caught.value, HOST, hides=SECRETS)
    return caught.value


GOOD = (200, {"access_token": "abc", "expires_in": 300})
BY_POST, BY_GET = f"POST {SECRET}", f"GET {user('me', SECRET).basic()}"


# Scopes.


@pytest.mark.parametrize(
    ("scopes", "merged"),
    [
        ((), ""),
        (("", " "), ""),
        ((pull_scope("a/b"),), "repository:a/b:pull"),
        ((push_scope("a/b"),), "repository:a/b:pull,push"),
        ((pull_scope("a/b"), push_scope("a/b")), "repository:a/b:pull,push"),
        ((push_scope("b"), pull_scope("a")), "repository:a:pull repository:b:pull,push"),
        (
            ("repository:b:push,pull repository:a:pull", "repository:b:delete"),
            "repository:a:pull repository:b:delete,pull,push",
        ),
        (
            ("repository:host.example:5000/a:pull", "repository:host.example:5000/a:push"),
            "repository:host.example:5000/a:pull,push",
        ),
        (("registry:catalog:*", "aws", "aws"), "aws registry:catalog:*"),
        (("repository:a:", "repository:a:pull"), "repository:a:pull"),
    ],
)
def test_scopes_are_merged(scopes: tuple[str, ...], merged: str) -> None:
    assert merge_scopes(*scopes) == merged


@given(st.lists(st.from_regex(r"(repository:)?[ab](:5000/c)?:(pull|push|pull,push|)", fullmatch=True)))
def test_merging_scopes_is_idempotent_and_independent_of_order(scopes: list[str]) -> None:
    once = merge_scopes(*scopes)
    assert merge_scopes(once) == once == merge_scopes(*reversed(scopes)) == merge_scopes(*scopes, *scopes)


# Requests.


def test_the_form_has_a_password() -> None:
    request = next(Tokens(RegistryLogin(host=HOST, credentials=user("me", SECRET))).fetch_token(SERVER, SCOPES))
    assert (request.method, request.url) == ("POST", SERVER.realm)
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert "authorization" not in request.headers
    common = {"service": "registry.example", "client_id": "prefect-dist", "scope": SCOPES}
    assert form(request) == {"grant_type": "password", "username": "me", "password": SECRET, **common}


def test_the_form_has_an_identity_token() -> None:
    request = next(Tokens(RegistryLogin(host=HOST, credentials=Credentials("", "", IDENTITY))).fetch_token(SERVER, SCOPES))
    common = {"service": "registry.example", "client_id": "prefect-dist", "scope": SCOPES}
    assert form(request) == {"grant_type": "refresh_token", "refresh_token": IDENTITY, **common}


@pytest.mark.parametrize("credentials", [None, user("me", SECRET)])
def test_the_query_has_service_and_scopes(credentials: Credentials | None) -> None:
    flow = Tokens(RegistryLogin(host=HOST, credentials=credentials)).fetch_token(SERVER, SCOPES)
    request = next(flow)
    if credentials is not None:
        request = flow.send(httpx.Response(405, request=request))
    assert (request.method, request.url.host, request.content) == ("GET", "auth.example", b"")
    assert request.url.params.multi_items() == [
        ("account", "a"),
        ("scope", "repository:a/new:pull,push"),
        ("scope", "repository:a/old:pull"),
        ("service", "registry.example"),
    ]
    assert request.headers.get("authorization") == (credentials.basic() if credentials else None)


def test_a_missing_service_and_empty_scopes_are_omitted() -> None:
    nothing = TokenServer(realm=SERVER.realm, service=None)
    assert dict(next(Tokens(RegistryLogin(host=HOST)).fetch_token(nothing, "")).url.params) == {"account": "a"}
    assert form(next(Tokens(RegistryLogin(host=HOST, credentials=user("me", SECRET))).fetch_token(nothing, ""))).keys() == {
        "client_id",
        "grant_type",
        "password",
        "username",
    }


# The order of POST and GET.


@pytest.mark.parametrize("status", [400, 401, 404, 405])
def test_a_server_that_refuses_post_gets_only_get_requests(status: int) -> None:
    tokens = Tokens(RegistryLogin(host=HOST, credentials=user("me", SECRET)))
    assert ask(tokens, (status, {}), GOOD)[0] == [BY_POST, BY_GET]
    assert ask(tokens, GOOD)[0] == [BY_GET]
    other = TokenServer(realm=SERVER.realm, service="another")
    assert ask(tokens, GOOD, server=other)[0] == [BY_POST]


@pytest.mark.parametrize(("status", "kind"), [(403, Denied), (429, Unavailable), (503, Unavailable), (422, InvalidInput)])
def test_other_refusals_of_post_are_final(status: int, kind: type[DistError]) -> None:
    assert isinstance(refusal(Tokens(RegistryLogin(host=HOST, credentials=user("me", SECRET))), (status, {})), kind)


def test_a_failing_get_does_not_prove_that_post_is_refused() -> None:
    tokens = Tokens(RegistryLogin(host=HOST, credentials=user("me", SECRET)))
    assert isinstance(refusal(tokens, (404, {}), (503, {})), Unavailable)
    assert ask(tokens, GOOD)[0] == [BY_POST]


def test_a_refresh_token_is_used_from_then_on() -> None:
    tokens = Tokens(RegistryLogin(host=HOST, credentials=user("me", SECRET)))
    first, second = (f"refresh-token-{number}" for number in (1, 2))
    assert ask(tokens, (200, {"access_token": "abc", "refresh_token": first}))[0] == [BY_POST]
    assert ask(tokens, (200, {"access_token": "abc", "refresh_token": second}))[0] == [f"POST {first}"]
    assert ask(tokens, GOOD)[0] == [f"POST {second}"]
    assert ask(tokens, server=TokenServer(realm=httpx.URL("https://evil.example/"), service=None))[0] == [BY_POST]


@pytest.mark.parametrize("status", [400, 401])
def test_an_expired_refresh_token_is_forgotten(status: int) -> None:
    tokens = Tokens(RegistryLogin(host=HOST, credentials=user("me", SECRET)))
    ask(tokens, (200, {"access_token": "abc", "refresh_token": "ended"}))
    assert ask(tokens, (status, {}), GOOD)[0] == ["POST ended", BY_POST]
    assert ask(tokens, GOOD)[0] == [BY_POST]


def test_anonymous_requests_send_no_credentials() -> None:
    tokens = Tokens(RegistryLogin(host=HOST))
    for _ in range(2):
        assert ask(tokens, (200, {"token": "abc", "refresh_token": "def"}))[0] == ["GET None"]


def test_an_identity_token_comes_before_a_password() -> None:
    tokens = Tokens(RegistryLogin(host=HOST, credentials=Credentials("me", SECRET, IDENTITY)))
    assert ask(tokens, (401, {}), (404, {}), GOOD)[0] == [f"POST {IDENTITY}", BY_POST, BY_GET]


def test_an_identity_token_returned_as_refresh_token_is_tried_once() -> None:
    tokens = Tokens(RegistryLogin(host=HOST, credentials=Credentials("", "", IDENTITY)))
    ask(tokens, (200, {"access_token": "abc", "refresh_token": IDENTITY}))
    assert isinstance(refusal(tokens, (401, {})), Denied)


def test_an_identity_token_is_used_again_after_the_refresh_token_that_it_gave() -> None:
    tokens = Tokens(RegistryLogin(host=HOST, credentials=Credentials("", "", IDENTITY)))
    ask(tokens, (200, {"access_token": "abc", "refresh_token": "ended"}))
    for expected in (["POST ended", f"POST {IDENTITY}"], [f"POST {IDENTITY}"]):
        assert ask(tokens, *[(401, {})] * (len(expected) - 1), GOOD)[0] == expected


# Refusals.


def test_a_wrong_password_is_not_tried_again() -> None:
    tokens = Tokens(RegistryLogin(host=HOST, credentials=Credentials("me", SECRET, origin=Origin("here", "mend it"))))
    error = refusal(tokens, (401, {}), (401, {"errors": [{"code": "UNAUTHORIZED", "message": "2FA needs a token"}]}))
    assert isinstance(error, Denied)
    check_message(
        error, f"{HOST}: the password of user 'me' (from here) was rejected; mend it (GET ", "UNAUTHORIZED: 2FA needs a token"
    )
    again = refusal(tokens)
    assert (type(again), str(again)) == (type(error), str(error))
    assert again is not error


@pytest.mark.parametrize("status", [400, 401, 404, 405])
def test_a_rejected_identity_token_is_reported(status: int) -> None:
    error = refusal(Tokens(RegistryLogin(host=HOST, credentials=Credentials("me", "", IDENTITY))), (status, {}))
    assert isinstance(error, Denied)
    check_message(
        error, f"{HOST}: the identity token of user 'me' (from the caller) was rejected; use other credentials", str(status)
    )


def test_a_refusal_of_some_scopes_does_not_affect_others() -> None:
    tokens = Tokens(RegistryLogin(host=HOST))
    assert isinstance(refusal(tokens, (401, {})), Denied)
    next(tokens.fetch_token(SERVER, "repository:another:pull"))


def test_a_temporary_failure_is_not_remembered() -> None:
    tokens = Tokens(RegistryLogin(host=HOST))
    assert isinstance(refusal(tokens, (503, {})), Unavailable)
    assert ask(tokens, GOOD)[0] == ["GET None"]


def test_a_strange_user_name_stays_in_one_line() -> None:
    refusal(Tokens(RegistryLogin(host=HOST, credentials=user("me\r\nyou\x1b[0m" + "x" * 5000, SECRET))), (401, {}), (401, {}))


def test_no_representation_shows_a_secret() -> None:
    tokens = Tokens(RegistryLogin(host=HOST, credentials=user("me", SECRET)))
    _, token = ask(tokens, (200, {"access_token": "abc-abc-abc", "refresh_token": IDENTITY}))
    assert token is not None
    for one in (tokens, token, token.__class__):
        assert not any(secret in f"{one!r} {one}" for secret in [*SECRETS, "abc-abc-abc"])
