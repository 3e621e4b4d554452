"""TCP proxy on loopback that delays responses: `python -m benchmarks.delay PORT SERVER_PORT MS`.

The proxy forwards data of the server in order, MS milliseconds after their arrival, and data of the client at once. So each
response arrives MS milliseconds later, in one piece or in several, and connections do not wait for each other. The proxy is
for small responses: the proxy does not slow down a sender that is faster than the receiver.
"""

import asyncio
import sys
from collections import deque
from typing import cast

LOOPBACK = "127.0.0.1"


class _Side(asyncio.Protocol):
    """One end of a connection through the proxy. The `peer` sends incoming data on, `delay_s` later."""

    def __init__(self, delay_s: float) -> None:
        self.peer: _Side | None = None
        self.transport: asyncio.Transport | None = None
        self._delay_s = delay_s
        self._queue: deque[bytes | None] = deque()  # None is the end of the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._forward_later(data)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._forward_later(None)

    def _forward_later(self, data: bytes | None) -> None:
        self._queue.append(data)
        asyncio.get_running_loop().call_later(self._delay_s, self.forward)

    def forward(self) -> None:
        """Forward the oldest data, if the peer is connected."""
        if self.peer is None or self.peer.transport is None or not self._queue:
            return
        data = self._queue.popleft()
        if data is None:
            self.peer.transport.close()
        elif not self.peer.transport.is_closing():
            self.peer.transport.write(data)


class _ClientSide(_Side):
    """The end to which a client connects."""

    def __init__(self, server_port: int, delay_s: float) -> None:
        super().__init__(0)
        self._server_port, self._response_delay_s = server_port, delay_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connecting = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, server = await loop.create_connection(lambda: _Side(self._response_delay_s), LOOPBACK, self._server_port)
        server.peer, self.peer = self, server
        while self._queue:
            self.forward()


async def _serve(port: int, server_port: int, delay_s: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _ClientSide(server_port, delay_s), LOOPBACK, port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) / 1000))
