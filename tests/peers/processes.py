"""Finds programs, and starts and stops server processes on loopback."""

import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

LOOPBACK = "127.0.0.1"

PATIENCE_S = 240.0
"""How long tests wait for a process. Only a failing test waits that long. A busy machine has needed 65 s to start a server."""

_END_S = 20.0
"""A Prefect server and its worker take some seconds to stop."""

_POLL_S, _LONG_POLL_S = 0.02, 0.2
"""Shortest and longest interval of polls. Frequent polls of a Prefect server cost more CPU time than the awaited run."""
_LAST_OUTPUT_BYTES = 4000


class StartError(RuntimeError):
    """A server did not start; the message has its last output."""


def require(program: str, package: str, *, source: str = "Debian", remedy: str = "run scripts/peers.sh") -> str:
    """Return the path of `program`, or skip the running test; under CI (`CI` is set) a missing program is a failure."""
    # Debian installs servers in /usr/sbin, which is not on the PATH of ordinary users. Wheels install programs next to python.
    places = (str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin")
    found = shutil.which(program, path=os.pathsep.join(places))
    if found:
        return found
    message = f"REAL PEER MISSING: {program} ({source} package {package}); {remedy}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


# Below the ports that Linux gives to outgoing connections: such a connection could take a port before its server starts.
# Browsers refuse port 10080.
_PORTS = range(10_100, 32_000)
_RANDOM = random.SystemRandom()


def free_port() -> int:
    """Return an unused loopback port; bind it soon, because it is not reserved."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Return as many different unused loopback ports, see `free_port`."""
    found: list[int] = []
    with ExitStack() as held:
        while len(found) < count:
            port = _RANDOM.choice(_PORTS)
            with suppress(OSError):
                held.enter_context(socket.create_server((LOOPBACK, port)))
                found.append(port)
    return found


def listening(port: int) -> Callable[[], bool]:
    """Return a readiness check for `running`: True if this loopback port accepts connections."""

    def connects() -> bool:
        try:
            with socket.create_connection((LOOPBACK, port), timeout=1):
                return True
        except OSError:
            return False

    return connects


@contextmanager
def running(
    argv: Sequence[str | Path],
    *,
    ready: Callable[[], bool],
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server for the length of a `with` block. The server answers inside the block. Its process ends with the block.

    Args:
        argv: the program and its arguments.
        ready: called repeatedly until it returns True, for instance `listening(port)`.
        log: file that stdout and stderr are appended to.
        env: variables in addition to those of this process.
        cwd: working directory; default: the directory of this process.

    Raises:
        StartError: the server exited before it was ready, or was not ready in time. A server that was not ready is stopped.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=cwd,
        )
    try:
        _wait_until_ready(process, ready, log)
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop the process with SIGTERM, after a deadline with SIGKILL, and collect its exit status. It may have exited."""
    process.terminate()
    try:
        process.wait(timeout=_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def poll_until(condition: Callable[[], bool], *, timeout_s: float = PATIENCE_S) -> bool:
    """Call `condition` until it is true; return False after `timeout_s` seconds. The interval grows with the duration."""
    began = time.monotonic()
    while not condition():
        elapsed = time.monotonic() - began
        if elapsed > timeout_s:
            return False
        time.sleep(min(max(_POLL_S, elapsed / 20), _LONG_POLL_S))
    return True


def _wait_until_ready(process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path) -> None:
    answered = poll_until(lambda: process.poll() is not None or ready())
    # Checked after `ready`, because another server may have taken the port and answered in place of this process.
    status = process.poll()
    if status is not None:
        raise StartError(_failure(process, f"exited early with status {status}", log))
    if not answered:
        raise StartError(_failure(process, f"did not answer within {PATIENCE_S:.0f} s", log))


def _failure(process: subprocess.Popen[bytes], what: str, log: Path) -> str:
    last_output = log.read_bytes()[-_LAST_OUTPUT_BYTES:].decode(errors="replace")
    return f"{process.args!r} {what}; its last output:\n{last_output}"
