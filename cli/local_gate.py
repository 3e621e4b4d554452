"""The ASGI application of the local Prefect server: Prefect's API and UI, and the endpoints of `dist` in front of them.

    GET  /dist/identity?nonce=N   HMAC of N with the secret. A client sends its secret only to a server that knows the secret.
    GET  /dist/status             use of the server
    POST /dist/lease              keeps the server running until the client closes the connection
    POST /dist/stop?when=…        ends the server: `unused` only without leases, `released` after the last lease, or `now`
    POST /dist/codes              a code for /open
    GET  /open?code=C&to=PATH     logs the browser in and opens a page of the UI

All endpoints below /dist except `identity` require the secret. Requests for other hosts than loopback are refused: a page of
another origin can make a browser send such requests (DNS rebinding).
"""

import asyncio
import contextlib
import hmac
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qs

from prefect_dist.cli import local_auth

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_LOOPBACK: Final = re.compile(r"(?:127\.0\.0\.1|localhost)(?::\d{1,5})?")
_NONCE: Final = re.compile(r"[0-9a-f]{64}")
_JSON = {"content-type": "application/json", "cache-control": "no-store"}


class Usage:
    """Counts the requests, websockets and leases that are open, and remembers the time of the last one."""

    def __init__(self) -> None:
        self.leases = 0
        self.open = 0
        # No further leases are granted, and the server ends after the last lease.
        self.is_retiring = False
        self._last = time.monotonic()

    @contextlib.contextmanager
    def count_request(self) -> Iterator[None]:
        """Count a request or websocket until the end of the block."""
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1
            self.restart_clock()

    @contextlib.contextmanager
    def count_lease(self) -> Iterator[None]:
        """Count a lease until the end of the block."""
        self.leases += 1
        try:
            yield
        finally:
            self.leases -= 1
            self.restart_clock()

    def restart_clock(self) -> None:
        """Count the idle time from now on."""
        self._last = time.monotonic()

    def measure_idle(self) -> float:
        """Return the seconds since the last request or lease ended, or 0 while one is open."""
        return 0 if self.leases or self.open else time.monotonic() - self._last


