"""The CNCF registry in token mode, and a token server that it trusts."""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import Denied
from prefect_dist.remotes import Credentials, Registries
from prefect_dist.remotes.auth import HostAuth, RegistryAuth
from prefect_dist.remotes.credentials import RegistryLogin
from prefect_dist.remotes.token import pull_scope, push_scope
from prefect_dist.remotes.transport import Urllib3Transport
from tests import images
from tests.peers import skopeo
from tests.peers.registry import CncfRegistry, cncf_registry
from tests.peers.token_server import IDENTITY_TOKEN, PASSWORD, USER, TokenRequest, TokenServer
from tests.remotes.asking import SETTINGS, check_message, descriptor, read

PUBLIC, PRIVATE, NEW = "public/app", "team/app", "team/new"
IMAGE = images.image(seed=1, layers=1, layer_bytes=3_000_000)
DIGEST, LAYER = list(IMAGE.blobs.items())[1]
WANTED = descriptor(LAYER)
LOGGED_IN = Credentials(USER, PASSWORD)
WITH_IDENTITY = Credentials(USER, "", IDENTITY_TOKEN)
WRONG = "a-wrong-password"
# The registry adds a minute to the life of any token.
OVER_S = -3600
THREADS = 20


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[CncfRegistry, TokenServer]]:
    directory = tmp_path_factory.mktemp("token-mode")
    with cncf_registry(directory) as open_to_all:
        for repository in (PUBLIC, PRIVATE):
            images.push(open_to_all.host, repository, IMAGE, "v1")
    with TokenServer(directory) as tokens, cncf_registry(directory, tokens=tokens) as guarded:
        yield guarded, tokens


@pytest.fixture
def guarded(shared: tuple[CncfRegistry, TokenServer]) -> CncfRegistry:
    return shared[0]


@pytest.fixture
def tokens(shared: tuple[CncfRegistry, TokenServer]) -> TokenServer:
    """The token server, with its default settings and without recorded requests."""
    tokens = shared[1]
    tokens.post_status, tokens.gives_refresh, tokens.declared_s, tokens.signed_s = None, False, 300, 300
    tokens.refresh_tokens = {IDENTITY_TOKEN}
    tokens.requests.clear()
    return tokens


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    transport = Urllib3Transport(connect_timeout_s=10, read_timeout_s=10)
    with httpx.Client(transport=transport, follow_redirects=True) as client:
        yield client


def pull(guarded: CncfRegistry, repository: str, credentials: Credentials | None, *, times: int = 1) -> None:
    """Resolve and read a blob, from a new repository object within the same run."""
    with Registries(SETTINGS, credentials=lambda *_: credentials) as registries:
        for _ in range(times):
            found = registries.resolve(Reference.parse(f"{guarded.host}/{repository}:v1"))
            assert str(found.descriptor.digest) == IMAGE.root.digest
            assert read(found.fetcher, WANTED) == LAYER


def short(requests: list[TokenRequest]) -> list[tuple[str, str, int]]:
    """Each request as (GET or kind of grant, scopes, status)."""
    return [(one.fields.get("grant_type", [one.method])[0], " ".join(one.fields["scope"]), one.status) for one in requests]


def statuses(guarded: CncfRegistry, *, since: int, count: int) -> list[int]:
    return [one.status for one in guarded.requests(at_least=since + count)[since:]]


def ending(upload: httpx.Response, digest: str) -> httpx.URL:
    return httpx.URL(upload.headers["location"]).copy_merge_params({"digest": digest})


def test_skopeo_works_with_these_peers(guarded: CncfRegistry, tokens: TokenServer) -> None:
    assert skopeo.inspect(f"docker://{guarded.host}/{PUBLIC}:v1")["Digest"] == IMAGE.root.digest
    assert {one.status for one in tokens.requests} == {200}


# Pulling.


def test_an_anonymous_token_reads_a_public_repository(guarded: CncfRegistry, tokens: TokenServer) -> None:
    before = len(guarded.requests())
    pull(guarded, PUBLIC, None, times=2)
    assert short(tokens.requests) == [("GET", pull_scope(PUBLIC), 200)]
    assert statuses(guarded, since=before, count=5) == [401, 200, 200, 200, 200]
    with pytest.raises(Denied):
        pull(guarded, PRIVATE, None)


@pytest.mark.parametrize(
    ("credentials", "grant"), [(LOGGED_IN, "password"), (WITH_IDENTITY, "refresh_token")], ids=["password", "identity"]
)
def test_a_token_for_credentials_reads_a_private_repository(
    guarded: CncfRegistry, tokens: TokenServer, credentials: Credentials, grant: str
) -> None:
    pull(guarded, PRIVATE, credentials, times=2)
    assert short(tokens.requests) == [(grant, pull_scope(PRIVATE), 200)]
    assert tokens.requests[0].authorization is None


