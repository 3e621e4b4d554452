import logging
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from prefect_dist.ocispec.errors import Denied, Unavailable
from prefect_dist.remotes import Hosts, Registries
from prefect_dist.remotes.transport import PIECE_BYTES, Urllib3Transport
from tests import images
from tests.fakes.access import Bearer
from tests.fakes.faults import Answer, Cut, Fault, Redirect, Refuse, Reset, Stall
from tests.fakes.registry import FakeRegistry
from tests.fakes.scripted import Scripted
from tests.peers.processes import free_port
from tests.peers.tls import self_signed
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

OK = b"HTTP/1.1 200 OK\r\n"
IMAGE = images.image(seed=1)
WANTED = descriptor(BLOB)


def connect(read_timeout_s: float) -> httpx.Client:
    return httpx.Client(transport=Urllib3Transport(connect_timeout_s=10, read_timeout_s=read_timeout_s))


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with connect(10) as client:
        yield client


def put(registry: FakeRegistry, content: bytes) -> str:
    """Store a blob; return its URL."""
    return f"http://{registry.host}/v2/{REPOSITORY}/blobs/{registry.put_blob(REPOSITORY, content)}"


# Errors are httpx's.


def test_a_refused_connection_is_an_error(client: httpx.Client) -> None:
    with pytest.raises(httpx.ConnectError, match="Connection refused") as caught:
        client.get(f"http://127.0.0.1:{free_port()}/")
    assert caught.value.request.method == "GET"


def test_an_unknown_host_is_an_error(client: httpx.Client) -> None:
    with pytest.raises(httpx.ConnectError):
        client.get("http://nosuch.invalid/")


@pytest.mark.parametrize("after", [0, 5])
def test_a_stall_causes_a_read_timeout(registry: FakeRegistry, after: int) -> None:
    registry.inject(Fault(action=Stall(after)))
    with connect(0.2) as hasty, pytest.raises(httpx.ReadTimeout):
        hasty.get(put(registry, BLOB))


def test_a_reset_in_the_body_is_an_error(client: httpx.Client, registry: FakeRegistry) -> None:
    registry.inject(Fault(action=Reset(70_000)))
    with pytest.raises(httpx.RemoteProtocolError, match="reset"):
        client.get(put(registry, BLOB))


