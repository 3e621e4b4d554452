"""A line that takes its time: `python -m benchmarks.delay PORT SERVER_PORT MS`, a TCP proxy on loopback.

What the server sends is handed on so many milliseconds after it came, in its order; what the client sends, at once. So every
answer comes that much later, be it small or in pieces, and several connections do not wait for each other. It is for small
answers: who sends faster than the other side reads is not held up.
"""

import asyncio
import sys
from collections import deque
from typing import cast

LOOPBACK = "127.0.0.1"


class _Side(asyncio.Protocol):
    """One end of a connection through the proxy: what comes in goes out at the `other`, `delay_s` later."""

    def __init__(self, delay_s: float) -> None:
        self.other: _Side | None = None
        self.transport: asyncio.Transport | None = None
        self._delay_s = delay_s
        self._held: deque[bytes | None] = deque()  # None is the end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._hand_on(data)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._hand_on(None)

    def _hand_on(self, data: bytes | None) -> None:
        self._held.append(data)
        asyncio.get_running_loop().call_later(self._delay_s, self.flush)

    def flush(self) -> None:
        """Hand on what came first, unless there is nobody yet to hand it to."""
        if self.other is None or self.other.transport is None or not self._held:
            return
        data = self._held.popleft()
        if data is None:
            self.other.transport.close()
        elif not self.other.transport.is_closing():
            self.other.transport.write(data)


class _Client(_Side):
    """The end that a client connects to."""

    def __init__(self, server_port: int, delay_s: float) -> None:
        super().__init__(0)
        self._server_port, self._answers_after_s = server_port, delay_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connecting = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, server = await loop.create_connection(lambda: _Side(self._answers_after_s), LOOPBACK, self._server_port)
        server.other, self.other = self, server
        while self._held:
            self.flush()


async def _serve(port: int, server_port: int, delay_s: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Client(server_port, delay_s), LOOPBACK, port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) / 1000))
