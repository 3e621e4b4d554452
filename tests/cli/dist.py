"""Runs the `dist` command in a process, as a person or a script does."""

import atexit
import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import IO, Any

from prefect_dist.cli import prefect_api
from tests.cli import fork_client
from tests.peers.processes import PATIENCE_S, poll_until

_RUNS = {"fetch", "pull", "push", "copy", "mirror", "seed", "check", "verify", "gc"}
# Packages whose modules a fork server imports.
_WITHOUT_PREFECT = tuple(f"prefect_dist.{layer}" for layer in ("ocispec", "storage", "remotes", "transfer", "mirror", "cli"))
_WITH_PREFECT = (*_WITHOUT_PREFECT, "prefect_dist.tasks", "prefect_dist.flows")


@dataclass(frozen=True, slots=True)
class Result:
    """The exit code and the output of a command."""

    code: int
    out: bytes
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on standard output."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        """Standard output as text."""
        return self.out.decode().splitlines()

    @property
    def line(self) -> str:
        """The one line on standard error."""
        (line,) = self.err.splitlines()
        return line


def command(*arguments: str | Path) -> list[str]:
    """Return the command line that starts `dist` with these arguments in a new Python process."""
    return [sys.executable, "-m", "prefect_dist.cli.main", *map(str, arguments)]


def dist(*arguments: str | Path, stdin: bytes = b"", file_limit_bytes: int | None = None, **environment: str | None) -> Result:
    """Run `dist` to its end. An environment variable that is None is unset. A limit on files acts as a disk that gets full."""
    variables = {key: value for key, value in (os.environ | environment).items() if value is not None}
    if file_limit_bytes is not None:
        argv = ["prlimit", f"--fsize={file_limit_bytes}", *command(*arguments)]
        done = subprocess.run(argv, input=stdin, capture_output=True, timeout=PATIENCE_S, env=variables, check=False)
        return Result(done.returncode, done.stdout, done.stderr.decode())
    return _fork([str(argument) for argument in arguments], variables, stdin)


def dist_direct(*arguments: str | Path, stdin: bytes = b"", **environment: str | None) -> Result:
    """Run `dist` with --direct to its end: the same run without Prefect, for tests of other subjects than Prefect."""
    return dist(*arguments, "--direct", stdin=stdin, file_limit_bytes=None, **environment)


def write_forwarder(directory: Path) -> None:
    """Write a script `dist` for the PATH of shells. The script runs `dist` as a fork of a process that has imported Prefect."""
    server = _find_server(["fetch"], os.environ)
    script = directory / "dist"
    script.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-IS", fork_client.__file__, str(server)])} "$@"\n')
    script.chmod(0o755)


def _fork(arguments: list[str], variables: Mapping[str, str], stdin: bytes) -> Result:
    server = _find_server(arguments, variables)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        source, sink = os.pipe()
        threading.Thread(target=_write, args=(sink, stdin), daemon=True).start()
        code = fork_client.run_fork(
            str(server),
            arguments,
            environment=variables,
            streams=[source, out.fileno(), err.fileno()],
            timeout_s=PATIENCE_S,
            on_start=partial(os.close, source),
        )
        return Result(code, _read(out), _read(err).decode())


def _find_server(arguments: Sequence[str], variables: Mapping[str, str]) -> Path:
    """Return the socket of the fork server for a command."""
    # Prefect reads its settings when it is imported, so a fork server with Prefect serves one set of them.
    settings = {key: value for key, value in variables.items() if key.startswith("PREFECT_")}
    if "PREFECT_API_URL" in settings and _RUNS & set(arguments) and not {"--debug", "--direct"} & set(arguments):
        return _fork_server(_WITH_PREFECT, frozenset((prefect_api.ENVIRONMENT | settings).items()))
    return _fork_server(_WITHOUT_PREFECT, frozenset())


def _write(descriptor: int, data: bytes) -> None:
    try:
        with open(descriptor, "wb") as sink:
            sink.write(data)
    except BrokenPipeError:
        return  # the command does not read its standard input


def _read(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


@cache
def _fork_server(packages: tuple[str, ...], settings: frozenset[tuple[str, str]]) -> Path:
    """Start a fork server. Return the path of its socket."""
    path = Path(tempfile.mkdtemp(prefix="fork-server-")) / "socket"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")} | dict(settings)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.cli.fork_server", str(path), *packages], stdin=subprocess.DEVNULL, env=environment
    )
    atexit.register(_end, process, path)
    if not poll_until(lambda: path.exists() or process.poll() is not None) or process.poll() is not None:
        raise RuntimeError("the fork server of `dist` did not start")
    return path


def _end(process: subprocess.Popen[bytes], path: Path) -> None:
    process.terminate()
    process.wait()
    path.unlink(missing_ok=True)
    path.parent.rmdir()
