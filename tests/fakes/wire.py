"""The wire of a registry: connections with their threads, request bodies, responses, and the log of exchanges."""

import select
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from typing import Any

from tests.fakes.faults import Response
from tests.fakes.request import Recorded, Request

_MAX_UNREAD_BYTES = 256 * 1024  # limit for reading an unwanted body in order to keep the connection, as in Go's server

_PIECE_BYTES = 64 * 1024
_POLL_S = 0.01  # interval at which a stalled exchange looks for a disconnect, and the accept loop for its end
_SETTLE_S = 1.0  # how long a reader of the log waits for exchanges under way


class Incoming:
    """The body of a request, which the server reads as far as needed."""

    def __init__(self, stream: BufferedIOBase, length: int) -> None:
        self._stream = stream
        self.left = length
        self.received = 0

    def read(self, limit: int | None = None) -> bytes:
        """Read all, or at most ``limit`` bytes. The result is shorter if the client disconnects."""
        wanted = self.left if limit is None else min(limit, self.left)
        pieces = []
        while wanted and (piece := self._piece(min(wanted, _PIECE_BYTES))):
            pieces.append(piece)
            wanted -= len(piece)
            self.left -= len(piece)
            self.received += len(piece)
        return b"".join(pieces)

    def skip(self) -> bool:
        """Read the rest of the body. Return True if the connection remains usable."""
        taken = self.received
        self.read(_MAX_UNREAD_BYTES)
        self.received = taken
        return not self.left

    def _piece(self, limit: int) -> bytes:
        try:
            return self._stream.read1(limit)
        except OSError:  # the client left
            return b""


class Log:
    """A list of all exchanges in the order of their start. An exchange in flight is None."""

    def __init__(self) -> None:
        self._places: list[Recorded | None] = []
        self._changed = threading.Condition()

    def begin(self) -> int:
        """Take the next place. Call this before the client can read a byte of the response."""
        with self._changed:
            self._places.append(None)
            return len(self._places) - 1

    def end(self, place: int, recorded: Recorded) -> None:
        with self._changed:
            self._places[place] = recorded
            self._changed.notify_all()

    def wait_for_all(self) -> list[Recorded]:
        """Return the exchanges once all have ended. Stalled exchanges, which do not end in time, are omitted."""
        with self._changed:
            self._changed.wait_for(lambda: None not in self._places, _SETTLE_S)
            return [recorded for recorded in self._places if recorded]


class Server(ThreadingHTTPServer):
    """Connections, each with a daemon thread. :meth:`stop` ends all of them."""

    request_queue_size = 128

    def __init__(
        self, respond: Callable[[Request, Incoming], Response | None], log: Log, tls: ssl.SSLContext | None, address: str
    ) -> None:
        super().__init__((address, 0), _Handler)
        self.respond = respond
        self.log = log
        self.scheme = "https" if tls else "http"
        if tls:  # the thread of the connection does the handshake, so that a silent client does not block others
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self._accepting = threading.Thread(target=self.serve_forever, args=(_POLL_S,), daemon=True)
        self._connections: list[tuple[threading.Thread, socket.socket]] = []

    @property
    def accepted(self) -> int:
        return len(self._connections)

    def start(self) -> None:
        self._accepting.start()

    def stop(self) -> None:
        self.shutdown()
        self._accepting.join()
        self.server_close()
        for thread, connection in self._connections:
            _shut(connection)
            thread.join()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread, and keep both, because the parent class does not keep daemon threads."""
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        self._connections.append((thread, request))
        thread.start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore disconnects and failed handshakes, and report other errors."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _shut(connection: socket.socket) -> None:
    """Wake the thread that blocks on ``connection``."""
    try:
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # below TLS, whose state belongs to that thread
    except OSError:
        return  # it has ended already


class _Handler(BaseHTTPRequestHandler):
    """One connection, which is the :class:`~tests.fakes.faults.Wire` of interruptions."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server
    _sent = 0

    def _serve(self) -> None:
        request = self._request()
        length = request.headers.get("content-length", "")
        incoming = Incoming(self.rfile, int(length) if length.isdecimal() else 0)
        self._sent = 0
        place = self.server.log.begin()
        response: Response | None = None
        try:
            response = self.server.respond(request, incoming)
            if response is None:
                self.reset()
                self.close_connection = True
                return
            self._send(response)
            self.close_connection |= not incoming.skip()
        finally:
            self.server.log.end(place, self._recorded(request, response, incoming.received))

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 - the parent's names

    def _request(self) -> Request:
        path, _, query = self.path.partition("?")
        headers = {name.lower(): ", ".join(self.headers.get_all(name, [])) for name in self.headers}
        return Request(method=self.command, path=path, query=query, headers=headers, scheme=self.server.scheme)

    def _recorded(self, request: Request, response: Response | None, received: int) -> Recorded:
        return Recorded(
            method=request.method,
            path=request.path,
            query=request.query,
            headers=request.headers,
            status=response.status if response else 0,
            sent=self._sent,
            received=received,
        )

    def _send(self, response: Response) -> None:
        if not response.status:
            self.close_connection = True
            self.wait(None)
            return
        self.send_response_only(response.status)
        for name, value in response.headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            body = response.body[:0]
        else:
            body = response.body
            # where the length lies or is missing, only the end of the connection tells the end of the body
            self.close_connection |= response.header("Content-Length") != str(len(body))
        stop = response.interruption
        if stop is None:
            self._write(body)
            return
        self._write(body[: stop.after])
        if stop.interrupt(self):
            self._write(body[stop.after :])
        else:
            self.close_connection = True

    def _write(self, body: memoryview) -> None:
        for start in range(0, len(body), _PIECE_BYTES):
            piece = body[start : start + _PIECE_BYTES]
            self.wfile.write(piece)
            self._sent += len(piece)

    def reset(self) -> None:
        """Close with RST: a lingering time of zero throws away what is not sent."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()  # holds the descriptor open otherwise
        self.connection.close()

    def wait(self, release: threading.Event | None) -> bool:
        """Wait for ``release``, or for the connection to turn readable: by a client that left, or by our stop()."""
        gate = release or threading.Event()
        while not gate.wait(_POLL_S):
            if select.select([self.connection], [], [], 0)[0]:
                return False
        return True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the parent's name
        """Stay silent."""
