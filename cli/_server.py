"""The process of the embedded server: `python -P -m prefect_dist.cli._server FD`. See `cli.embedded`.

The process serves the Prefect API on the listening socket FD until standard input ends, also after the parent was killed.
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

# The shutdown of Prefect can hang while its services are cancelled (asyncio's _cancel_all_tasks). All data is committed then.
_MAX_STOP_S = 4


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle no signals: only the parent ends the server."""
        yield


def main() -> None:
    """Serve until standard input ends, then exit without Python's cleanup."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listening = socket.socket(fileno=int(sys.argv[1]))
    config = uvicorn.Config(create_app(final=True), log_level="error", access_log=False, timeout_graceful_shutdown=3)
    server = _Server(config)
    threading.Thread(target=_stop_with_parent, args=(server,), daemon=True).start()
    asyncio.run(_serve(server, listening))


async def _serve(server: uvicorn.Server, listening: socket.socket) -> None:
    await server.serve(sockets=[listening])
    os._exit(0)


def _stop_with_parent(server: uvicorn.Server) -> None:
    while os.read(0, 4096):
        pass
    server.should_exit = True
    threading.Timer(_MAX_STOP_S, os._exit, (1,)).start()


if __name__ == "__main__":
    main()
