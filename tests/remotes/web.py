"""A web server on loopback that serves a directory: with or without ranges, with credentials, or with redirects."""

import re
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@dataclass(kw_only=True)
class WebServer:
    """A running server. Settings can be changed while the server runs.

    Attributes:
        requests: method, path, Range and Authorization of each request so far.
        login: user and password that each request needs; None for a public server.
        redirect: the URL of a directory to which blobs are redirected.
        cut_at: the number of bytes after which each body breaks off, at most once per path.
    """

    directory: Path
    host: str = ""
    ranges: bool = True
    login: tuple[str, str] | None = None
    redirect: str | None = None
    cut_at: int | None = None
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    cut: set[str] = field(default_factory=set)

    @property
    def url(self) -> str:
        """The URL of the directory."""
        return f"http://{self.host}"

    def find_requests(self, part: str) -> list[tuple[str, str | None]]:
        """Return method and Range of each request for a path with `part`."""
        return [(method, wanted) for method, path, wanted, _ in self.requests if part in path]


@contextmanager
def web_server(directory: Path) -> Iterator[WebServer]:
    """Serve a directory."""
    served = WebServer(directory=directory)

    class Handler(_Handler):
        web = served

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served.host = f"127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: WebServer

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        web, wanted, secret = self.web, self.headers["Range"], self.headers["Authorization"]
        web.requests.append((self.command, self.path, wanted, secret))
        path = web.directory / self.path.lstrip("/")
        if web.login and secret != f"Basic {b64encode(':'.join(web.login).encode()).decode()}":
            self._send(401, b"", {"WWW-Authenticate": 'Basic realm="test"'})
        elif web.redirect and "/blobs/" in self.path:
            self._send(302, b"", {"Location": f"{web.redirect}{self.path}"})
        elif not path.is_file():
            self._send(404, b"<h1>not found</h1>", {})
        elif web.ranges and (match := _RANGE.fullmatch(wanted or "")):
            data, start, end = path.read_bytes(), int(match[1]), int(match[2])
            part = data[start : end + 1]
            self._send(206, part, {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(data)}"})
        else:
            self._send(200, path.read_bytes(), {})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.web.cut_at is not None and len(body) > self.web.cut_at and self.path not in self.web.cut:
            self.web.cut.add(self.path)
            self.wfile.write(body[: self.web.cut_at])
            self.close_connection = True
            return
        self.wfile.write(body)
