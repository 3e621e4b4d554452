"""A relay in front of S3 and STS: records the signer of each request, and can shorten the life of credentials."""

import contextlib
import http.client
import re
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import parse_qsl, urlsplit

_IDLE_S = 30
_SIGNER = re.compile(r"AWS4-HMAC-SHA256 Credential=([^/]+)/")
_EXPIRATION = re.compile(rb"(?<=<Expiration>)[^<]+")
_ISSUED = re.compile(rb"<AccessKeyId>([^<]+)")
_NOT_PASSED_ON = {"connection", "content-length", "expect", "keep-alive", "transfer-encoding"}
_DENIED = b"<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>"

_BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class AwsRequest(NamedTuple):
    """A request: the key that signed it, and the form of a request to STS, empty for a request to S3."""

    signer: str
    request: str
    form: dict[str, str]


class AwsRelay:
    """Serves until its block ends.

    New credentials expire after `lifetime_s`, if set. With `refused`, STS issues no credentials. With `is_busy`, S3 refuses
    all writes.
    """

    def __init__(self, upstream: str, *, lifetime_s: int | None = None) -> None:
        self.requests: list[AwsRequest] = []
        self.issued: list[str] = []
        self.lifetime_s = lifetime_s
        self.refused = self.is_busy = False
        self.refusals = 0
        self._upstream = urlsplit(upstream).netloc
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def endpoint(self) -> str:
        """URL of S3 and STS."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def to_sts(self) -> list[AwsRequest]:
        """Requests to STS."""
        return [request for request in self.requests if request.form]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _pass_on(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Forward a request, and return status, headers and body of the response."""
        signer = _SIGNER.match(headers.get("Authorization", ""))
        is_form = headers.get("Content-Type", "").startswith("application/x-www-form-urlencoded")
        form = dict(parse_qsl(body.decode())) if is_form else {}
        self.requests.append(AwsRequest(signer[1] if signer else "", f"{method} {path}", form))
        if form and self.refused:
            return 403, [("Content-Length", str(len(_DENIED)))], _DENIED
        if self.is_busy and not form and method in ("PUT", "POST", "DELETE"):
            self.refusals += 1
            return 503, [("Content-Type", "application/xml"), ("Content-Length", str(len(_BUSY)))], _BUSY
        with contextlib.closing(http.client.HTTPConnection(self._upstream, timeout=_IDLE_S)) as onward:
            onward.request(method, path, body=body, headers=headers)
            answer = onward.getresponse()
            content = answer.read()
            if form and (issued := _ISSUED.search(content)):
                self.issued.append(issued[1].decode())
                if self.lifetime_s is not None:
                    until = datetime.now(UTC) + timedelta(seconds=self.lifetime_s)
                    content = _EXPIRATION.sub(until.strftime("%Y-%m-%dT%H:%M:%SZ").encode(), content)
            size = len(content) if method != "HEAD" else answer.getheader("Content-Length", "0")
            kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in _NOT_PASSED_ON]
            return answer.status, [*kept, ("Content-Length", str(size))], content

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        relay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = _IDLE_S

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name: value for name, value in self.headers.items() if name.lower() not in _NOT_PASSED_ON}
                status, answered, content = relay._pass_on(self.command, self.path, headers, body)
                self.send_response_only(status)
                for name, value in answered:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_DELETE = do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - the server's names

            def log_message(self, *_: object) -> None:
                pass

        return Handler
