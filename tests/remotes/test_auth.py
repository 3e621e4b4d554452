import json
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pytest

from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import Denied, DistError, InvalidInput, Unavailable
from prefect_dist.remotes import Credentials, Origin, Registries, Source
from prefect_dist.remotes.auth import HostAuth, RegistryAuth, is_same_server
from prefect_dist.remotes.credentials import RegistryLogin
from prefect_dist.remotes.token import pull_scope, push_scope
from prefect_dist.remotes.transport import Urllib3Transport
from tests.fakes.access import Basic, Bearer
from tests.fakes.faults import Answer, Fault, Redirect, WithHeaders
from tests.fakes.registry import FakeRegistry
from tests.fakes.scripted import Scripted
from tests.remotes.asking import (
    BLOB,
    REPOSITORY,
    SETTINGS,
    Clock,
    anonymous,
    check_message,
    descriptor,
    fetcher,
    list_requests,
    read,
    read_until_error,
    user,
)

WANTED = descriptor(BLOB)
SCOPE = f"repository:{REPOSITORY}:pull"
BLOB_PATH = f"/v2/{REPOSITORY}/blobs/{WANTED.digest}"
BLOB_GET, TOKEN_GET, TOKEN_POST = f"GET {BLOB_PATH}", "GET /token", "POST /token"
SECRET = "hunter2hunter2"
SECRETS = [SECRET, b64encode(f"me:{SECRET}".encode()).decode()]
LOGIN = RegistryLogin(host="registry.example", credentials=user("me", SECRET))
THREADS = 50


def serve(auth: Basic | Bearer) -> FakeRegistry:
    registry = FakeRegistry(auth=auth)
    registry.put_blob(REPOSITORY, BLOB)
    return registry


def open_registries(name: str, password: str) -> Registries:
    return Registries(SETTINGS, credentials=lambda *_: user(name, password))


def refusal(registries: Registries, registry: FakeRegistry) -> DistError:
    _, error = read_until_error(fetcher(registries, registry), WANTED)
    assert error is not None
    check_message(error, registry.host, hides=SECRETS)
    return error


def read_by_all(source: Source) -> None:
    with ThreadPoolExecutor(THREADS) as threads:
        assert set(threads.map(lambda _: read(source, WANTED), range(THREADS))) == {BLOB}


# Accepted credentials.


def test_an_anonymous_token_is_fetched_for_a_bearer_challenge(registries: Registries) -> None:
    with serve(Bearer()) as registry:
        for _ in range(3):
            assert read(fetcher(registries, registry), WANTED) == BLOB
        assert list_requests(registry) == [BLOB_GET, TOKEN_GET, BLOB_GET, BLOB_GET, BLOB_GET]
        token = registry.requests[1]
        assert "authorization" not in token.headers
        assert dict(httpx.QueryParams(token.query)) == {"scope": SCOPE, "service": "fake"}


def test_basic_auth_sends_the_password_after_a_challenge() -> None:
    with serve(Basic("me", SECRET)) as registry, open_registries("me", SECRET) as registries:
        for _ in range(2):
            assert read(fetcher(registries, registry), WANTED) == BLOB
        assert [one.status for one in registry.requests] == [401, 200, 200]


def test_credentials_are_sent_to_the_token_server() -> None:
    with (
        serve(Bearer(user="me", password=SECRET, refuse_anonymous=True)) as registry,
        open_registries("me", SECRET) as registries,
    ):
        assert read(fetcher(registries, registry), WANTED) == BLOB
        assert list_requests(registry) == [BLOB_GET, TOKEN_POST, TOKEN_GET, BLOB_GET]  # the server accepts only GET
        first, post, token, second = (one.headers.get("authorization", "") for one in registry.requests)
        assert (first, post, token) == ("", "", user("me", SECRET).basic())
        assert second.startswith("Bearer ")


