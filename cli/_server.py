"""The process of the local Prefect server: `python -P -m prefect_dist.cli._server FD IDLE`. See `cli.local_server`.

The process serves Prefect's API and UI on the listening socket FD. It ends

- by SIGTERM, and by a request to `/dist/stop`;
- after IDLE seconds without a lease and without a request. If IDLE is 0, when standard input ends, also after the command was
  killed. If IDLE is inf, only by SIGTERM or Ctrl-C;
- when its database was removed, or its state file was removed or replaced.

Before the end, everything that the API has received is recorded.
"""

import asyncio
import contextlib
import gc
import math
import os
import signal
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from prefect_dist.cli import local_state
from prefect_dist.cli.local_gate import App, ServerGate

_NEWLINE = "\n"
_WATCH_S = 1.0
_CLOSE_S = 3
_DRAIN_S = 120
_POLL_S = 0.05
# The recorder writes its last batch one second later (PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL).
_SETTLE_S = 1.5
_QUIET_S = 5
# The shutdown of Prefect can hang while its services are cancelled (asyncio's _cancel_all_tasks). All data is committed then.
_SHUTDOWN_S = 4


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `Server`."""
        yield


class Server:
    """A local server with the settings of the environment. `idle_s` is as in the description of the module."""

    def __init__(self, listening: socket.socket, idle_s: float) -> None:
        from prefect.server.api.server import create_app
        from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, PREFECT_HOME, PREFECT_SERVER_API_AUTH_STRING

        self._listening, self._idle_s = listening, idle_s
        self._home = PREFECT_HOME.value()
        self._secret = PREFECT_SERVER_API_AUTH_STRING.value() or ""
        self._database = _find_file(PREFECT_API_DATABASE_CONNECTION_URL.value() or "")
        self._identity: tuple[int, int] | None = None
        self._gate = ServerGate(
            create_app(final=True),
            build_ui=_build_ui,
            secret=self._secret,
            port=listening.getsockname()[1],
            before_shutdown=self._drain,
        )
        config = uvicorn.Config(
            self._gate, lifespan="on", log_level="error", access_log=False, timeout_graceful_shutdown=_CLOSE_S
        )
        self._uvicorn = _Uvicorn(config)

    async def serve(self) -> int:
        """Serve until a reason to end occurs. Return the exit code."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._gate.stop.set)
        if math.isinf(self._idle_s):
            loop.add_signal_handler(signal.SIGINT, self._gate.stop.set)
        if not self._idle_s:
            threading.Thread(target=_wait_for_end_of_input, args=(loop, self._gate.stop), daemon=True).start()
        watch = asyncio.create_task(self._watch())
        with contextlib.suppress(SystemExit):  # uvicorn raises SystemExit if Prefect does not start
            await self._uvicorn.serve(sockets=[self._listening])
        watch.cancel()
        (ended,) = await asyncio.gather(watch, return_exceptions=True)
        failure = ended if isinstance(ended, Exception) else self._gate.failure
        if (state := local_state.read_state(self._home)) is not None and state.secret == self._secret:
            local_state.remove_state(self._home)
            local_state.remove_pages(self._home, valid=())
        if failure is not None:
            sys.stderr.write(f"{str(failure).strip().partition(_NEWLINE)[0]}\n")
        return 0 if self._uvicorn.started else 1

    async def _watch(self) -> None:
        """Make uvicorn exit as soon as there is a reason, such as an error here."""
        await self._gate.started.wait()
        try:
            self._gate.usage.restart_clock()
            gc.freeze()
            gc.enable()
            self._identity = _identify(self._database)
            while not self._gate.stop.is_set() and not self._should_end():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._gate.stop.wait(), _WATCH_S)
        finally:
            self._gate.stop.set()
            self._uvicorn.should_exit = True

    def _should_end(self) -> bool:
        usage = self._gate.usage
        if _identify(self._database) != self._identity:
            return True
        if not self._idle_s:
            return False
        state = local_state.read_state(self._home)
        is_replaced = state is None or state.secret != self._secret
        if not is_replaced:
            local_state.remove_pages(self._home, valid=self._gate.codes.list_valid())
        usage.is_retiring = usage.is_retiring or is_replaced or usage.measure_idle() > self._idle_s
        return usage.is_retiring and not usage.leases

    async def _drain(self) -> None:
        """Wait until Prefect has recorded what it has received. No connection is open any more."""
        if _identify(self._database) == self._identity:
            await _wait_for_queues(time.monotonic() + _DRAIN_S)
            if self._gate.usage.measure_idle() < _QUIET_S:
                await asyncio.sleep(_SETTLE_S)
        threading.Timer(_SHUTDOWN_S, os._exit, (0,)).start()


async def _wait_for_queues(deadline: float) -> None:
    """Wait until the services of Prefect have taken all messages from the queues in memory."""
    from prefect.server.utilities.messaging.memory import Topic

    subscriptions = [each for topic in Topic._topics.values() for each in topic._subscriptions]  # noqa: SLF001 - no public name
    while time.monotonic() < deadline:
        if all(each._queue.empty() and each._retry.empty() for each in subscriptions):  # noqa: SLF001 - as above
            return
        await asyncio.sleep(_POLL_S)


def _build_ui() -> App:
    """Return the application of Prefect's UI. The first call after an installation copies the files of the UI."""
    import prefect
    from prefect.server.api.server import create_ui_app
    from prefect.settings import PREFECT_HOME, PREFECT_UI_ENABLED, PREFECT_UI_STATIC_DIRECTORY, temporary_settings

    folder = PREFECT_UI_STATIC_DIRECTORY.value()
    if not folder and not os.access(prefect.__ui_static_subpath__.parent, os.W_OK):
        folder = str(PREFECT_HOME.value() / "ui")
    with temporary_settings({PREFECT_UI_ENABLED: True, PREFECT_UI_STATIC_DIRECTORY: folder}):
        app: App = create_ui_app(ephemeral=False)
    return app


def _find_file(url: str) -> Path | None:
    """Return the path of an SQLite database, or None for another database."""
    parts = urllib.parse.urlsplit(url)
    path = urllib.parse.unquote(parts.path[1:])
    return Path(path) if parts.scheme.startswith("sqlite") and path and not path.startswith(":memory:") else None


def _identify(path: Path | None) -> tuple[int, int] | None:
    """Return numbers that differ for another file, or None if the file does not exist."""
    try:
        found = path.stat() if path else None
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found else None


def _wait_for_end_of_input(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    while os.read(0, 4096):
        pass
    loop.call_soon_threadsafe(stop.set)


def main() -> None:
    """Serve, and exit without Python's cleanup."""
    # Objects of modules live as long as the process. The collector would only pass over them.
    gc.disable()
    idle_s = float(sys.argv[2])
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    code = asyncio.run(Server(socket.socket(fileno=int(sys.argv[1])), idle_s).serve())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
