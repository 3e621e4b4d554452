"""A TCP relay in front of a real server. After `cut`, the server continues to run, and clients no longer reach it."""

import contextlib
import selectors
import socket
from collections.abc import Callable
from threading import Lock, Thread
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_PIECE_BYTES = 64 * 1024


_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Relay:
    """Forwards connections to the server of a URL until `cut`, after which connections are refused.

    The first `refusals` requests that begin with `refused` are answered with 503, as by a busy server.
    """

    def __init__(self, upstream: str, *, refused: bytes = b"", refusals: int = 0) -> None:
        self.refused, self.refusals = refused, refusals
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "", parts.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._is_cut, self._guard = False, Lock()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}{parts.path}"

    def __enter__(self) -> Self:
        Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.cut()

    def cut(self) -> None:
        """Close the listening socket and all connections."""
        with self._guard:
            self._is_cut = True
            connections, self._open = self._open, []
        for one in (self._listener, *connections):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _refuses(self, request: bytes) -> bool:
        """Return True for a request that is answered with 503."""
        with self._guard:
            is_refused = bool(self.refused) and self.refusals > 0 and request.startswith(self.refused)
            self.refusals -= is_refused
        return is_refused

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._upstream)
                with self._guard:
                    if self._is_cut:
                        client.close()
                        server.close()
                        return
                    self._open += [client, server]
                Thread(target=_pass_on, args=(client, server, self._refuses), daemon=True).start()


def _pass_on(client: socket.socket, server: socket.socket, refuses: Callable[[bytes], bool]) -> None:
    """Copy bytes in both directions until one side closes, or `refuses` is true for bytes of the client."""
    with contextlib.suppress(OSError, ValueError), selectors.DefaultSelector() as selector:
        selector.register(client, selectors.EVENT_READ, server)
        selector.register(server, selectors.EVENT_READ, client)
        is_open = True
        while is_open:
            for ready, _ in selector.select():
                piece = ready.fileobj.recv(_PIECE_BYTES)  # type: ignore[union-attr]
                if ready.fileobj is client and refuses(piece):
                    client.sendall(_BUSY)
                    is_open = False
                    break
                ready.data.sendall(piece)
                is_open = is_open and bool(piece)
    client.close()
    server.close()