def test_credentials_are_looked_up_once_for_a_repository() -> None:
    asked_for: list[tuple[str, str]] = []

    def credentials(host: str, repository: str) -> Credentials:
        asked_for.append((host, repository))
        return user("me", SECRET)

    with serve(Basic("me", SECRET)) as registry, Registries(SETTINGS, credentials=credentials) as registries:
        for _ in range(3):
            read(fetcher(registries, registry), WANTED)
        assert asked_for == [(registry.host, REPOSITORY)]


def test_each_repository_gets_its_own_token(registries: Registries) -> None:
    with serve(Bearer()) as registry:
        registry.put_blob("other/app", BLOB)
        other = registries.open_source(Reference.parse(f"{registry.host}/other/app"))
        assert read(fetcher(registries, registry), WANTED) == read(other, WANTED) == BLOB
        scopes = [httpx.QueryParams(one.query)["scope"] for one in registry.find_requests("GET", "/token")]
        assert scopes == [SCOPE, "repository:other/app:pull"]


# Many at once.


def test_one_token_for_all_threads(registries: Registries) -> None:
    with serve(Bearer()) as registry:
        read_by_all(fetcher(registries, registry))
        counts = Counter(list_requests(registry))
        assert counts[TOKEN_GET] == 1
        assert THREADS <= counts[BLOB_GET] <= 2 * THREADS


def test_one_new_token_for_all_threads(registries: Registries) -> None:
    with serve(Bearer()) as registry:
        source = fetcher(registries, registry)
        read(source, WANTED)
        registry.revoke_tokens()
        read_by_all(source)
        assert Counter(list_requests(registry))[TOKEN_GET] == 2


def test_a_failed_token_request_does_not_block_other_threads(registries: Registries) -> None:
    with serve(Bearer()) as registry:
        registry.inject(Fault(path="/token", times=THREADS - 1, action=Answer(503)))
        source = fetcher(registries, registry)
        with ThreadPoolExecutor(THREADS) as threads:
            answers = list(threads.map(lambda _: read_until_error(source, WANTED), range(THREADS)))
        errors = [error for _, error in answers if error is not None]
        assert len(errors) == THREADS - 1
        assert all(isinstance(error, Unavailable) for error in errors)
        assert Counter(list_requests(registry))[TOKEN_GET] == THREADS


def test_an_unreachable_token_server_does_not_block_other_threads(registries: Registries) -> None:
    with serve(Bearer(realm="http://127.0.0.1:1/token")) as registry:
        for _ in range(2):
            error = refusal(registries, registry)
            assert isinstance(error, Unavailable)
            assert "Connection refused" in str(error)


# Tokens that end.


@pytest.fixture
def clock() -> Clock:
    return Clock()


def client(auth: httpx.Auth) -> httpx.Client:
    transport = Urllib3Transport(connect_timeout_s=10, read_timeout_s=10)
    return httpx.Client(transport=transport, auth=auth)


def test_a_token_is_used_until_shortly_before_it_expires(clock: Clock) -> None:
    with serve(Bearer(expires_in=60)) as registry:
        auth = RegistryAuth(HostAuth(RegistryLogin(host=registry.host), clock=clock), SCOPE)
        with client(auth) as asking:
            for now, tokens in ((0, 1), (54, 1), (55, 2), (109, 2), (110, 3)):
                clock.now = 1000.0 + now
                assert asking.get(f"http://{registry.host}{BLOB_PATH}").content == BLOB
                assert len(registry.find_requests("GET", "/token")) == tokens


