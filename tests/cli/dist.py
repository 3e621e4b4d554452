"""Runs the `dist` command in a process of its own, as a person or a script does."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TIMEOUT_S = 100


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended."""

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
    """The command line that starts `dist` with these arguments."""
    return [sys.executable, "-m", "prefect_dist.cli.main", *map(str, arguments)]


def dist(*arguments: str | Path, stdin: bytes = b"", file_limit_bytes: int | None = None, **environment: str | None) -> Result:
    """Run `dist` to its end; an environment variable that is None is unset, and a limit on files is a disk that gets full."""
    variables = {key: value for key, value in (os.environ | environment).items() if value is not None}
    argv = command(*arguments)
    if file_limit_bytes is not None:
        argv = ["prlimit", f"--fsize={file_limit_bytes}", *argv]
    done = subprocess.run(argv, input=stdin, capture_output=True, timeout=_TIMEOUT_S, env=variables, check=False)
    return Result(done.returncode, done.stdout, done.stderr.decode())
