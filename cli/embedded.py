"""The Prefect server that a command brings along where none is configured, as a child process on a loopback port.

It is Prefect's own server on Prefect's own database (`$PREFECT_HOME/prefect.db`), so that `prefect server start` later shows
the run. Prefect would start one by itself, but that one forgets most task runs when the process ends, dies with the client on
Ctrl-C before the run's end is recorded, and stays behind when the client is killed (docs/dev/adr/0003). This one:

- gets the settings with which it records as fast as runs go;
- is not reached by a terminal's Ctrl-C, and lives exactly as long as the pipe to its parent;
- listens on a socket that the parent bound, so no other server can be in its place.
"""

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from prefect_dist.ocispec.errors import Unavailable

# Migrating a new database takes some 15 s on a slow machine.
_START_S = 120
_STOP_S = 10
# With `-P`, files in the current directory cannot take the places of modules that Prefect imports.
_COMMAND = (sys.executable, "-P", "-m", "prefect_dist.cli._server")
_SETTINGS = {
    # One database transaction per task state is several times slower than runs that find everything in place.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # Nobody looks at its pages, and its feed of events would not be complete when the command ends: runs, states, logs are.
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
}


@contextlib.contextmanager
def run_server(home: Path) -> Iterator["Embedded"]:
    """A server on the database in `home`, ended with the block. It starts meanwhile: call `ready` before using it.

    Raises:
        Unavailable: from `ready`, when it did not come up; the message shows its last words.
    """
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as log, _one_at_a_time(home) as lock, socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        process = subprocess.Popen(  # noqa: S603 - our own module
            [*_COMMAND, str(listening.fileno())],
            pass_fds=[listening.fileno()],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"} | _SETTINGS,
            start_new_session=True,
        )
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
        listening.close()
        try:
            yield Embedded(url, process, log, lock)
        finally:
            _end(process)


class Embedded:
    """A server that is starting or running."""

    def __init__(self, url: str, process: subprocess.Popen[bytes], log: IO[bytes], lock: contextlib.ExitStack) -> None:
        self.url = url
        self._process, self._log, self._lock = process, log, lock

    def ready(self) -> None:
        """Wait until it answers.

        Raises:
            Unavailable: it did not; the message shows its last words.
        """
        try:
            # It listens already, so that this one request waits until it is served.
            with urllib.request.urlopen(f"{self.url}/health", timeout=_START_S):  # noqa: S310 - our own http URL
                self._lock.close()
        except (urllib.error.URLError, OSError) as exc:
            raise Unavailable(f"Prefect's embedded server did not start: {self._last_words() or exc}") from exc

    def _last_words(self) -> str:
        _end(self._process)
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""


@contextlib.contextmanager
def _one_at_a_time(home: Path) -> Iterator[contextlib.ExitStack]:
    """Held until a server is up: two that migrate one new database at once would spoil it."""
    with contextlib.ExitStack() as held:
        lock = held.enter_context((home / "dist-server.lock").open("ab"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield held


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close the pipe that the server lives by, and see it end."""
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