@pytest.mark.parametrize(
    ("expires_in", "life_s"),
    [
        (3, 1),
        (900, 895),
        (900.5, 895.5),
        ("3600", 3595),
        (None, 55),
        (-1, 55),
        (0, 55),
        (True, 55),
        ("", 55),
        ("soon", 55),
        ("-5", 55),
        ("9" * 5000, 55),
        (["3600"], 55),
    ],
)
def test_expires_in_sets_the_lifetime_of_a_token(clock: Clock, expires_in: object, life_s: float) -> None:
    host = HostAuth(RegistryLogin(host="registry.example"), clock=clock)
    flow = RegistryAuth(host, SCOPE).sync_auth_flow(request())
    challenged(flow, BEARER)
    flow.send(httpx.Response(200, json={"token": "abc", "expires_in": expires_in}))
    clock.now += life_s - 0.01
    assert host.find_header(SCOPE) == "Bearer abc"
    clock.now += 0.02
    assert host.find_header(SCOPE) is None


def test_a_revoked_token_is_replaced(registries: Registries) -> None:
    with serve(Bearer()) as registry:
        source = fetcher(registries, registry)
        read(source, WANTED)
        registry.revoke_tokens()
        assert read(source, WANTED) == BLOB
        assert list_requests(registry) == [BLOB_GET, TOKEN_GET, BLOB_GET] * 2


def test_a_token_that_the_registry_rejects_is_not_requested_again(registries: Registries) -> None:
    with serve(Bearer()) as registry:
        challenge = f'Bearer realm="http://{registry.host}/token",service="fake",error="insufficient_scope"'
        registry.inject(Fault(path=BLOB_PATH, nth=None, action=Answer(401, (("WWW-Authenticate", challenge),))))
        assert isinstance(refusal(registries, registry), Denied)
        assert list_requests(registry) == [BLOB_GET, TOKEN_GET, BLOB_GET]


# Rejected credentials.


def test_a_token_server_rejects_a_wrong_password() -> None:
    with (
        serve(Bearer(user="me", password="right", refuse_anonymous=True)) as registry,
        open_registries("me", SECRET) as registries,
    ):
        error = refusal(registries, registry)
        assert isinstance(error, Denied)
        assert not error.retryable
        check_message(
            error, registry.host, "the password of user 'me' (from the caller) was rejected; use other credentials (GET http://"
        )
        assert list_requests(registry) == [BLOB_GET, TOKEN_POST, TOKEN_GET]
        assert str(refusal(registries, registry)) == str(error)  # no second request: the registry may lock the account
        assert list_requests(registry) == [BLOB_GET, TOKEN_POST, TOKEN_GET, BLOB_GET]


def test_a_wrong_password_is_tried_once_for_all_threads() -> None:
    with (
        serve(Bearer(user="me", password="right", refuse_anonymous=True)) as registry,
        open_registries("me", SECRET) as registries,
    ):
        source = fetcher(registries, registry)
        with ThreadPoolExecutor(THREADS) as threads:
            errors = [error for _, error in threads.map(lambda _: read_until_error(source, WANTED), range(THREADS))]
        assert len({id(error) for error in errors}) == THREADS
        assert all(isinstance(error, Denied) for error in errors)
        counts = Counter(list_requests(registry))
        assert (counts[TOKEN_POST], counts[TOKEN_GET]) == (1, 1)


def test_a_wrong_password_is_reported_with_its_source() -> None:
    with serve(Basic("me", "right")) as registry, open_registries("me", SECRET) as registries:
        error = refusal(registries, registry)
        assert isinstance(error, Denied)
        assert str(error) == (
            f"{registry.host}: the password of user 'me' (from the caller) was rejected; use other credentials "
            "(401 UNAUTHORIZED: authentication required)"
        )
        assert list_requests(registry) == [BLOB_GET] * 2
        assert str(refusal(registries, registry)) == str(error)
        assert list_requests(registry) == [BLOB_GET] * 3


