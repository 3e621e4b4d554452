"""Runs the `dist` command at a terminal, and answers its prompt."""

import os
import pty
import subprocess
from dataclasses import dataclass

from tests.cli.dist import command
from tests.peers.processes import PATIENCE_S

_PROMPT = b": "


@dataclass(frozen=True, slots=True)
class TerminalResult:
    """The exit code of a command, and the whole output of the terminal."""

    code: int
    shown: str


def at_terminal(typed: str, *arguments: str) -> TerminalResult:
    """Run `dist` with its three streams at a new terminal. Type `typed` at the first prompt."""
    ours, theirs = pty.openpty()
    # With setsid, the terminal becomes the controlling terminal, which turns keys such as Ctrl-C into signals.
    argv = ["setsid", "--ctty", *command(*arguments)]
    with subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while not shown.endswith(_PROMPT) and (piece := _read(ours)):
            shown += piece
        os.write(ours, typed.encode())
        while piece := _read(ours):
            shown += piece
        os.close(ours)
        code = process.wait(PATIENCE_S)
    return TerminalResult(code, shown.decode())


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the command has closed the other end
        return b""
