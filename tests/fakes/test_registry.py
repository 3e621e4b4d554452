"""The fake registry is strict, correct without injected faults, and closes without waiting."""

import contextlib
import hashlib
import http.client
import json
import socket
import ssl
import subprocess
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256, sha512
from pathlib import Path
from typing import Literal

import pytest

from tests.fakes.access import Basic, Bearer
from tests.fakes.faults import (
    Action,
    Answer,
    Cut,
    Drop,
    Fault,
    Flip,
    IgnoreRange,
    Lengthen,
    NoContentRange,
    Redirect,
    Refuse,
    Replace,
    Reset,
    ShiftRange,
    Shorten,
    ShortRange,
    Silence,
    Stall,
    WithHeaders,
    WithoutHeaders,
)
from tests.fakes.registry import OCI_INDEX, FakeRegistry
from tests.fakes.uploads import Uploads
from tests.peers.processes import poll_until

REPOSITORY = "team/app"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
MANIFEST = b'{ "schemaVersion": 2 }'
BLOB = bytes(range(256)) * 1000  # 256,000 bytes: four pieces
UNKNOWN = "sha256:" + "0" * 64


@dataclass(frozen=True)
class Reply:
    """What came back; ``headers`` have lower-case names."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The OCI error code."""
        return str(json.loads(self.body)["errors"][0]["code"])