@pytest.mark.parametrize("auth", [Basic("me", "right"), Bearer(user="me", password="right", refuse_anonymous=True)])
def test_all_requests_get_the_same_error_for_a_wrong_password(auth: Basic | Bearer) -> None:
    wrong = Credentials("me", SECRET, origin=Origin("mirror.yaml:3: registries.a", "correct user and pass there"))
    with serve(auth) as registry, Registries(SETTINGS, credentials=lambda *_: wrong) as registries:
        source = fetcher(registries, registry)
        with ThreadPoolExecutor(THREADS) as threads:
            messages = {str(error) for _, error in threads.map(lambda _: read_until_error(source, WANTED), range(THREADS))}
        (one,) = messages
        assert one.startswith(
            f"{registry.host}: the password of user 'me' (from mirror.yaml:3: registries.a) was rejected; "
            "correct user and pass there ("
        )


def test_a_401_after_a_redirect_does_not_mean_a_wrong_password(other: FakeRegistry) -> None:
    with serve(Basic("me", SECRET)) as registry, open_registries("me", SECRET) as registries:
        registry.inject(Fault(path=BLOB_PATH, action=Redirect(f"http://{other.host}{{path}}")))
        other.inject(Fault(path=BLOB_PATH, action=Answer(401, ())))
        assert "was rejected" not in str(refusal(registries, registry))
        assert read(fetcher(registries, registry), WANTED) == BLOB


def test_a_403_names_the_user_and_the_source_of_the_credentials() -> None:
    with serve(Basic("me", SECRET)) as registry, open_registries("me", SECRET) as registries:
        registry.inject(Fault(path=BLOB_PATH, action=Answer(403, ())))
        assert "access denied; the password of user 'me' (from the caller) gives no access; grant this user access" in str(
            refusal(registries, registry)
        )


@pytest.mark.parametrize("auth", [Basic("me", "right"), Bearer(user="me", password="right", refuse_anonymous=True)])
def test_a_401_without_credentials_names_the_ways_to_log_in(auth: Basic | Bearer) -> None:
    with serve(auth) as registry:
        command = f"log in with 'docker login {registry.host}' or 'podman login {registry.host}' (GET "
        for ways, remedy in ((), f"; {command}"), (("say it", "ring"), f"; say it, ring, or {command}"):
            with Registries(SETTINGS, credentials=anonymous, ways=ways) as registries:
                assert remedy in str(refusal(registries, registry))


def test_a_401_without_credentials_is_denied(registries: Registries) -> None:
    with serve(Basic("me", "right")) as registry:
        assert isinstance(refusal(registries, registry), Denied)
        assert list_requests(registry) == [BLOB_GET]


@pytest.mark.parametrize("challenge", ["", "@@@", "Negotiate", "Digest realm=a", 'Bearer realm="', "Basic"])
def test_a_challenge_with_an_unknown_scheme_is_denied(registries: Registries, registry: FakeRegistry, challenge: str) -> None:
    registry.inject(Fault(nth=None, action=Answer(401, (("WWW-Authenticate", challenge),))))
    assert isinstance(refusal(registries, registry), Denied | InvalidInput)
    assert list_requests(registry) == [BLOB_GET]


def test_credentials_do_not_follow_a_redirect_of_the_token_server(other: FakeRegistry) -> None:
    with serve(Bearer(user="me", password=SECRET)) as registry, open_registries("me", SECRET) as registries:
        registry.inject(Fault(path="/token", action=Redirect(f"http://{other.host}{{path}}")))
        other.inject(Fault(path="/token", action=Answer(200, (), b'{"token": "abc"}')))
        assert isinstance(refusal(registries, registry), Denied)
        assert [("authorization" in one.headers) for one in other.requests] == [False]


def test_an_endless_error_body_is_not_read() -> None:
    head = b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=a\r\n\r\n"
    pieces = (head, *[b"x" * 65536] * 1000)
    with Scripted(pieces, pieces) as endless, open_registries("me", SECRET) as registries:
        _, error = read_until_error(fetcher(registries, endless.host), WANTED)
        assert isinstance(error, Denied)
    assert all(sent < 1000 * 65536 for sent in endless.sent)
    assert len(endless.heads) == 2


