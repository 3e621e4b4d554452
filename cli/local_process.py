"""Starts and ends the process of the local Prefect server (`cli._server`)."""

import contextlib
import hashlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from posixpath import expanduser

from prefect_dist.cli import local_state
from prefect_dist.cli.inputs import BadInput
from prefect_dist.cli.local_state import State
from prefect_dist.ocispec import units
from prefect_dist.ocispec.errors import InvalidInput, Unavailable

# The server ends after it has recorded what it has received (`cli._server`).
END_S = 150
_KILL_S = 10
_POLL_S = 0.05
# With `-P`, files in the current directory cannot shadow modules that Prefect imports.
_COMMAND = (sys.executable, "-P", "-m", "prefect_dist.cli._server")
# The server outlives the command and serves others, so it gets no other variables, such as passwords, of the command.
_KEPT = {"PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH"}
_SETTING_PREFIXES = ("PREFECT_SERVER_", "PREFECT_API_DATABASE_", "PREFECT_PROFILE")
# Variables that name an API, or a file with settings.
_CHOICES = {"PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_PROFILES_PATH", "PREFECT_PROFILE"}
_DEFAULTS = {
    # One database transaction per task state is several times slower than an up-to-date run.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # Prefect would copy the files of the UI before the server answers. `cli._server` adds the UI at the first request for a
    # page.
    "PREFECT_SERVER_UI_ENABLED": "false",
    # Events cost as much as the task runs. Without stored events, triggers are useless.
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    # Deployments need a permanent server.
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_FOREMAN_ENABLED": "false",
}


def guess_home() -> Path | None:
    """Return PREFECT_HOME, if the environment names no API and Prefect has no file with settings. Prefect is not imported.

    An empty PREFECT_HOME and the home of an unknown user are left to Prefect.
    """
    if _CHOICES & {name.upper() for name in os.environ}:
        return None
    home = Path(expanduser(os.environ.get("PREFECT_HOME", "~/.prefect")))
    if not home.parts or home.parts[0].startswith("~"):
        return None
    files = (home / "profiles.toml", *map(Path, (".env", "prefect.toml", "pyproject.toml")))
    return None if any(file.exists() for file in files) else home


def read_idle() -> float:
    """Return the seconds after which an unused server ends, from DIST_SERVER_IDLE. 0: the server ends with its command.

    Raises:
        BadInput: the variable has another form.
    """
    text = os.environ.get("DIST_SERVER_IDLE") or "10m"
    try:
        return units.seconds(text)
    except InvalidInput as exc:
        raise BadInput(f"environment variable DIST_SERVER_IDLE: {exc}") from exc


def describe_build() -> dict[str, str]:
    """Return the versions and the settings with which a server starts now."""
    settings = sorted(_select_settings(os.environ).items())
    versions = {name: metadata.version(name) for name in ("prefect", "prefect-dist")}
    return {**versions, "settings": hashlib.sha256(repr(settings).encode()).hexdigest()[:16]}


def _select_settings(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_SETTING_PREFIXES)}


def make_environment(home: Path, secret: str, port: int) -> dict[str, str]:
    """Return the environment of the server. The settings of a server in the environment of the command apply."""
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("LC_")}
    origin = f"http://127.0.0.1:{port}"
    fixed = {
        "PREFECT_HOME": str(home.absolute()),
        "PREFECT_SERVER_API_AUTH_STRING": secret,
        "PREFECT_SERVER_API_BASE_PATH": "/api",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origin,
        "PREFECT_UI_API_URL": f"{origin}/api",
        "PREFECT_UI_SERVE_BASE": "/",
    }
    return {**kept, **_DEFAULTS, **_select_settings(os.environ), **fixed}


def make_secret() -> str:
    """Return a user and a random password for the API of a server."""
    return f"dist:{secrets.token_urlsafe(32)}"


def listen() -> socket.socket:
    """Return a socket that listens on a free loopback port. No other server can take the port."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(128)
    return listening


def make_command(listening: socket.socket, idle_s: float) -> list[str]:
    """Return the command line of a server on a listening socket, which the process must inherit."""
    return [*_COMMAND, str(listening.fileno()), str(idle_s)]


def make_state(pid: int, port: int, secret: str, idle_s: float | None) -> State:
    """Return the state of the server in process `pid`.

    Raises:
        Unavailable: the process has ended.
    """
    if (start := local_state.read_start_time(pid)) is None:
        raise Unavailable(f"local Prefect server: process {pid} ended at once")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return State(pid, start, port, secret, describe_build(), now, idle_s, is_ready=False)


@contextlib.contextmanager
def run_process(home: Path, *, idle_s: float) -> Iterator[State]:
    """Start a server. With an `idle_s` of 0, end the server after the block, and otherwise leave it running.

    Raises:
        Unavailable: the log or the state file cannot be written.
    """
    with listen() as listening:
        port, secret = listening.getsockname()[1], make_secret()
        log = local_state.open_log(home)
        try:
            process = subprocess.Popen(  # noqa: S603 - a module of this package
                make_command(listening, idle_s),
                pass_fds=[listening.fileno()],
                stdin=subprocess.DEVNULL if idle_s else subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=home,
                env=make_environment(home, secret, port),
                start_new_session=True,
                umask=0o077,
            )
        finally:
            os.close(log)
    try:
        state = make_state(process.pid, port, secret, idle_s)
        if idle_s:
            _publish(home, state, process)
        yield state
    finally:
        _end_with_command(process)


def _publish(home: Path, state: State, process: subprocess.Popen[bytes]) -> None:
    """Write the state file. Without the file, no command could find or stop the server."""
    try:
        local_state.write_state(home, state)
    except BaseException:
        process.kill()
        process.wait()
        raise


def _end_with_command(process: subprocess.Popen[bytes]) -> None:
    """Close the pipe to a server that belongs to this command, and wait for its end."""
    if process.stdin is None:
        return
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_for_exit(state: State, *, timeout_s: float) -> bool:
    """Wait until the process of a server has ended. Return False after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while state.is_process_running():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def kill(state: State) -> None:
    """End the process of a server that does not answer: by SIGTERM, and after ten seconds by SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if state.is_process_running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(state.pid, number)
            wait_for_exit(state, timeout_s=_KILL_S)


def read_last_line(home: Path) -> str:
    """Return the last line of the log, or an empty text."""
    try:
        lines = local_state.log_path(home).read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].strip() if lines else ""
