"""The application in front of the local Prefect server, without Prefect and without a network."""

import asyncio
import base64
import json
from collections.abc import Coroutine
from typing import Any

import pytest

from prefect_dist.cli.local_auth import prove
from prefect_dist.cli.local_gate import Message, Receive, Scope, Send, ServerGate

SECRET, PORT = "dist:secret", 4321
BASIC = {"authorization": "Basic " + base64.b64encode(SECRET.encode()).decode()}
NONCE = 64 * "a"


async def prefect(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer each request with its path."""
    assert (await receive())["type"] == "http.request"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


async def ui(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ui"})


async def nothing() -> None:
    return


def make_gate() -> ServerGate:
    return ServerGate(prefect, build_ui=lambda: ui, secret=SECRET, port=PORT, before_shutdown=nothing)


class Client:
    """One request to the gate. The client stays connected until `disconnect` is set."""

    def __init__(self, gate: ServerGate, method: str, target: str, headers: dict[str, str] | None = None) -> None:
        path, _, query = target.partition("?")
        all_headers = {"host": f"127.0.0.1:{PORT}"} | (headers or {})
        self._gate = gate
        self._scope: Scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in all_headers.items()],
        }
        self._messages: list[Message] = []
        self._has_sent = False
        self.disconnect = asyncio.Event()
        self.answered = asyncio.Event()

    async def run(self) -> "Client":
        await self._gate(self._scope, self._receive, self._send)
        return self

    async def _receive(self) -> Message:
        if not self._has_sent:
            self._has_sent = True
            return {"type": "http.request", "body": b""}
        await self.disconnect.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self._messages.append(message)
        self.answered.set()

    @property
    def status(self) -> int:
        return int(self._messages[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self._messages[0]["headers"]}

    @property
    def body(self) -> str:
        return b"".join(message["body"] for message in self._messages[1:]).decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(gate: ServerGate, method: str, target: str, headers: dict[str, str] | None = None) -> Client:
    async def send() -> Client:
        return await asyncio.wait_for(Client(gate, method, target, headers).run(), 10)

    return asyncio.run(send())


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


def issue_code(gate: ServerGate) -> str:
    return str(ask(gate, "POST", "/dist/codes", BASIC).json["code"])


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:4321", "localhost:9000"])
def test_requests_for_loopback_are_served(host: str) -> None:
    assert ask(make_gate(), "GET", "/api/health", {"host": host}).body == "/api/health"


@pytest.mark.parametrize(
    "host", ["", "evil.example", "127.0.0.1.evil.example", "127.0.0.1:4321@evil.example", "10.0.0.1", "[::1]"]
)
def test_requests_for_other_hosts_are_refused(host: str) -> None:
    assert ask(make_gate(), "GET", "/api/health", {"host": host}).status == 421


def test_pages_come_from_the_ui_and_requests_below_api_from_prefect() -> None:
    gate = make_gate()

    assert [ask(gate, "GET", path).body for path in ("/", "/runs", "/apix", "/api", "/api/x")] == [
        "ui",
        "ui",
        "ui",
        "/api",
        "/api/x",
    ]


def test_the_server_proves_its_identity_without_a_secret_in_the_request() -> None:
    answer = ask(make_gate(), "GET", f"/dist/identity?nonce={NONCE}")

    assert answer.json == {"proof": prove(SECRET, PORT, NONCE)}
    assert answer.json["proof"] not in (prove("dist:other", PORT, NONCE), prove(SECRET, PORT + 1, NONCE))


@pytest.mark.parametrize("nonce", ["", "a", 63 * "a" + "G", 65 * "a"])
def test_the_server_proves_nothing_for_other_nonces(nonce: str) -> None:
    assert ask(make_gate(), "GET", f"/dist/identity?nonce={nonce}").json == {"proof": None}


@pytest.mark.parametrize("request_", ["GET /dist/status", "POST /dist/lease", "POST /dist/stop?when=now", "POST /dist/codes"])
@pytest.mark.parametrize("headers", [{}, {"authorization": "Basic " + base64.b64encode(b"dist:other").decode()}])
def test_the_endpoints_require_the_secret(request_: str, headers: dict[str, str]) -> None:
    gate = make_gate()

    method, target = request_.split()
    assert ask(gate, method, target, headers).status == 401
    assert not gate.stop.is_set()
    assert gate.usage.leases == 0


def test_a_code_logs_a_browser_in_once() -> None:
    gate = make_gate()
    target = f"/open?code={issue_code(gate)}&to=/runs/flow-run/1"

    first, second = ask(gate, "GET", target), ask(gate, "GET", target)

    assert first.status == 200
    assert f'"{BASIC["authorization"].removeprefix("Basic ")}"' in first.body
    assert 'location.replace("/runs/flow-run/1")' in first.body
    assert first.headers["cache-control"] == "no-store"
    nonce = first.headers["content-security-policy"].partition("'nonce-")[2].partition("'")[0]
    assert f'<script nonce="{nonce}">' in first.body
    assert second.status == 410
    assert "dist server open" in second.body


@pytest.mark.parametrize(
    "path", ["//evil.example", "https://evil.example", "/\\evil.example", "/a</script>", "/x?y", "javascript:alert(1)"]
)
def test_a_code_opens_only_pages_of_the_ui(path: str) -> None:
    gate = make_gate()

    assert ask(gate, "GET", f"/open?code={issue_code(gate)}&to={path}").status == 410


def test_a_code_is_valid_for_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, now = make_gate(), 1000.0
    monkeypatch.setattr("prefect_dist.cli.local_auth.time.monotonic", lambda: now)
    code = issue_code(gate)
    now += 601

    assert ask(gate, "GET", f"/open?code={code}").status == 410


def test_a_lease_lasts_until_its_client_leaves() -> None:
    async def test() -> None:
        gate = make_gate()
        client = Client(gate, "POST", "/dist/lease", BASIC)
        lease = asyncio.create_task(client.run())
        await client.answered.wait()
        assert (client.status, gate.usage.leases, gate.usage.measure_idle()) == (200, 1, 0)
        client.disconnect.set()
        await lease
        assert gate.usage.leases == 0

    run(test())


def test_a_used_server_ends_only_when_forced() -> None:
    async def test() -> None:
        gate = make_gate()
        client = Client(gate, "POST", "/dist/lease", BASIC)
        lease = asyncio.create_task(client.run())
        await client.answered.wait()
        refused = await Client(gate, "POST", "/dist/stop?when=unused", BASIC).run()
        assert refused.json == {"leases": 1, "stops": False}
        forced = await Client(gate, "POST", "/dist/stop?when=now", BASIC).run()
        assert forced.json == {"leases": 1, "stops": True}
        await lease  # the server closes the connection
        assert (await Client(gate, "POST", "/dist/lease", BASIC).run()).status == 503

    run(test())


def test_a_server_that_ends_after_its_last_lease_grants_no_further_lease() -> None:
    async def test() -> None:
        gate = make_gate()
        client = Client(gate, "POST", "/dist/lease", BASIC)
        lease = asyncio.create_task(client.run())
        await client.answered.wait()
        retiring = await Client(gate, "POST", "/dist/stop?when=released", BASIC).run()
        assert retiring.json == {"leases": 1, "stops": False}
        assert (await Client(gate, "POST", "/dist/lease", BASIC).run()).status == 503
        assert gate.usage.is_retiring
        client.disconnect.set()
        await lease

    run(test())


def test_an_open_request_counts_as_use() -> None:
    async def test() -> None:
        gate = make_gate()
        finish = asyncio.Event()

        async def wait(scope: Scope, receive: Receive, send: Send) -> None:
            await finish.wait()
            await prefect(scope, receive, send)

        gate = ServerGate(wait, build_ui=lambda: ui, secret=SECRET, port=PORT, before_shutdown=nothing)
        request = asyncio.create_task(Client(gate, "GET", "/api/health").run())
        await asyncio.sleep(0)
        assert gate.usage.measure_idle() == 0
        finish.set()
        await request
        assert gate.usage.open == 0

    run(test())
