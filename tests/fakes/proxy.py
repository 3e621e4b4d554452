"""A forward proxy that sends all hosts to one server on loopback, so that names need no DNS, and records its requests."""

import base64
import contextlib
import http.client
import select
import socket
import ssl
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

_PIECE_BYTES = 64 * 1024
_IDLE_S = 30


class FakeProxy:
    """Serves until its block ends. `login` is the required `user:password`; `requests` are "METHOD target"."""

    def __init__(self, upstream: str, *, login: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[str] = []
        self._upstream = upstream
        self._demanded = f"Basic {base64.b64encode(login.encode()).decode()}" if login else None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def host(self) -> str:
        """Address of the proxy."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def _admitted(self) -> bool:
                proxy.requests.append(f"{self.command} {self.path}")
                if proxy._demanded in (None, self.headers.get("Proxy-Authorization")):
                    return True
                self.send_response(407)
                self.send_header("Proxy-Authenticate", "Basic")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return False

            def do_GET(self) -> None:
                if not self._admitted():
                    return
                target = urlsplit(self.path)
                with contextlib.closing(http.client.HTTPConnection(proxy._upstream, timeout=_IDLE_S)) as onward:
                    headers = {name: value for name, value in self.headers.items() if not name.lower().startswith("proxy-")}
                    onward.request(self.command, f"{target.path}?{target.query}".rstrip("?"), headers=headers)
                    answer = onward.getresponse()
                    self.send_response(answer.status)
                    for name, value in answer.getheaders():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(answer.read())

            do_HEAD = do_GET  # noqa: N815 - the server's names

            def do_CONNECT(self) -> None:
                if not self._admitted():
                    return
                name, _, port = proxy._upstream.partition(":")
                with socket.create_connection((name, int(port)), timeout=_IDLE_S) as onward:
                    self.send_response(200)
                    self.end_headers()
                    _relay(self.connection, onward)
                self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


def _relay(one: socket.socket, other: socket.socket) -> None:
    """Copy bytes in both directions until one side closes."""
    ways = {one: other, other: one}
    while ready := select.select(list(ways), [], [], _IDLE_S)[0]:
        for end in ready:
            data = end.recv(_PIECE_BYTES)
            if not data:
                return
            ways[end].sendall(data)
