"""The embedded Prefect server: a child process on a loopback port, for commands without a configured Prefect API.

The server uses the database `$PREFECT_HOME/prefect.db`, so `prefect server start` shows the run later. The temporary server of
Prefect loses most task runs when the process ends, dies of Ctrl-C before the end of the run is recorded, and survives a killed
client (docs/dev/adr/0003). The embedded server:

- has settings with which it records task runs as fast as runs produce them;
- does not get the Ctrl-C of a terminal, and ends when the pipe to the parent closes;
- listens on a socket that the parent bound, so no other server can take its place.
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

# The migration of a new database takes about 15 s on a slow machine.
_START_S = 120
_STOP_S = 10
# With `-P`, files in the current directory cannot shadow modules that Prefect imports.
_COMMAND = (sys.executable, "-P", "-m", "prefect_dist.cli._server")
_SETTINGS = {
    # One database transaction per task state is several times slower than an up-to-date run.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # The UI is not served, and events would be incomplete at the end of the command. Runs, states and logs are complete.
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
}


@contextlib.contextmanager
def run_server(home: Path) -> Iterator["Embedded"]:
    """Start a server on the database in `home`, and stop it after the block. Call `wait_until_ready` before a request."""
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as log, _lock(home) as lock, socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        process = subprocess.Popen(  # noqa: S603 - a module of this package
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
            _stop(process)


class Embedded:
    """A starting or running server."""

    def __init__(self, url: str, process: subprocess.Popen[bytes], log: IO[bytes], lock: contextlib.ExitStack) -> None:
        self.url = url
        self._process, self._log, self._lock = process, log, lock

    def wait_until_ready(self) -> None:
        """Wait until the server answers.

        Raises:
            Unavailable: the server did not start. The message has the last line of the log.
        """
        try:
            # The socket listens already, so this request waits until the server is ready.
            with urllib.request.urlopen(f"{self.url}/health", timeout=_START_S):  # noqa: S310 - an http URL
                self._lock.close()
        except (urllib.error.URLError, OSError) as exc:
            raise Unavailable(f"temporary Prefect server: did not start: {self._read_last_line() or exc}") from exc

    def _read_last_line(self) -> str:
        _stop(self._process)
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""


@contextlib.contextmanager
def _lock(home: Path) -> Iterator[contextlib.ExitStack]:
    """Hold a lock until a server is ready. Two servers would damage a new database by simultaneous migrations."""
    with contextlib.ExitStack() as held:
        lock = held.enter_context((home / "dist-server.lock").open("ab"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield held


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Close the pipe to the server, and wait for the end of the server."""
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