def test_an_endless_body_behind_a_redirect_of_the_token_server_is_not_read(other: FakeRegistry) -> None:
    pieces = (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", *[b"x" * 65536] * 1000)
    realm = f"http://{other.host}/v2/{REPOSITORY}/blobs/uploads/"  # a path at which this server takes a POST
    with Scripted(pieces) as endless, serve(Bearer(user="me", password=SECRET, realm=realm)) as registry:
        other.inject(Fault(method="POST", path=".*", nth=None, action=Redirect(f"http://{endless.host}/token", 303)))
        with open_registries("me", SECRET) as registries:
            refusal(registries, registry)
    assert [one.method for one in other.requests] == ["POST", "GET"]
    assert [head.split()[0] for head in endless.heads] == ["GET"]
    assert endless.sent[0] < 500 * 65536


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>" + SECRET.encode(),
        b'["' + SECRET.encode() + b'"]',
        b'{"refresh_token": "' + SECRET.encode() + b'"}',
        b'{"token": ""}',
        b'{"token": null}',
        b'{"token": ["' + SECRET.encode() + b'"]}',
        json.dumps({"token": SECRET + "\r\nX-Evil: 1"}).encode(),
        json.dumps({"token": SECRET + "\xe9"}).encode(),
        b'{"token": "' + SECRET.encode() + b'", "expires_in": 1e400}',
    ],
)
def test_a_response_without_a_valid_token_is_an_error(registries: Registries, body: bytes) -> None:
    with serve(Bearer()) as registry:
        registry.inject(Fault(path="/token", nth=None, action=Answer(200, (), body)))
        error = refusal(registries, registry)
        assert isinstance(error, Unavailable | InvalidInput)
        assert list_requests(registry) == [BLOB_GET, TOKEN_GET]


def test_a_token_with_a_string_in_expires_in_is_used(registries: Registries) -> None:
    with serve(Bearer(expires_in="3600")) as registry:  # type: ignore[arg-type]
        for _ in range(2):
            assert read(fetcher(registries, registry), WANTED) == BLOB
        assert list_requests(registry) == [BLOB_GET, TOKEN_GET, BLOB_GET, BLOB_GET]


def test_a_single_403_of_a_token_server_is_not_remembered(registries: Registries) -> None:
    with serve(Bearer()) as registry:
        registry.inject(Fault(path="/token", times=2, action=Answer(403)))
        for _ in range(2):
            assert isinstance(refusal(registries, registry), Denied)
        assert read(fetcher(registries, registry), WANTED) == BLOB
        assert list_requests(registry).count(TOKEN_GET) == 3


def test_occasional_403_of_a_token_server_are_not_remembered(registries: Registries) -> None:
    with serve(Bearer()) as registry:
        for _ in range(4):
            registry.inject(Fault(path="/token", action=Answer(403)))
            assert isinstance(refusal(registries, registry), Denied)
            assert read(fetcher(registries, registry), WANTED) == BLOB
            registry.revoke_tokens()


def test_three_403_in_a_row_of_a_token_server_are_remembered(registries: Registries) -> None:
    with serve(Bearer()) as registry:
        registry.inject(Fault(path="/token", nth=None, action=Answer(403)))
        errors = {str(refusal(registries, registry)) for _ in range(6)}
        assert len(errors) == 1
        assert list_requests(registry).count(TOKEN_GET) == 3


def test_access_token_is_preferred_to_token(registries: Registries) -> None:
    with serve(Bearer()) as registry:
        body = b'{"token": "old", "access_token": "new"}'
        registry.inject(Fault(path="/token", action=Answer(200, (), body)))
        refusal(registries, registry)
        assert registry.requests[-1].headers["authorization"] == "Bearer new"