class ServerGate:
    """The application. `build_ui` makes the application of the UI at the first request for a page, in a thread.

    `before_shutdown` is awaited when all connections are closed and Prefect has not stopped its services yet. `started` is set
    when Prefect has started, `stop` when the server has to end. `failure` is the error that ended the start or the end of
    Prefect.
    """

    def __init__(
        self, api: App, *, build_ui: Callable[[], App], secret: str, port: int, before_shutdown: Callable[[], Awaitable[None]]
    ) -> None:
        self.usage = Usage()
        self.started, self.stop = asyncio.Event(), asyncio.Event()
        self.failure: Exception | None = None
        self._api, self._secret, self._port = api, secret, port
        self._before_shutdown = before_shutdown
        self._build_ui, self._ui, self._ui_lock = build_ui, list[App](), asyncio.Lock()
        self.codes = local_auth.Codes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, a websocket, or the lifespan of the server."""
        if scope["type"] == "lifespan":
            await self._run_lifespan(scope, receive, send)
        elif not _LOOPBACK.fullmatch(_header(scope, b"host")):
            await _refuse_host(scope, receive, send)
        elif scope["path"] == "/open" or scope["path"].startswith("/dist/"):
            await self._serve_own(scope, receive, send)
        else:
            with self.usage.count_request():
                is_api = scope["path"] == "/api" or scope["path"].startswith("/api/")
                await (self._api if is_api else await self._load_ui())(scope, receive, send)

    async def _run_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def receive_later() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self._before_shutdown()
            return message

        async def note_start(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self.started.set()
            await send(message)

        try:
            await self._api(scope, receive_later, note_start)
        except Exception as exc:
            self.failure = exc
            raise

    async def _load_ui(self) -> App:
        async with self._ui_lock:
            if not self._ui:
                self._ui.append(await asyncio.to_thread(self._build_ui))
        return self._ui[0]

    async def _serve_own(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        query = {name: values[-1] for name, values in parse_qs(scope["query_string"].decode("latin-1")).items()}
        request = f"{scope['method']} {scope['path']}"
        if request == "GET /open":
            await self._serve_open(query, send)
        elif request == "GET /dist/identity":
            nonce = query.get("nonce", "")
            proof = local_auth.prove(self._secret, self._port, nonce) if _NONCE.fullmatch(nonce) else None
            await _send_json(send, {"proof": proof})
        elif not self._is_authorized(scope):
            await _send_json(send, {"error": "unauthorized"}, HTTPStatus.UNAUTHORIZED)
        elif request == "GET /dist/status":
            await _send_json(send, {"leases": self.usage.leases, "idle_s": self.usage.measure_idle()})
        elif request == "POST /dist/codes":
            await _send_json(send, {"code": self.codes.issue()})
        elif request == "POST /dist/stop":
            await _send_json(send, self._request_stop(query.get("when", "unused")))
        elif request == "POST /dist/lease":
            await self._serve_lease(receive, send)
        else:
            await _send_json(send, {"error": "not found"}, HTTPStatus.NOT_FOUND)

    def _is_authorized(self, scope: Scope) -> bool:
        expected = f"Basic {local_auth.encode_basic(self._secret)}"
        return hmac.compare_digest(_header(scope, b"authorization").encode(), expected.encode())

    async def _serve_open(self, query: dict[str, str], send: Send) -> None:
        path = query.get("to", "/")
        if local_auth.is_ui_path(path) and self.codes.redeem(query.get("code", "")):
            page, headers = local_auth.make_page(self._secret, path)
            await _send(send, HTTPStatus.OK, headers, page)
        else:
            page, headers = local_auth.make_expired_page()
            await _send(send, HTTPStatus.GONE, headers, page)

    def _request_stop(self, when: str) -> dict[str, Any]:
        self.usage.is_retiring = self.usage.is_retiring or when == "released"
        if when == "now" or not self.usage.leases:
            self.usage.is_retiring = True
            self.stop.set()
        return {"leases": self.usage.leases, "stops": self.stop.is_set()}

    async def _serve_lease(self, receive: Receive, send: Send) -> None:
        """Answer at once, and end the answer when the client closes the connection or the server ends."""
        if self.usage.is_retiring or self.stop.is_set():
            await _send_json(send, {"error": "the server ends"}, HTTPStatus.SERVICE_UNAVAILABLE)
            return
        with self.usage.count_lease():
            await send({"type": "http.response.start", "status": 200, "headers": _encode(_JSON)})
            await send({"type": "http.response.body", "body": b"{}", "more_body": True})
            stopped = asyncio.ensure_future(self.stop.wait())
            closed = asyncio.ensure_future(_wait_for_disconnect(receive))
            try:
                await asyncio.wait((stopped, closed), return_when=asyncio.FIRST_COMPLETED)
            finally:
                stopped.cancel()
                closed.cancel()
        if self.stop.is_set():
            await send({"type": "http.response.body", "body": b""})


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _header(scope: Scope, name: bytes) -> str:
    """Return the value of a header, or an empty text. Several headers with this name count as none."""
    values = [value for key, value in scope["headers"] if key.lower() == name]
    return values[0].decode("latin-1") if len(values) == 1 else ""


async def _refuse_host(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})
    else:
        await _send_json(send, {"error": "only for 127.0.0.1 and localhost"}, HTTPStatus.MISDIRECTED_REQUEST)


async def _send_json(send: Send, document: object, status: HTTPStatus = HTTPStatus.OK) -> None:
    await _send(send, status, _JSON, json.dumps(document).encode())


async def _send(send: Send, status: HTTPStatus, headers: dict[str, str], body: bytes) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": int(status),
            "headers": [*_encode(headers), (b"content-length", str(len(body)).encode())],
        }
    )
    await send({"type": "http.response.body", "body": body})


def _encode(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]