def test_a_body_that_ends_early_is_an_error(client: httpx.Client, registry: FakeRegistry) -> None:
    registry.inject(Fault(action=Cut(70_000)))
    with pytest.raises(httpx.RemoteProtocolError):
        client.get(put(registry, BLOB))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 \x1b[31m\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"x" * 100_000,
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 70_000,
        OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
        OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    ],
    ids=lambda answer: repr(answer[:40]),
)
def test_invalid_responses_are_an_error(client: httpx.Client, answer: bytes) -> None:
    with Scripted(answer) as strange, pytest.raises(httpx.TransportError):
        client.get(f"http://{strange.host}/")


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 \x1b[31m\nx\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n"])
def test_strange_responses_are_reported_in_one_line(registries: Registries, answer: bytes) -> None:
    with Scripted(answer) as strange:
        with pytest.raises(Unavailable) as caught:
            registries.resolve(reference(strange.host))
        check_message(caught.value, strange.host)


# Bodies.


def test_a_large_body_arrives_in_large_pieces(client: httpx.Client, registry: FakeRegistry) -> None:
    content = bytes(range(251)) * 200_000  # 50 MB
    with client.stream("GET", put(registry, content)) as response:
        pieces = list(response.iter_raw())
    assert b"".join(pieces) == content
    assert max(len(piece) for piece in pieces) <= PIECE_BYTES


@pytest.mark.parametrize("sizes", [[1], [5, 70_000, 1], [2_500_000, 3]])
def test_a_chunked_body_is_read(registries: Registries, sizes: list[int]) -> None:
    chunks = [bytes([size % 251]) * size for size in sizes]
    body = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\nTrailer: x\r\n\r\n"
    answer = OK + b"Transfer-Encoding: chunked\r\n\r\n" + body
    content = b"".join(chunks)
    with Scripted(answer, answer, keep=True) as server:
        for _ in range(2):
            assert read(fetcher(registries, server.host), descriptor(content)) == content
    assert len(server.heads) == 2


def test_an_interrupted_chunked_body_is_resumed(registries: Registries) -> None:
    content = b"abcdefgh"
    broken = OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n3\r\nf"
    rest = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 6-7/8\r\nContent-Length: 2\r\n\r\ngh"
    with Scripted(broken, rest) as server:
        assert read(fetcher(registries, server.host), descriptor(content)) == content
    assert "range: bytes=6-7" in server.heads[1].lower()


def test_a_request_has_the_expected_headers(client: httpx.Client) -> None:
    with Scripted(OK + b"Content-Length: 0\r\n\r\n") as server:
        client.get(f"http://{server.host}/a%2Fb/c?d=e%20f", headers={"Accept": "a/b, */*", "Range": "bytes=1-2"})
    first, *headers = server.heads[0].strip().split("\r\n")
    assert first == "GET /a%2Fb/c?d=e%20f HTTP/1.1"
    names = [header.partition(":")[0].lower() for header in headers]
    assert len(names) == len(set(names))
    assert f"host: {server.host}" in [header.lower() for header in headers]
    assert "content-length" not in names


def test_headers_may_repeat(client: httpx.Client) -> None:
    head = OK + b"Content-Length: 0\r\nWWW-Authenticate: Basic realm=a\r\nWWW-Authenticate: Bearer realm=b\r\nX: \xe9\r\n\r\n"
    with Scripted(head) as server:
        response = client.get(f"http://{server.host}/")
    assert response.headers.get_list("www-authenticate") == ["Basic realm=a", "Bearer realm=b"]
    assert dict(response.headers.raw)[b"X"] == b"\xe9"


def test_an_ipv6_address_is_reached(client: httpx.Client) -> None:
    try:
        server = Scripted(OK + b"Content-Length: 2\r\n\r\nhi", address="::1")
    except OSError as exc:
        pytest.skip(f"no IPv6 on this machine: {exc}")
    with server:
        assert client.get(f"http://{server.host}/v2/").content == b"hi"
    assert f"host: {server.host}\r\n" in server.heads[0].lower()


# Bodies of requests.


class Pieces:
    """Many pieces, made on demand."""

    def __init__(self, count: int) -> None:
        self.size = count * len(BLOB)
        self._count = count
        self.begun = 0

    def __iter__(self) -> Iterator[bytes]:
        self.begun += 1
        for number in range(self._count):
            yield number.to_bytes(4, "big") + BLOB[4:]


def upload(client: httpx.Client, registry: FakeRegistry, body: Pieces) -> httpx.Response:
    url = f"http://{registry.host}{registry.uploads.begin(REPOSITORY).header('Location')}"
    headers = {"Content-Length": str(body.size), "Content-Range": f"0-{body.size - 1}"}
    return client.patch(url, content=body, headers=headers | {"Content-Type": "application/octet-stream"})


def test_a_body_in_pieces_is_sent(client: httpx.Client, registry: FakeRegistry) -> None:
    body = Pieces(3)
    for _ in range(2):
        assert upload(client, registry, body).status_code == 202
    first, second = registry.requests
    assert first.received == second.received == body.size
    assert first.headers["content-length"] == str(body.size)
    assert "transfer-encoding" not in first.headers
    assert (body.begun, registry.connections) == (2, 1)


def test_a_body_in_pieces_is_sent_again_after_a_redirect(
    client: httpx.Client, registry: FakeRegistry, other: FakeRegistry
) -> None:
    client.follow_redirects = True
    where = other.uploads.begin(REPOSITORY).header("Location")
    registry.inject(Fault(method="PATCH", action=Redirect(f"http://{other.host}{where}")))
    body = Pieces(3)
    assert upload(client, registry, body).status_code == 202
    assert (body.begun, other.requests[0].received) == (2, body.size)


def test_a_response_before_the_end_of_the_request_body_is_read(client: httpx.Client, registry: FakeRegistry) -> None:
    registry.inject(Fault(method="PATCH", action=Refuse(403, (), b"no")))
    answer = upload(client, registry, Pieces(100))
    assert (answer.status_code, answer.content) == (403, b"no")


def test_a_server_that_stops_reading_causes_a_write_timeout() -> None:
    transport = Urllib3Transport(connect_timeout_s=10, read_timeout_s=0.2)
    body = Pieces(100_000)
    with socket.create_server(("127.0.0.1", 0)) as server, httpx.Client(transport=transport) as hasty:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        with pytest.raises(httpx.WriteTimeout, match=r"no data could be sent within the read timeout of 0\.2 s"):
            hasty.put(url, content=body, headers={"Content-Length": str(body.size)})


def test_a_body_in_pieces_takes_little_memory(client: httpx.Client) -> None:
    body = Pieces(800)  # 200 MB
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as executor:
        taken = executor.submit(take, server, body.size)
        tracemalloc.start()
        try:
            answer = client.put(
                f"http://127.0.0.1:{server.getsockname()[1]}/", content=body, headers={"Content-Length": str(body.size)}
            )
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert taken.result(timeout=30) == body.size
    assert answer.status_code == 201
    assert peak < 8 * PIECE_BYTES


def take(server: socket.socket, size: int) -> int:
    """Answer one request; return the number of received body bytes."""
    connection, _ = server.accept()
    taken = 0
    with connection, connection.makefile("rb") as stream:
        while stream.readline().strip():
            continue
        while taken < size and (piece := stream.read(min(64 * 1024, size - taken))):
            taken += len(piece)
        connection.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
    return taken


# Connections.


def test_a_connection_is_reused(registries: Registries, registry: FakeRegistry) -> None:
    images.load(registry, REPOSITORY, IMAGE, "v1")
    put(registry, BLOB)
    for _ in range(5):
        found = registries.resolve(reference(registry))
        read(found.fetcher, found.descriptor)
        read(found.fetcher, WANTED)
        read_until_error(found.fetcher, descriptor(b"nowhere"))
    assert len(registry.requests) == 20
    assert registry.connections == 1


def test_a_connection_is_reused_after_a_redirect_and_a_token(registries: Registries, other: FakeRegistry) -> None:
    with FakeRegistry(auth=Bearer()) as registry:
        put(registry, BLOB)
        put(other, BLOB)
        registry.inject(Fault(nth=None, path=".*/blobs/.*", action=Redirect(f"http://{other.host}{{path}}")))
        for _ in range(3):
            assert read(fetcher(registries, registry), WANTED) == BLOB
        assert (registry.connections, other.connections) == (1, 1)


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_a_half_read_response_does_not_affect_later_requests(registries: Registries, registry: FakeRegistry, size: int) -> None:
    content = b"\xaa" * size
    put(registry, content)
    put(registry, BLOB)
    source = fetcher(registries, registry)
    for _ in range(3):
        pieces = source.fetch(descriptor(content))
        assert next(pieces)
        pieces.close()  # type: ignore[attr-defined] # it is a generator
        assert read(source, WANTED) == BLOB


def test_a_body_after_a_head_does_not_affect_later_requests(registries: Registries) -> None:
    # Some servers send one all the same: its bytes must not begin the next answer.
    headers = f"Content-Type: {images.OCI_MANIFEST}\r\nDocker-Content-Digest: {IMAGE.root.digest}\r\n"
    answer = OK + headers.encode() + b"Content-Length: 5\r\n\r\nHTTP/"
    with Scripted(answer, answer, answer, keep=True) as server:
        for _ in range(3):
            assert str(registries.resolve(reference(server.host)).descriptor.digest) == IMAGE.root.digest


def test_many_threads_cause_no_warnings(
    registries: Registries, registry: FakeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "urllib3")
    threads_at_once = 100
    put(registry, BLOB)
    release = threading.Event()
    registry.inject(Fault(nth=None, action=Stall(200_000, release)))
    source = fetcher(registries, registry)
    begun = threading.Barrier(threads_at_once, action=release.set)

    def read_together() -> bytes:
        pieces = source.fetch(WANTED)
        begin = next(pieces)
        begun.wait(30)
        return begin + b"".join(pieces)

    with ThreadPoolExecutor(threads_at_once) as threads:
        done = [threads.submit(read_together) for _ in range(threads_at_once)]
    assert {one.result() for one in done} == {BLOB}
    assert registry.connections == threads_at_once
    assert [record for record in caplog.records if record.name.startswith("urllib3")] == []


# TLS. A loopback registry speaks plain http by design, so it is the token server that is reached over https.


@pytest.fixture
def token_server(tmp_path: Path) -> Iterator[FakeRegistry]:
    bearer = Bearer(user="me", password="secret", refuse_anonymous=True)
    with FakeRegistry(auth=bearer, tls=self_signed(tmp_path)) as server:
        yield server


@pytest.fixture
def tls_registry(token_server: FakeRegistry) -> Iterator[FakeRegistry]:
    """A registry whose token server has TLS."""
    bearer = Bearer(user="me", password="secret", realm=f"https://{token_server.host}/token")
    with FakeRegistry(auth=bearer) as registry:
        put(registry, BLOB)
        yield registry


def test_an_unknown_certificate_is_refused(tls_registry: FakeRegistry, token_server: FakeRegistry) -> None:
    with Registries(SETTINGS, credentials=lambda *_: user("me", "secret")) as registries:
        _, error = read_until_error(fetcher(registries, tls_registry), WANTED)
    assert isinstance(error, Denied)
    check_message(error, "certificate of 127.0.0.1 is not trusted", "self-signed certificate", token_server.host)
    assert token_server.requests == []
    assert len(tls_registry.requests) == 1


def test_a_known_certificate_is_trusted(
    tls_registry: FakeRegistry, token_server: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    token_server.inject(Fault(path="/token", nth=None, action=Answer(200, (), b'{"token": "abc"}')))
    with Registries(SETTINGS, credentials=lambda *_: user("me", "secret")) as registries:
        read_until_error(fetcher(registries, tls_registry), WANTED)
    assert [(one.method, one.path) for one in token_server.requests] == [("POST", "/token"), ("GET", "/token")]
    assert tls_registry.requests[-1].headers["authorization"] == "Bearer abc"


def test_plain_http_to_a_tls_server_is_reported(registries: Registries, token_server: FakeRegistry) -> None:
    with pytest.raises(Unavailable) as caught:
        registries.resolve(reference(token_server))
    check_message(caught.value, token_server.host)


# Breaking off.


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_abort_ends_a_waiting_read(scheme: str, tmp_path: Path) -> None:
    tls = self_signed(tmp_path) if scheme == "https" else None
    trusting = Hosts(ca_file=str(tmp_path / "cert.pem") if tls else None)
    transport = Urllib3Transport(hosts=trusting, connect_timeout_s=10, read_timeout_s=300)
    begun = threading.Event()
    with (
        FakeRegistry(tls=tls) as registry,
        httpx.Client(transport=transport) as client,
        ThreadPoolExecutor(1) as executor,
    ):
        registry.inject(Fault(action=Stall(5)))
        url = f"{scheme}://{registry.host}/v2/{REPOSITORY}/blobs/{registry.put_blob(REPOSITORY, BLOB)}"

        def read_on() -> None:
            with client.stream("GET", url) as response:
                for _ in response.iter_raw():
                    begun.set()

        reading = executor.submit(read_on)
        assert begun.wait(30)
        transport.abort()
        with pytest.raises(httpx.TransportError):
            reading.result(timeout=30)


def test_an_abort_ends_the_wait_for_a_response() -> None:
    transport = Urllib3Transport(connect_timeout_s=10, read_timeout_s=300)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        httpx.Client(transport=transport) as client,
        ThreadPoolExecutor(1) as executor,
    ):
        asking = executor.submit(client.get, f"http://127.0.0.1:{server.getsockname()[1]}/")
        connection, _ = server.accept()
        with connection:
            assert connection.recv(1) == b"G"
            transport.abort()
            with pytest.raises(httpx.TransportError):
                asking.result(timeout=30)


def test_an_abort_ends_the_sending_of_a_body() -> None:
    transport = Urllib3Transport(connect_timeout_s=300, read_timeout_s=300)
    body = Pieces(100_000)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        httpx.Client(transport=transport) as client,
        ThreadPoolExecutor(1) as executor,
    ):
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        sending = executor.submit(client.put, url, content=body, headers={"Content-Length": str(body.size)})
        connection, _ = server.accept()
        with connection:
            assert connection.recv(1) == b"P"  # and no more: what is sent next fills the buffers
            transport.abort()
            with pytest.raises(httpx.TransportError):
                sending.result(timeout=30)


def test_no_connection_is_made_after_an_abort(registry: FakeRegistry) -> None:
    transport = Urllib3Transport(connect_timeout_s=10, read_timeout_s=10)
    transport.abort()
    with httpx.Client(transport=transport) as client, pytest.raises(httpx.TransportError):
        client.get(put(registry, BLOB))
    assert not registry.requests