def test_a_token_response_with_an_invalid_content_coding_is_an_error(registries: Registries) -> None:
    with serve(Bearer()) as registry:
        registry.inject(Fault(path="/token", action=WithHeaders((("Content-Encoding", "gzip"),))))
        assert isinstance(refusal(registries, registry), Unavailable)


# By hand: what would be sent, without a server.

BEARER = 'Bearer realm="https://auth.example/token?account=a",service="registry.example"'
Flow = Iterator[httpx.Request]


def request(url: str = "https://registry.example/v2/") -> httpx.Request:
    return httpx.Request("GET", url)


def challenged(flow: Any, challenge: str, *, answered_at: str | None = None) -> httpx.Request:
    """Start the flow, answer its first request with a 401, and return the next request."""
    first = next(flow)
    at = first if answered_at is None else request(answered_at)
    sent = flow.send(httpx.Response(401, headers=[("WWW-Authenticate", challenge)], request=at))
    assert isinstance(sent, httpx.Request)
    return sent


def flow_for(url: str = "https://registry.example/v2/", *, scopes: tuple[str, ...] = (SCOPE,)) -> Any:
    return RegistryAuth(HostAuth(LOGIN), *scopes).sync_auth_flow(request(url))


def asked_scope(ask: httpx.Request) -> str:
    return dict(parse_qsl(ask.content.decode()))["scope"]


def test_a_token_is_requested_once_and_sent_to_the_registry() -> None:
    with closing(flow_for()) as flow:
        ask = challenged(flow, BEARER)
        assert (ask.method, str(ask.url)) == ("POST", "https://auth.example/token?account=a")
        again = flow.send(httpx.Response(200, json={"access_token": "abc"}, request=ask))
        assert (str(again.url), again.headers["authorization"]) == ("https://registry.example/v2/", "Bearer abc")
        with pytest.raises(StopIteration):
            flow.send(httpx.Response(401, request=again))


MOUNT = (push_scope("new/app"), pull_scope("old/app"))


@pytest.mark.parametrize(
    ("challenge", "asked_for"),
    [
        ("", "repository:new/app:pull,push repository:old/app:pull"),
        (',scope=""', "repository:new/app:pull,push repository:old/app:pull"),
        (',scope="repository:new/app:pull"', "repository:new/app:pull,push repository:old/app:pull"),
        (',scope="repository:new/app:delete"', "repository:new/app:delete,pull,push repository:old/app:pull"),
        (',scope="aws"', "aws repository:new/app:pull,push repository:old/app:pull"),
    ],
)
def test_a_token_is_requested_for_the_needed_and_the_challenged_scopes(challenge: str, asked_for: str) -> None:
    with closing(flow_for(scopes=MOUNT)) as flow:
        assert asked_scope(challenged(flow, BEARER + challenge)) == asked_for


def test_the_order_of_scopes_does_not_matter() -> None:
    host = HostAuth(RegistryLogin(host="registry.example"))
    flow = RegistryAuth(host, *MOUNT).sync_auth_flow(request())
    ask = challenged(flow, BEARER)
    flow.send(httpx.Response(200, json={"token": "abc"}, request=ask))
    other = next(RegistryAuth(host, *reversed(MOUNT)).sync_auth_flow(request()))
    assert other.headers["authorization"] == "Bearer abc"


def test_empty_challenge_parameters_count_as_missing() -> None:
    anonymous_flow = RegistryAuth(HostAuth(RegistryLogin(host="registry.example")), SCOPE).sync_auth_flow(request())
    with closing(anonymous_flow):
        ask = challenged(anonymous_flow, 'Bearer realm="https://auth.example/token",scope="",service=""')
        assert dict(ask.url.params) == {"scope": SCOPE}


def test_an_identity_token_is_not_sent_to_a_registry() -> None:
    flow = RegistryAuth(
        HostAuth(RegistryLogin(host="registry.example", credentials=Credentials("me", "", SECRET))), SCOPE
    ).sync_auth_flow(request())
    with closing(flow), pytest.raises(StopIteration):
        challenged(flow, "Basic realm=a")