def connect(registry: FakeRegistry, tls: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
    """Prepare a connection that is made by the first request."""
    if tls:
        return http.client.HTTPSConnection(registry.host, timeout=5, context=tls)
    return http.client.HTTPConnection(registry.host, timeout=5)


def ask(registry: FakeRegistry, path: str, method: str = "GET", **headers: str) -> Reply:
    """Ask once, on a connection of its own."""
    with closing(connect(registry)) as connection:
        return ask_on(connection, path, method, **headers)


def ask_on(connection: http.client.HTTPConnection, path: str, method: str = "GET", **headers: str) -> Reply:
    """Ask and read the whole answer."""
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    """Serve a registry without authentication."""
    with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def blob(registry: FakeRegistry) -> str:
    """Store the blob; return its path."""
    return f"/v2/{REPOSITORY}/blobs/{registry.put_blob(REPOSITORY, BLOB)}"


def test_manifest_by_tag_and_digest_is_verbatim(registry: FakeRegistry) -> None:
    digest = registry.put_manifest(REPOSITORY, MANIFEST, MANIFEST_TYPE, tag="v1")
    for key in ("v1", digest):
        answered = ask(registry, f"/v2/{REPOSITORY}/manifests/{key}", accept=f"text/plain, {MANIFEST_TYPE};q=0.5")
        assert answered.body == MANIFEST
        assert answered.headers == {
            "content-length": str(len(MANIFEST)),
            "content-type": MANIFEST_TYPE,
            "docker-content-digest": digest,
        }


def test_head_has_the_headers_of_get_and_keeps_the_connection(registry: FakeRegistry, blob: str) -> None:
    with closing(connect(registry)) as connection:
        head = ask_on(connection, blob, "HEAD")
        kept = connection.sock
        get = ask_on(connection, blob)
        assert connection.sock is kept
    assert (head.headers, head.body, get.body) == (get.headers, b"", BLOB)


def test_sha512_blob(registry: FakeRegistry) -> None:
    digest = registry.put_blob(REPOSITORY, BLOB, algorithm="sha512")
    assert digest == f"sha512:{sha512(BLOB).hexdigest()}"
    assert ask(registry, f"/v2/{REPOSITORY}/blobs/{digest}").body == BLOB


def test_tags_are_listed_in_order(registry: FakeRegistry) -> None:
    for tag in ("v2", "v1"):
        registry.put_manifest(REPOSITORY, MANIFEST, MANIFEST_TYPE, tag=tag)
    registry.put_manifest("other", MANIFEST, MANIFEST_TYPE, tag="v3")
    answered = ask(registry, f"/v2/{REPOSITORY}/tags/list")
    assert json.loads(answered.body) == {"name": REPOSITORY, "tags": ["v1", "v2"]}
    assert "link" not in answered.headers


def test_tags_come_in_pages(registry: FakeRegistry) -> None:
    for tag in ("v1", "v2", "v3"):
        registry.put_manifest(REPOSITORY, MANIFEST, MANIFEST_TYPE, tag=tag)
    first = ask(registry, f"/v2/{REPOSITORY}/tags/list?n=2")
    assert json.loads(first.body)["tags"] == ["v1", "v2"]
    assert first.headers["link"] == f'</v2/{REPOSITORY}/tags/list?n=2&last=v2>; rel="next"'
    last = ask(registry, f"/v2/{REPOSITORY}/tags/list?n=2&last=v2")
    assert json.loads(last.body)["tags"] == ["v3"]
    assert "link" not in last.headers
    assert ask(registry, f"/v2/{REPOSITORY}/tags/list?n=x").status == 400


@pytest.mark.parametrize(
    ("media_type", "accept", "status"),
    [
        (MANIFEST_TYPE, MANIFEST_TYPE, 200),
        (MANIFEST_TYPE, "*/*", 200),
        (MANIFEST_TYPE, OCI_INDEX, 404),
        (MANIFEST_TYPE, "", 404),
        (MANIFEST_TYPE, "*", 400),
        (OCI_INDEX, f"{MANIFEST_TYPE},{OCI_INDEX}", 200),
        (OCI_INDEX, "*/*", 404),
    ],
)
def test_accept_has_to_name_the_type(registry: FakeRegistry, media_type: str, accept: str, status: int) -> None:
    registry.put_manifest(REPOSITORY, MANIFEST, media_type, tag="v1")
    assert ask(registry, f"/v2/{REPOSITORY}/manifests/v1", accept=accept).status == status


@pytest.mark.parametrize(
    ("line", "headers", "status", "code"),
    [
        ("GET /v2", {}, 404, "UNSUPPORTED"),
        ("GET /v2/app/tags/first", {}, 404, "UNSUPPORTED"),
        ("GET /v2/app/tags/list", {}, 404, "NAME_UNKNOWN"),
        ("POST /v2/app/blobs/uploads", {}, 405, "UNSUPPORTED"),
        ("PUT /v2/app/blobs/uploads/", {}, 405, "UNSUPPORTED"),
        ("DELETE /v2/app/tags/list", {}, 405, "UNSUPPORTED"),
        ("PATCH /v2/app/blobs/uploads/1", {"Content-Length": "0"}, 404, "BLOB_UPLOAD_UNKNOWN"),
        ("PATCH /v2/app/blobs/uploads/1", {"Transfer-Encoding": "chunked"}, 411, "SIZE_INVALID"),
        ("POST /v2/App/blobs/uploads/", {"Content-Length": "0"}, 400, "NAME_INVALID"),
        ("GET /v2/", {"Host": "elsewhere"}, 400, "UNSUPPORTED"),
        ("GET /v2/App/manifests/v1", {}, 400, "NAME_INVALID"),
        ("GET /v2/app/manifests/sha256:abc", {}, 400, "DIGEST_INVALID"),
        ("GET /v2/app/blobs/v1", {}, 400, "DIGEST_INVALID"),
        ("GET /v2/app/manifests/v1", {}, 404, "MANIFEST_UNKNOWN"),
        ("GET /v2/app/manifests/v1", {"Range": "bytes=1-2"}, 400, "UNSUPPORTED"),
        (f"GET /v2/app/blobs/{UNKNOWN}", {}, 404, "BLOB_UNKNOWN"),
    ],
)
def test_refusals(registry: FakeRegistry, line: str, headers: dict[str, str], status: int, code: str) -> None:
    method, path = line.split()
    answered = ask(registry, path, method, **headers)
    assert (answered.status, answered.code) == (status, code)


@pytest.mark.parametrize(
    ("wanted", "status", "content_range"),
    [
        ("bytes=1-3", 206, "bytes 1-3/256000"),
        ("bytes=0-0", 206, "bytes 0-0/256000"),
        ("bytes=255999-999999", 206, "bytes 255999-255999/256000"),
        ("bytes=256000-256001", 416, "bytes */256000"),
        ("bytes=1-", 416, "bytes */256000"),
        ("bytes=0-255999", 400, None),
        ("bytes=3-1", 400, None),
        ("bytes=-5", 400, None),
        ("bytes=1-2,4-5", 400, None),
    ],
)
def test_ranges(registry: FakeRegistry, blob: str, wanted: str, status: int, content_range: str | None) -> None:
    answered = ask(registry, blob, range=wanted)
    assert (answered.status, answered.headers.get("content-range")) == (status, content_range)
    if status == 206:
        first, last = wanted.removeprefix("bytes=").split("-")
        assert answered.body == BLOB[int(first) : int(last) + 1]


def test_open_ranges_are_an_option() -> None:
    with FakeRegistry(open_ranges=True) as registry:
        path = f"/v2/app/blobs/{registry.put_blob('app', BLOB)}"
        answered = ask(registry, path, range="bytes=255990-")
        assert (answered.status, answered.body) == (206, BLOB[-10:])
        assert ask(registry, path, range="bytes=0-").status == 400


def test_exchanges_are_recorded(registry: FakeRegistry, blob: str) -> None:
    ask(registry, blob + "?a=%20b", Range="bytes=0-9")
    ask(registry, "/v2/", "HEAD")
    (recorded,) = registry.find_requests("GET", r"/v2/.*/blobs/.*")
    assert (recorded.path, recorded.query, recorded.status, recorded.sent) == (blob, "a=%20b", 206, 10)
    assert recorded.headers["range"] == "bytes=0-9"
    assert [(one.method, one.sent) for one in registry.requests] == [("GET", 10), ("HEAD", 0)]
    assert registry.find_requests("GET", r"/v2/") == []


@pytest.mark.parametrize(("action", "error"), [(Cut(70_000), http.client.IncompleteRead), (Reset(0), ConnectionResetError)])
def test_broken_connection(registry: FakeRegistry, blob: str, action: Cut | Reset, error: type[Exception]) -> None:
    registry.inject(Fault(action=action))
    with pytest.raises(error):
        ask(registry, blob)
    assert ask(registry, blob).body == BLOB
    assert [one.sent for one in registry.requests] == [action.after, len(BLOB)]


def test_silence_does_what_was_asked_and_ends_when_the_client_leaves(registry: FakeRegistry) -> None:
    registry.inject(Fault(method="POST", action=Silence()))
    with closing(connect(registry)) as connection:
        connection.request("POST", f"/v2/{REPOSITORY}/blobs/uploads/", headers={"Content-Length": "0"})
        assert poll_until(lambda: registry.uploads.open == 1, timeout_s=10)
    assert [one.status for one in registry.requests] == [0]


def test_stall_ends_when_released(registry: FakeRegistry, blob: str) -> None:
    release = threading.Event()
    registry.inject(Fault(action=Stall(100, release)))
    with closing(connect(registry)) as connection:
        connection.request("GET", blob)
        response = connection.getresponse()
        begin = response.read(100)
        release.set()
        assert begin + response.read() == BLOB


def test_stall_ends_when_the_client_leaves(registry: FakeRegistry, blob: str) -> None:
    registry.inject(Fault(action=Stall(100)))
    with closing(connect(registry)) as connection:
        connection.request("GET", blob)
        response = connection.getresponse()
        response.read(100)
        response.close()
    assert [one.sent for one in registry.requests] == [100]


def test_closing_ends_stalled_and_idle_connections() -> None:
    with FakeRegistry() as registry:
        registry.inject(Fault(path="/v2/", action=Stall(1, threading.Event())))
        stalled, idle = connect(registry), connect(registry)
        ask_on(idle, "/v2/", "HEAD")
        stalled.request("GET", "/v2/")
        response = stalled.getresponse()
        assert response.read(1) == b"{"
    with closing(stalled), closing(idle), pytest.raises(http.client.IncompleteRead):
        response.read()
    assert [(one.method, one.sent) for one in registry.requests] == [("HEAD", 0), ("GET", 1)]


@pytest.mark.parametrize(
    ("action", "body"),
    [
        (Flip(2), b"\x00\x01\xfd" + BLOB[3:]),
        (Shorten(5), BLOB[:-5]),
        (Lengthen(5), BLOB + bytes(5)),
        (Replace(b"<html>"), b"<html>"),
        (WithoutHeaders(("content-length", "Docker-Content-Digest")), BLOB),
    ],
)
def test_wrong_body_or_headers(registry: FakeRegistry, blob: str, action: Action, body: bytes) -> None:
    registry.inject(Fault(action=action))
    answered = ask(registry, blob)
    assert (answered.status, answered.body) == (200, body)
    is_silent = isinstance(action, WithoutHeaders)
    assert answered.headers.get("content-length") == (None if is_silent else str(len(body)))


def test_wrong_answer(registry: FakeRegistry, blob: str) -> None:
    registry.inject(Fault(action=Answer(429, (("Retry-After", "7"),), b"slow down")))
    registry.inject(Fault(nth=2, action=Redirect("http://127.0.0.1:1/data{path}")))
    registry.inject(Fault(nth=3, action=WithHeaders((("content-TYPE", "a/b"), ("X-New", "1")))))
    limited, redirect, changed = (ask(registry, blob) for _ in range(3))
    assert (limited.status, limited.headers["retry-after"], limited.body) == (429, "7", b"slow down")
    assert (redirect.status, redirect.headers["location"]) == (307, f"http://127.0.0.1:1/data{blob}")
    assert (changed.headers["content-type"], changed.headers["x-new"]) == ("a/b", "1")


@pytest.mark.parametrize(
    ("action", "wanted", "expected"),
    [
        (IgnoreRange(), "bytes=10-19", (200, None, BLOB)),
        (IgnoreRange(), "bytes=10-", (200, None, BLOB)),
        (ShiftRange(-3), "bytes=10-19", (206, "bytes 7-16/256000", BLOB[7:17])),
        (ShortRange(3), "bytes=10-19", (206, "bytes 10-12/256000", BLOB[10:13])),
        (NoContentRange(), "bytes=10-19", (206, None, BLOB[10:20])),
    ],
)
def test_wrong_range(
    registry: FakeRegistry, blob: str, action: Action, wanted: str, expected: tuple[int, str | None, bytes]
) -> None:
    registry.inject(Fault(action=action))
    answered = ask(registry, blob, range=wanted)
    assert (answered.status, answered.headers.get("content-range"), answered.body) == expected


@pytest.mark.parametrize(
    ("nth", "times", "statuses"),
    [(1, 1, [503, 200, 200, 200]), (2, 2, [200, 503, 503, 200]), (None, 1, [503, 503, 503, 503])],
)
def test_faults_strike_by_count(registry: FakeRegistry, nth: int | None, times: int, statuses: list[int]) -> None:
    registry.inject(Fault(path="/v2/", nth=nth, times=times, action=Answer(503)))
    ask(registry, "/v2/", "HEAD")  # not counted, nor is another path
    ask(registry, "/v2/app/tags/list")
    assert [ask(registry, "/v2/").status for _ in range(4)] == statuses


def test_faults_of_one_request_add_up(registry: FakeRegistry, blob: str) -> None:
    registry.inject(Fault(action=IgnoreRange()))
    registry.inject(Fault(action=Flip(0)))
    assert ask(registry, blob, range="bytes=5-9").body == b"\xff" + BLOB[1:]


def basic(user: str, password: str) -> str:
    """Return the value of ``Authorization``."""
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


def test_basic() -> None:
    with FakeRegistry(auth=Basic("me", "secret")) as registry:
        registry.inject(Fault(action=Answer(503)))
        refused = ask(registry, "/v2/", authorization=basic("me", "wrong"))
        assert (refused.status, refused.headers["www-authenticate"]) == (401, 'Basic realm="fake"')
        assert [ask(registry, "/v2/", authorization=basic("me", "secret")).status for _ in range(2)] == [503, 200]


def token_for(registry: FakeRegistry, repository: str, **headers: str) -> str:
    """Ask for a token to pull from ``repository``; return the value of ``Authorization``."""
    answered = ask(registry, f"/token?service=fake&scope=repository%3A{repository}%3Apull", **headers)
    assert answered.status == 200
    return f"Bearer {json.loads(answered.body)['token']}"


def test_bearer_challenges_and_tokens() -> None:
    with FakeRegistry(auth=Bearer()) as registry:
        path = f"/v2/app/blobs/{registry.put_blob('app', BLOB)}"
        challenge = f'Bearer realm="http://{registry.host}/token",service="fake",scope="repository:app:pull"'
        assert ask(registry, path).headers["www-authenticate"] == challenge
        token = token_for(registry, "app")
        assert ask(registry, path, authorization=token).body == BLOB
        other = ask(registry, path, authorization=token_for(registry, "app2"))
        assert other.headers["www-authenticate"] == challenge + ',error="insufficient_scope"'
        registry.revoke_tokens()
        revoked = ask(registry, path, authorization=token)
        assert (revoked.status, revoked.headers["www-authenticate"]) == (401, challenge + ',error="invalid_token"')


def test_token_endpoint_checks_credentials() -> None:
    auth = Bearer(user="me", password="secret", refuse_anonymous=True, realm="http://elsewhere/token")
    with FakeRegistry(auth=auth) as registry:
        assert ask(registry, "/v2/").headers["www-authenticate"] == ('Bearer realm="http://elsewhere/token",service="fake"')
        token = token_for(registry, "app", authorization=basic("me", "secret"))
        assert auth.grants == {token.removeprefix("Bearer "): ("repository:app:pull",)}
        assert ask(registry, "/token?service=fake", authorization=basic("me", "wrong")).status == 401
        assert ask(registry, "/token?service=fake").status == 401
        assert ask(registry, "/token", authorization=basic("me", "secret")).status == 400


def test_faults_reach_the_token_endpoint() -> None:
    with FakeRegistry(auth=Bearer()) as registry:
        registry.inject(Fault(path="/token", action=Answer(503)))
        assert [ask(registry, "/token?service=fake").status for _ in range(2)] == [503, 200]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a self-signed certificate for 127.0.0.1, with its key in the same file."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=fake"
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", str(path.with_suffix(".crt"))]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


def test_tls(certificate: Path) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    trusting, wary = ssl.create_default_context(cafile=str(certificate)), ssl.create_default_context()
    with FakeRegistry(tls=server) as registry:
        path = f"/v2/app/blobs/{registry.put_blob('app', BLOB)}"
        registry.inject(Fault(nth=2, action=Stall(1)))
        with closing(connect(registry, wary)) as refused, pytest.raises(ssl.SSLError):
            refused.request("GET", path)
        stalled = connect(registry, trusting)
        assert (registry.scheme, ask_on(stalled, path).body) == ("https", BLOB)
        stalled.request("GET", path)
        response = stalled.getresponse()
    with closing(stalled), pytest.raises(http.client.IncompleteRead):
        response.read()


# Pushing.

CHUNK = {"Content-Type": "application/octet-stream"}


def send(registry: FakeRegistry, method: str, path: str, body: bytes = b"", /, **headers: str) -> Reply:
    """Send a body, on a connection of its own."""
    with closing(connect(registry)) as connection:
        connection.request(method, path, body, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


def begin(registry: FakeRegistry) -> str:
    """Open an upload; return its Location."""
    answered = send(registry, "POST", f"/v2/{REPOSITORY}/blobs/uploads/")
    assert (answered.status, answered.headers["range"], answered.body) == (202, "0-0", b"")
    return answered.headers["location"]


def patch(registry: FakeRegistry, location: str, first: int, end: int) -> Reply:
    """Send a chunk of the blob."""
    return send(registry, "PATCH", location, BLOB[first:end], Content_Range=f"{first}-{end - 1}", **CHUNK)


def test_a_blob_in_chunks(registry: FakeRegistry) -> None:
    digest = f"sha256:{sha256(BLOB).hexdigest()}"
    location = begin(registry)
    for first, end in ((0, 100_000), (100_000, 256_000)):
        answered = patch(registry, location, first, end)
        assert (answered.status, answered.headers["range"]) == (202, f"0-{end - 1}")
        location = answered.headers["location"]
    closed = send(registry, "PUT", f"{location}&digest={digest}", **CHUNK)
    assert (closed.status, closed.headers["docker-content-digest"]) == (201, digest)
    assert closed.headers["location"] == f"/v2/{REPOSITORY}/blobs/{digest}"
    assert ask(registry, closed.headers["location"]).body == registry.blob(REPOSITORY, digest) == BLOB
    assert [one.received for one in registry.requests] == [0, 100_000, 156_000, 0, 0]
    assert registry.uploads.open == 0


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_blob_at_once(registry: FakeRegistry, algorithm: str) -> None:
    digest = f"{algorithm}:{hashlib.new(algorithm, BLOB).hexdigest()}"
    assert send(registry, "PUT", f"{begin(registry)}&digest={digest}", BLOB, **CHUNK).status == 201
    assert registry.blob(REPOSITORY, digest) == BLOB


@pytest.mark.parametrize(
    ("content_range", "status", "code"),
    [
        ("0-9", 416, "RANGE_INVALID"),
        ("99-108", 416, "RANGE_INVALID"),
        ("101-110", 416, "RANGE_INVALID"),
        ("100-108", 400, "SIZE_INVALID"),
        ("bytes 100-109/256000", 400, "BLOB_UPLOAD_INVALID"),
        ("", 400, "BLOB_UPLOAD_INVALID"),
    ],
)
def test_chunks_come_in_order(registry: FakeRegistry, content_range: str, status: int, code: str) -> None:
    location = patch(registry, begin(registry), 0, 100).headers["location"]
    answered = send(registry, "PATCH", location, BLOB[:10], Content_Range=content_range, **CHUNK)
    assert (answered.status, answered.code) == (status, code)
    if status == 416:
        assert (answered.headers["range"], answered.headers["location"]) == ("0-99", location)
    assert ask(registry, location).headers["range"] == "0-99"


def test_only_the_latest_location_takes_bytes(registry: FakeRegistry) -> None:
    first = begin(registry)
    second = patch(registry, first, 0, 100).headers["location"]
    assert patch(registry, first, 100, 200).code == "BLOB_UPLOAD_INVALID"
    state = ask(registry, first)  # a client that lost the location asks for the state
    assert (state.status, state.headers["range"]) == (204, "0-99")
    assert patch(registry, second, 100, 200).code == "BLOB_UPLOAD_INVALID"
    assert patch(registry, state.headers["location"], 100, 200).status == 202


@pytest.mark.parametrize("digest", [f"sha256:{'0' * 64}", "sha256:abc", "", "md5:abc"])
def test_a_wrong_digest(registry: FakeRegistry, digest: str) -> None:
    answered = send(registry, "PUT", f"{begin(registry)}&digest={digest}", BLOB, **CHUNK)
    assert (answered.status, answered.code) == (400, "DIGEST_INVALID")


def test_a_cancelled_upload(registry: FakeRegistry) -> None:
    location = begin(registry)
    assert ask(registry, location, "DELETE").status == 204
    assert patch(registry, location, 0, 100).code == "BLOB_UPLOAD_UNKNOWN"


def test_limits_of_chunks() -> None:
    with FakeRegistry(uploads=Uploads(min_chunk_bytes=1000, max_chunk_bytes=5000)) as registry:
        announced = send(registry, "POST", f"/v2/{REPOSITORY}/blobs/uploads/").headers
        assert announced["oci-chunk-min-length"] == "1000"
        answered = patch(registry, announced["location"], 0, 5001)
        assert (answered.status, answered.code) == (416, "SIZE_INVALID")


@pytest.mark.parametrize(
    ("mounts", "query", "status"),
    [
        ("named", "&from=other", 201),
        ("named", "&from=third", 202),
        ("named", "", 202),
        ("any", "", 201),
        ("none", "&from=other", 202),
    ],
)
def test_mounts(mounts: Literal["named", "any", "none"], query: str, status: int) -> None:
    with FakeRegistry(mounts=mounts) as registry:
        digest = registry.put_blob("other", BLOB)
        answered = send(registry, "POST", f"/v2/{REPOSITORY}/blobs/uploads/?mount={digest}{query}")
        assert answered.status == status
        assert registry.blob(REPOSITORY, digest) == (BLOB if status == 201 else None)


@pytest.mark.parametrize("key", ["v1", f"sha256:{sha256(MANIFEST).hexdigest()}"])
def test_a_manifest_is_stored_verbatim(registry: FakeRegistry, key: str) -> None:
    answered = send(registry, "PUT", f"/v2/{REPOSITORY}/manifests/{key}", MANIFEST, Content_Type=MANIFEST_TYPE)
    assert (answered.status, "oci-subject" in answered.headers) == (201, False)
    assert registry.manifest(REPOSITORY, key) == (MANIFEST_TYPE, MANIFEST)


@pytest.mark.parametrize(
    ("key", "body", "status", "code"),
    [
        (UNKNOWN, MANIFEST, 400, "DIGEST_INVALID"),
        (".v1", MANIFEST, 400, "MANIFEST_INVALID"),
        ("v1", b'{"mediaType": "text/plain"}', 400, "MANIFEST_INVALID"),
        ("v1", b'{"layers": [{"digest": "%s"}]}' % UNKNOWN.encode(), 404, "MANIFEST_BLOB_UNKNOWN"),
        ("v1", b'{"config": {"digest": "%s"}}' % UNKNOWN.encode(), 404, "MANIFEST_BLOB_UNKNOWN"),
        ("v1", b'{"manifests": [{"digest": "%s"}]}' % UNKNOWN.encode(), 404, "MANIFEST_BLOB_UNKNOWN"),
        ("v1", b" " * (4 * 1024 * 1024 + 1), 413, "SIZE_INVALID"),
    ],
)
def test_manifests_that_are_refused(registry: FakeRegistry, key: str, body: bytes, status: int, code: str) -> None:
    answered = send(registry, "PUT", f"/v2/{REPOSITORY}/manifests/{key}", body, Content_Type=MANIFEST_TYPE)
    assert (answered.status, answered.code) == (status, code)


@pytest.mark.parametrize("referrers", [True, False])
def test_subjects(*, referrers: bool) -> None:
    with FakeRegistry(referrers=referrers) as registry:
        body = b'{"subject": {"digest": "%s"}}' % UNKNOWN.encode()
        answered = send(registry, "PUT", f"/v2/{REPOSITORY}/manifests/v1", body, Content_Type=MANIFEST_TYPE)
        assert answered.headers.get("oci-subject") == (UNKNOWN if referrers else None)


def test_referrers_come_in_pages() -> None:
    with FakeRegistry(page_entries=1) as registry:
        bodies = [b'{"artifactType": "a/%d", "subject": {"digest": "%s"}}' % (n, UNKNOWN.encode()) for n in range(2)]
        wanted = {registry.put_manifest(REPOSITORY, body, MANIFEST_TYPE) for body in bodies}
        first = ask(registry, f"/v2/{REPOSITORY}/referrers/{UNKNOWN}", Accept=OCI_INDEX)
        second = ask(registry, first.headers["link"].partition(">")[0].lstrip("<"), Accept=OCI_INDEX)
        assert {json.loads(page.body)["manifests"][0]["digest"] for page in (first, second)} == wanted
        assert "link" not in second.headers


@pytest.mark.parametrize(("filters", "found"), [(True, 0), (False, 1)])
def test_referrers_are_filtered(*, filters: bool, found: int) -> None:
    with FakeRegistry(filters=filters) as registry:
        body = b'{"artifactType": "a/b", "subject": {"digest": "%s"}}' % UNKNOWN.encode()
        registry.put_manifest(REPOSITORY, body, MANIFEST_TYPE)
        answered = ask(registry, f"/v2/{REPOSITORY}/referrers/{UNKNOWN}?artifactType=c/d", Accept=OCI_INDEX)
        assert len(json.loads(answered.body)["manifests"]) == found
        assert answered.headers.get("oci-filters-applied") == ("artifactType" if filters else None)


def test_referrers_that_are_refused(registry: FakeRegistry) -> None:
    assert ask(registry, f"/v2/{REPOSITORY}/referrers/x", Accept=OCI_INDEX).code == "DIGEST_INVALID"
    with FakeRegistry(referrers=False) as bare:
        assert ask(bare, f"/v2/{REPOSITORY}/referrers/{UNKNOWN}", Accept=OCI_INDEX).status == 404


@pytest.mark.parametrize("after", [0, 1000, 100_000])
def test_a_dropped_chunk_is_kept_as_far_as_it_came(registry: FakeRegistry, after: int) -> None:
    location = begin(registry)
    registry.inject(Fault(method="PATCH", action=Drop(after)))
    with pytest.raises(OSError, match=r"reset|Broken|without response"):
        patch(registry, location, 0, 100_000)
    assert ask(registry, location).headers["range"] == f"0-{max(after - 1, 0)}"
    dropped = registry.find_requests("PATCH", ".*")[0]
    assert (dropped.status, dropped.received) == (0, after)


def test_a_chunk_whose_client_leaves_is_kept_as_far_as_it_came(registry: FakeRegistry) -> None:
    location = begin(registry)
    with closing(connect(registry)) as connection:
        connection.putrequest("PATCH", location)
        connection.putheader("Content-Length", "1000")
        connection.endheaders(BLOB[:600])
        connection.sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert connection.sock.recv(1) == b""
    assert registry.find_requests("PATCH", ".*")[0].received == 600
    assert ask(registry, location).headers["range"] == "0-599"


def test_a_refusal_at_the_door_does_nothing(registry: FakeRegistry) -> None:
    location = begin(registry)
    registry.inject(Fault(method="PATCH", action=Refuse(503)))
    assert patch(registry, location, 0, 100).status == 503
    assert ask(registry, location).headers["range"] == "0-0"
    assert registry.find_requests("PATCH", ".*")[0].received == 0


def test_tokens_to_push() -> None:
    with FakeRegistry(auth=Bearer(withheld=frozenset({"secret"}))) as registry:
        path = f"/v2/{REPOSITORY}/blobs/uploads/"
        refused = send(registry, "POST", f"{path}?mount={UNKNOWN}&from=other")
        own = f"repository:{REPOSITORY}:pull,push"
        assert refused.headers["www-authenticate"].endswith(f',scope="{own} repository:other:pull"')
        assert send(registry, "POST", path, Authorization=token_for(registry, REPOSITORY)).status == 401

        def token(*scopes: str) -> str:
            query = "".join(f"&scope={scope}" for scope in scopes)
            return f"Bearer {json.loads(ask(registry, f'/token?service=fake{query}').body)['token']}"

        for source, status in (("other", 202), ("secret", 401)):
            mount = f"{path}?mount={UNKNOWN}&from={source}"
            assert send(registry, "POST", mount, Authorization=token(own, f"repository:{source}:pull")).status == status


# Deleting, and the catalog.


@pytest.mark.parametrize(
    ("deletes", "by_tag", "by_digest", "left"),
    [
        ("all", (202, 404), (202, 404), []),
        ("manifests", (400, 400), (202, 404), []),
        ("nothing", (405, 405), (405, 405), ["v1", "v2"]),
    ],
)
def test_deleting(
    deletes: Literal["all", "manifests", "nothing"], by_tag: tuple[int, int], by_digest: tuple[int, int], left: list[str]
) -> None:
    with FakeRegistry(deletes=deletes) as registry:
        for tag in ("v1", "v2"):
            digest = registry.put_manifest(REPOSITORY, MANIFEST, MANIFEST_TYPE, tag=tag)
        other = registry.put_manifest("other", MANIFEST, MANIFEST_TYPE, tag="v1")
        registry.put_blob(REPOSITORY, BLOB)

        def twice(key: str) -> tuple[int, int]:
            first, second = (send(registry, "DELETE", f"/v2/{REPOSITORY}/manifests/{key}") for _ in range(2))
            return first.status, second.status

        assert twice("v1") == by_tag
        assert registry.manifest(REPOSITORY, "v2") == registry.manifest(REPOSITORY, digest) == (MANIFEST_TYPE, MANIFEST)
        assert twice(digest) == by_digest
        assert json.loads(ask(registry, f"/v2/{REPOSITORY}/tags/list").body)["tags"] == left
        assert registry.manifest("other", other) is not None


def test_the_catalog_comes_in_pages() -> None:
    with FakeRegistry(page_entries=2) as registry:
        for name in ("b", "a/x", "c"):
            registry.put_blob(name, BLOB)
        first = ask(registry, "/v2/_catalog?n=5")
        assert json.loads(first.body) == {"repositories": ["a/x", "b"]}
        assert first.headers["link"] == '</v2/_catalog?n=5&last=b>; rel="next"'
        last = ask(registry, "/v2/_catalog?n=5&last=b")
        assert (json.loads(last.body), "link" in last.headers) == ({"repositories": ["c"]}, False)
        assert ask(registry, "/v2/_catalog?n=some").code == "PAGINATION_NUMBER_INVALID"


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/v2/_catalog", "registry:catalog:*"),
        ("DELETE", f"/v2/{REPOSITORY}/manifests/v1", f"repository:{REPOSITORY}:delete"),
    ],
)
def test_tokens_for_these(method: str, path: str, scope: str) -> None:
    with FakeRegistry(auth=Bearer()) as registry:
        registry.put_manifest(REPOSITORY, MANIFEST, MANIFEST_TYPE, tag="v1")
        assert send(registry, method, path).headers["www-authenticate"].endswith(f',scope="{scope}"')

        def status(scope: str) -> int:
            token = json.loads(ask(registry, f"/token?service=fake&scope={scope}").body)["token"]
            return send(registry, method, path, Authorization=f"Bearer {token}").status

        assert status(f"repository:{REPOSITORY}:pull,push") == 401
        assert status(scope) in (200, 202)
