"""A server on loopback that answers with given bytes, valid or not: for responses that no HTTP library would send.

The server only finds the end of a request's head. It does not support requests with bodies.
"""

import socket
import threading
from collections.abc import Iterable, Iterator
from typing import Self

_END_OF_HEAD = b"\r\n\r\n"


class Scripted:
    """Sends the n-th answer to the n-th request, then closes the connection, or with ``keep`` keeps it open.

    An answer is bytes, or an iterable of bytes that is sent until it ends or the client disconnects. After the last answer,
    requests get no response. ``heads`` are the raw heads of the requests, ``sent`` the number of sent bytes of each answer.
    """

    def __init__(
        self, *answers: bytes | Iterable[bytes], keep: bool = False, address: str = "127.0.0.1", port: int = 0
    ) -> None:
        """Bind the given port, or a free port."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, port), family=family)
        port = self._listener.getsockname()[1]
        self.host = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        self.heads: list[str] = []
        self.sent: list[int] = []
        self._answers: Iterator[bytes | Iterable[bytes]] = iter(answers)
        self._keep = keep
        self._connection: socket.socket | None = None
        self._serving = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        """Start to serve, one connection at a time."""
        self._serving.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close all connections."""
        for open_socket in (self._listener, self._connection):
            try:
                if open_socket:
                    open_socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the connection has ended
        self._serving.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                self._connection, _ = self._listener.accept()
            except OSError:
                return
            with self._connection as connection:
                try:
                    self._talk(connection)
                except OSError:
                    continue  # the client disconnected

    def _talk(self, connection: socket.socket) -> None:
        while head := _head(connection):
            self.heads.append(head)
            answer = next(self._answers, None)
            if answer is None:
                connection.recv(1)  # until the client or the server closes the connection
                return
            self.sent.append(0)
            for piece in (answer,) if isinstance(answer, bytes) else answer:
                connection.sendall(piece)
                self.sent[-1] += len(piece)
            if not self._keep:
                return


def _head(connection: socket.socket) -> str:
    """Return the head of the next request, which is empty if the client disconnected."""
    head = b""
    while not head.endswith(_END_OF_HEAD):
        if not (piece := connection.recv(65536)):
            return ""
        head += piece
    return head.decode("latin-1")
