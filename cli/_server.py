"""The embedded server's process: `python -P -m prefect_dist.cli._server FD`. See `cli.embedded`.

It serves Prefect's API on the listening socket FD until its standard input ends. That happens also when its parent is killed.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import uvicorn
from prefect.server.api.server import create_app

# Prefect's shutdown was seen to hang when its services are cancelled (asyncio's _cancel_all_tasks); all is committed by then.
_LONGEST_STOP_S = 4


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: the parent alone says when to end."""
        yield


def main() -> None:
    """Serve, then leave without a backward look."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listening = socket.socket(fileno=int(sys.argv[1]))
    config = uvicorn.Config(create_app(final=True), log_level="error", access_log=False, timeout_graceful_shutdown=3)
    server = _Server(config)
    threading.Thread(target=_end_with_parent, args=(server,), daemon=True).start()
    asyncio.run(_serve(server, listening))


async def _serve(server: uvicorn.Server, listening: socket.socket) -> None:
    await server.serve(sockets=[listening])
    os._exit(0)


def _end_with_parent(server: uvicorn.Server) -> None:
    while os.read(0, 4096):
        pass
    server.should_exit = True
    threading.Timer(_LONGEST_STOP_S, os._exit, (1,)).start()


if __name__ == "__main__":
    main()
