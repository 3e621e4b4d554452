"""A web server that accepts every POST and records it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.peers.processes import LOOPBACK, poll_until


@dataclass(frozen=True, slots=True)
class WebhookRequest:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Webhook:
    """Requests to `url`, in order; `status` is the status of the responses."""

    url: str
    requests: list[WebhookRequest] = field(default_factory=list)
    status: int = 200

    def wait_for_requests(self, *, at_least: int) -> list[WebhookRequest]:
        """Return the requests once there are `at_least` requests.

        Raises:
            TimeoutError: fewer requests arrived in time.
        """
        if not poll_until(lambda: len(self.requests) >= at_least):
            raise TimeoutError(f"expected {at_least} requests, got {self.requests}")
        return list(self.requests)


@contextmanager
def webhook() -> Iterator[Webhook]:
    """Listen for the length of a `with` block."""
    kept = Webhook("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            kept.requests.append(WebhookRequest(self.command, self.path, dict(self.headers), body))
            self.send_response(kept.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer((LOOPBACK, 0), Handler) as server:
        kept.url = f"http://{LOOPBACK}:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield kept
        finally:
            server.shutdown()
            thread.join()