@pytest.mark.parametrize("status", [400, 401, 404, 405])
def test_a_server_without_post_gets_one_post(
    guarded: CncfRegistry, tokens: TokenServer, client: httpx.Client, status: int
) -> None:
    tokens.post_status = status
    host = HostAuth(RegistryLogin(host=guarded.host, credentials=LOGGED_IN))
    for repository in (PRIVATE, PUBLIC):
        auth = RegistryAuth(host, pull_scope(repository))
        assert client.get(f"http://{guarded.host}/v2/{repository}/blobs/{DIGEST}", auth=auth).content == LAYER
    first, second = pull_scope(PRIVATE), pull_scope(PUBLIC)
    assert short(tokens.requests) == [("password", first, status), ("GET", first, 200), ("GET", second, 200)]


def test_a_refresh_token_replaces_the_password(guarded: CncfRegistry, tokens: TokenServer, client: httpx.Client) -> None:
    tokens.gives_refresh = True
    host = HostAuth(RegistryLogin(host=guarded.host, credentials=LOGGED_IN))
    for repository in (PRIVATE, PUBLIC):
        auth = RegistryAuth(host, pull_scope(repository))
        assert client.get(f"http://{guarded.host}/v2/{repository}/blobs/{DIGEST}", auth=auth).is_success
    tokens.refresh_tokens.clear()
    assert client.get(
        f"http://{guarded.host}/v2/missing/tags/list", auth=RegistryAuth(host, pull_scope("missing"))
    ).is_client_error
    assert [(kind, status) for kind, _, status in short(tokens.requests)] == [
        ("password", 200),
        ("refresh_token", 200),
        ("refresh_token", 401),
        ("password", 200),
    ]


# Pushing.


@pytest.mark.parametrize("credentials", [LOGGED_IN, WITH_IDENTITY], ids=["password", "identity"])
def test_a_blob_is_uploaded_with_a_token(
    guarded: CncfRegistry, tokens: TokenServer, client: httpx.Client, credentials: Credentials
) -> None:
    auth = RegistryAuth(HostAuth(RegistryLogin(host=guarded.host, credentials=credentials)), push_scope(NEW))
    begun = client.post(f"http://{guarded.host}/v2/{NEW}/blobs/uploads/", auth=auth)
    assert begun.status_code == 202
    blob = b"uploaded"
    assert client.put(ending(begun, images.digest_of(blob)), content=blob, auth=auth).status_code == 201
    assert [one[1:] for one in short(tokens.requests)] == [(push_scope(NEW), 200)]


def test_a_blob_is_mounted_with_a_token(guarded: CncfRegistry, tokens: TokenServer, client: httpx.Client) -> None:
    auth = RegistryAuth(
        HostAuth(RegistryLogin(host=guarded.host, credentials=LOGGED_IN)), push_scope("team/mounted"), pull_scope(PRIVATE)
    )
    where = {"mount": DIGEST, "from": PRIVATE}
    answer = client.post(f"http://{guarded.host}/v2/team/mounted/blobs/uploads/", params=where, auth=auth)
    assert answer.status_code == 201
    assert short(tokens.requests) == [("password", f"{pull_scope(PRIVATE)} {push_scope('team/mounted')}", 200)]


def test_a_push_without_permission_is_denied(guarded: CncfRegistry, tokens: TokenServer, client: httpx.Client) -> None:
    auth = RegistryAuth(HostAuth(RegistryLogin(host=guarded.host)), push_scope(PUBLIC))
    before = len(guarded.requests())
    assert client.post(f"http://{guarded.host}/v2/{PUBLIC}/blobs/uploads/", auth=auth).status_code == 401
    assert len(tokens.requests) == 1
    assert statuses(guarded, since=before, count=2) == [401, 401]


# Tokens that end.


def test_a_token_that_expires_during_a_read_is_replaced(
    guarded: CncfRegistry, tokens: TokenServer, client: httpx.Client
) -> None:
    host = HostAuth(RegistryLogin(host=guarded.host, credentials=LOGGED_IN))
    auth = RegistryAuth(host, pull_scope(PRIVATE))
    url, before = f"http://{guarded.host}/v2/{PRIVATE}/blobs/{DIGEST}", len(guarded.requests())
    with client.stream("GET", url, auth=auth) as answer:
        start = next(answer.iter_raw())
        keep_over(host, pull_scope(PRIVATE), tokens)
    rest = client.get(url, headers={"Range": f"bytes={len(start)}-"}, auth=auth)
    assert start + rest.content == LAYER
    assert len(tokens.requests) == 2
    assert statuses(guarded, since=before, count=4) == [401, 200, 401, 206]


