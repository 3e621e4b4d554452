"""Runs the `dist` command at a terminal, at which somebody types when it asks."""

import os
import pty
import subprocess
from dataclasses import dataclass

from tests.cli.dist import command

_TIMEOUT_S = 100
_PROMPT = b": "


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended, and all that the terminal showed."""

    code: int
    shown: str


def at_terminal(typed: str, *arguments: str) -> Ended:
    """Run `dist` with its three streams at a terminal of its own; `typed` is typed once it shows a prompt."""
    ours, theirs = pty.openpty()
    # setsid makes the terminal the controlling one: keys such as Ctrl-C are signals then.
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
        code = process.wait(_TIMEOUT_S)
    return Ended(code, shown.decode())


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # nobody has the other end open any more
        return b""