def test_an_expired_token_is_replaced_before_the_request(clock: Clock) -> None:
    host = HostAuth(RegistryLogin(host="registry.example"), clock=clock)
    flow = RegistryAuth(host, SCOPE).sync_auth_flow(request())
    ask = challenged(flow, f'{BEARER},scope="repository:more:pull"')
    flow.send(httpx.Response(200, json={"token": "abc"}, request=ask))
    clock.now += 60
    flow = RegistryAuth(host, SCOPE).sync_auth_flow(request())
    again = next(flow)
    assert again.url == ask.url
    assert flow.send(httpx.Response(200, json={"token": "def"}, request=again)).headers["authorization"] == "Bearer def"


def test_a_rejected_token_is_not_sent_again() -> None:
    host = HostAuth(RegistryLogin(host="registry.example"))
    host.store_header(SCOPE, "Bearer refused")
    flow = RegistryAuth(host, SCOPE).sync_auth_flow(request())
    ask = challenged(flow, f'{BEARER},error="invalid_token"')
    with pytest.raises(Unavailable):
        flow.send(httpx.Response(503, request=ask))
    assert "authorization" not in next(RegistryAuth(host, SCOPE).sync_auth_flow(request())).headers


def test_an_expired_token_is_not_renewed_over_plain_http(clock: Clock) -> None:
    host = HostAuth(LOGIN, clock=clock)
    flow = RegistryAuth(host, SCOPE).sync_auth_flow(request("http://registry.example/v2/"))
    ask = challenged(flow, 'Bearer realm="http://auth.example/token"')
    flow.send(httpx.Response(200, json={"token": "abc"}, request=ask))
    clock.now += 60
    with pytest.raises(Denied, match="expected https for its token server"):
        next(RegistryAuth(host, SCOPE).sync_auth_flow(request("https://registry.example/v2/")))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_password_does_not_follow_a_redirect(status: int) -> None:
    seen: list[httpx.Request] = []

    def serve(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if request.url.host == "auth.example":
            return httpx.Response(status, headers={"Location": "https://evil.example/token"})
        if request.url.host == "evil.example":
            return httpx.Response(200, json={"access_token": "abc"})
        return httpx.Response(401, headers={"WWW-Authenticate": BEARER})

    auth = RegistryAuth(HostAuth(LOGIN), SCOPE)
    with httpx.Client(transport=httpx.MockTransport(serve), follow_redirects=True) as asking:
        asking.get("https://registry.example/v2/", auth=auth)
    hosts = [one.url.host for one in seen]
    assert hosts == ["registry.example", "auth.example", "evil.example", "auth.example", "evil.example", "registry.example"]
    for one in seen:
        if one.url.host == "evil.example":
            assert (one.content, one.headers.get("authorization")) == (b"", None)
    assert SECRET.encode() in seen[1].content


@pytest.mark.parametrize(
    ("realm", "kind"),
    [
        ("http://auth.example/token", Denied),
        ("http://registry.example/token", Denied),
        ("", InvalidInput),
        ("/token", InvalidInput),
        ("auth.example/token", InvalidInput),
        ("ftp://auth.example/token", InvalidInput),
        ("https://", InvalidInput),
        ("https:///token", InvalidInput),
        ("file:///etc/passwd", InvalidInput),
        ("https://[::1/", InvalidInput),
        ("https://auth.example/\x01", InvalidInput),
    ],
)
def test_an_insecure_or_invalid_realm_gets_no_request(realm: str, kind: type[DistError]) -> None:
    with closing(flow_for()) as flow, pytest.raises(kind) as caught:
        challenged(flow, f'Bearer realm="{realm}"')
    check_message(caught.value, "registry.example", hides=SECRETS)


def test_a_registry_on_plain_http_may_have_a_realm_on_plain_http() -> None:
    with closing(flow_for("http://registry.example/v2/")) as flow:
        assert challenged(flow, 'Bearer realm="http://auth.example/token"').url.host == "auth.example"


@pytest.mark.parametrize(
    "answered_at",
    [
        "https://cdn.example/data",
        "https://registry.example:8443/v2/",
        "http://registry.example/v2/",  # an attacker on the network could have sent this response
        "https://registry.example.evil/v2/",
    ],
)
@pytest.mark.parametrize("challenge", ["Basic realm=a", BEARER])
def test_a_challenge_of_another_server_is_not_answered(answered_at: str, challenge: str) -> None:
    with closing(flow_for()) as flow, pytest.raises(StopIteration):
        challenged(flow, challenge, answered_at=answered_at)


@pytest.mark.parametrize(
    ("answered", "same"),
    [
        ("https://registry.example/elsewhere", True),
        ("https://registry.example:443/", True),
        ("http://registry.example/", False),
        ("http://registry.example:443/", False),
        ("https://registry.example:5000/", False),
        ("https://registry.example.evil.example/", False),
        ("https://registry.example@evil.example/", False),
    ],
)
def test_is_same_server_compares_host_port_and_scheme(answered: str, *, same: bool) -> None:
    assert is_same_server(httpx.URL(answered), httpx.URL("https://registry.example/v2/")) is same


def test_an_upgrade_from_http_to_https_is_the_same_server() -> None:
    asked_for = httpx.URL("http://registry.example:5000/")
    assert is_same_server(httpx.URL("https://registry.example:5000/"), asked_for)
    assert not is_same_server(httpx.URL("https://registry.example/"), asked_for)


def test_a_challenge_after_a_redirect_to_the_same_server_is_answered() -> None:
    with closing(flow_for()) as flow:
        again = challenged(flow, "Basic realm=a", answered_at="https://registry.example/elsewhere")
        assert str(again.url) == "https://registry.example/v2/"
        assert again.headers["authorization"] == user("me", SECRET).basic()


def test_the_first_supported_challenge_is_answered() -> None:
    with closing(flow_for()) as flow:
        again = challenged(flow, f"Negotiate, Basic realm=a, {BEARER}")
        assert again.headers["authorization"].startswith("Basic ")
    anonymous_flow = RegistryAuth(HostAuth(RegistryLogin(host="registry.example")), SCOPE).sync_auth_flow(request())
    with closing(anonymous_flow):
        assert challenged(anonymous_flow, f"Basic realm=a, {BEARER}").url.host == "auth.example"


def test_an_abandoned_request_releases_the_token_lock() -> None:
    host = HostAuth(RegistryLogin(host="registry.example"))
    with closing(RegistryAuth(host, SCOPE).sync_auth_flow(request())) as flow:
        challenged(flow, BEARER)
        assert host.token_lock(SCOPE).locked()
    assert not host.token_lock(SCOPE).locked()


def test_no_representation_shows_a_secret() -> None:
    host = HostAuth(LOGIN)
    host.store_header(SCOPE, f"Bearer {SECRET}")
    for one in (host, host.__dict__, RegistryAuth(host, SCOPE), anonymous):
        assert SECRET not in f"{one!r} {one}"


def test_many_threads_send_a_wrong_password_once() -> None:
    with (
        serve(Basic("me", SECRET)) as registry,
        Registries(SETTINGS, credentials=lambda *_: user("me", "notsecret7")) as registries,
    ):
        source = fetcher(registries, registry)
        with ThreadPoolExecutor(THREADS) as threads:
            errors = [error for _, error in threads.map(lambda _: read_until_error(source, WANTED), range(THREADS))]
        assert all(isinstance(error, Denied) for error in errors)
        assert sum("authorization" in one.headers for one in registry.requests) == 1
        for error in errors:
            assert error is not None
            check_message(error, registry.host, hides=["notsecret7"])