def test_a_token_that_expires_during_an_upload_is_replaced(
    guarded: CncfRegistry, tokens: TokenServer, client: httpx.Client
) -> None:
    host = HostAuth(RegistryLogin(host=guarded.host, credentials=LOGGED_IN))
    auth = RegistryAuth(host, push_scope(NEW))
    answer = client.post(f"http://{guarded.host}/v2/{NEW}/blobs/uploads/", auth=auth)
    for start in range(0, len(LAYER), 1_000_000):
        keep_over(host, push_scope(NEW), tokens)
        answer = client.patch(answer.headers["location"], content=LAYER[start : start + 1_000_000], auth=auth)
        assert answer.status_code == 202
    assert client.put(ending(answer, DIGEST), auth=auth).status_code == 201
    assert client.get(f"http://{guarded.host}/v2/{NEW}/blobs/{DIGEST}", auth=auth).content == LAYER
    assert len(tokens.requests) == 1 + len(range(0, len(LAYER), 1_000_000))


@pytest.mark.parametrize("expiry", ["by the registry", "by the clock"])
def test_an_expired_token_is_replaced_once_for_all_threads(
    guarded: CncfRegistry, tokens: TokenServer, client: httpx.Client, expiry: str
) -> None:
    now = [1000.0]
    host = HostAuth(RegistryLogin(host=guarded.host, credentials=LOGGED_IN), clock=lambda: now[0])
    auth = RegistryAuth(host, pull_scope(PRIVATE))
    url = f"http://{guarded.host}/v2/{PRIVATE}/blobs/{DIGEST}"
    assert client.head(url, auth=auth).is_success
    if expiry == "by the clock":
        now[0] += tokens.declared_s
    else:
        keep_over(host, pull_scope(PRIVATE), tokens)
    at_once = threading.Barrier(THREADS)

    def ask(_: int) -> int:
        at_once.wait()
        return client.head(url, auth=auth).status_code

    with ThreadPoolExecutor(THREADS) as threads:
        assert Counter(threads.map(ask, range(THREADS))) == {200: THREADS}
    assert len(tokens.requests) == 2


def test_an_expired_token_is_replaced_before_a_body_is_sent(
    guarded: CncfRegistry, tokens: TokenServer, client: httpx.Client
) -> None:
    now = [1000.0]
    auth = RegistryAuth(
        HostAuth(RegistryLogin(host=guarded.host, credentials=LOGGED_IN), clock=lambda: now[0]), push_scope(NEW)
    )
    tokens.declared_s = 10
    before = len(guarded.requests())
    for second in (0, 4, 6, 10, 12):
        now[0] = 1000.0 + second
        assert client.post(f"http://{guarded.host}/v2/{NEW}/blobs/uploads/", auth=auth).status_code == 202
    assert len(tokens.requests) == 3
    assert statuses(guarded, since=before, count=6) == [401, 202, 202, 202, 202, 202]


def test_tokens_that_expire_at_once_cause_no_loop(guarded: CncfRegistry, tokens: TokenServer) -> None:
    tokens.signed_s = OVER_S
    before = len(guarded.requests())
    with pytest.raises(Denied) as caught:
        pull(guarded, PRIVATE, LOGGED_IN)
    check_message(caught.value, f"{guarded.host}/{PRIVATE}:v1", hides=[PASSWORD])
    assert len(tokens.requests) == 1
    assert statuses(guarded, since=before, count=2) == [401, 401]


def keep_over(host: HostAuth, scopes: str, tokens: TokenServer) -> None:
    """Store an expired token that the host takes for a valid one."""
    host.store_header(scopes, "Bearer " + tokens.sign(scopes.split(), user=USER, life_s=OVER_S))


# Rejected credentials.


@pytest.mark.parametrize(
    ("credentials", "post_status", "kinds"),
    [
        (Credentials(USER, WRONG), None, ["password", "GET"]),
        (Credentials(USER, WRONG), 405, ["password", "GET"]),
        (Credentials(USER, "", WRONG), None, ["refresh_token"]),
    ],
    ids=["password", "password by GET", "identity"],
)
def test_a_wrong_secret_is_reported(
    guarded: CncfRegistry, tokens: TokenServer, credentials: Credentials, post_status: int | None, kinds: list[str]
) -> None:
    tokens.post_status = post_status
    with Registries(SETTINGS, credentials=lambda *_: credentials) as registries:
        for _ in range(3):
            with pytest.raises(Denied) as caught:
                registries.resolve(Reference.parse(f"{guarded.host}/{PRIVATE}:v1"))
            assert not caught.value.retryable
            check_message(
                caught.value,
                guarded.host,
                f"of user '{USER}' (from the caller) was rejected; use other credentials",
                hides=[WRONG],
            )
    assert [kind for kind, _, _ in short(tokens.requests)] == kinds


def test_no_secret_is_logged(guarded: CncfRegistry, tokens: TokenServer, caplog: pytest.LogCaptureFixture) -> None:
    tokens.gives_refresh = True
    caplog.set_level(0)
    for credentials in (LOGGED_IN, WITH_IDENTITY):
        pull(guarded, PRIVATE, credentials)
    assert "/token" in caplog.text
    secrets = {PASSWORD, LOGGED_IN.basic(), *tokens.refresh_tokens}
    assert not any(secret in caplog.text for secret in secrets)
    assert "Bearer e" not in caplog.text
