"""A server on loopback that answers with given bytes, valid or not: for responses that no HTTP library would send.

It only finds the end of a request's head; it does not support requests with bodies.
"""

import socket
import threading
from collections.abc import Iterable, Iterator
from typing import Self

_END_OF_HEAD = b"\r\n\r\n"


class Scripted:
    """Answers the n-th request with the n-th answer, then closes its connection, or with ``keep`` goes on with it.

    An answer is bytes, or an iterable of them that is sent until it ends or the client leaves. When there are no more
    answers, a request is never answered. ``heads`` are the requests as they came, ``sent`` the bytes of each answer.
    """

    def __init__(
        self, *answers: bytes | Iterable[bytes], keep: bool = False, address: str = "127.0.0.1", port: int = 0
    ) -> None:
        """Bind a port, a free one if none is given."""
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
        """Begin to serve, one connection at a time."""
        self._serving.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Cut what is under way."""
        for open_socket in (self._listener, self._connection):
            try:
                if open_socket:
                    open_socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it has ended already
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
                    continue  # the client left

    def _talk(self, connection: socket.socket) -> None:
        while head := _head(connection):
            self.heads.append(head)
            answer = next(self._answers, None)
            if answer is None:
                connection.recv(1)  # until the client leaves, or we are stopped
                return
            self.sent.append(0)
            for piece in (answer,) if isinstance(answer, bytes) else answer:
                connection.sendall(piece)
                self.sent[-1] += len(piece)
            if not self._keep:
                return


def _head(connection: socket.socket) -> str:
    """The head of the next request; empty when the client left."""
    head = b""
    while not head.endswith(_END_OF_HEAD):
        if not (piece := connection.recv(65536)):
            return ""
        head += piece
    return head.decode("latin-1")
