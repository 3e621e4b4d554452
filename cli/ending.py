"""How a command ends before its work is done: Ctrl-C, SIGTERM, its own time-out.

The first of these asks the run that is under way to end in order, so that it reports what it has; a command that has none ends
there and then. The second ends the process, whatever it does.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from prefect_dist.transfer.cancellation import CancelToken, use_token

_HUNG_UP = 129
INTERRUPTED = 130
_TERMINATED = 143
_TOO_LATE = 1
# How long a run that was asked to end may take for it.
_GRACE_S = 10
_ABANDONED = threading.Event()
_SHOW_CURSOR = "\x1b[?25h"


@dataclass(frozen=True, slots=True)
class _Ending:
    code: int
    reason: str


class Ended(BaseException):
    """The command was ended from outside. Like an interrupt, no library on the way may take it for an error of its own."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def run_endable(command: Callable[[], int | None], *, timeout_s: float | None) -> int:
    """The exit code of `command`, or if it was asked to end and could not do all: that of what asked.

    Raises:
        Ended: it was asked to end where no run was under way; raised in the main thread, wherever it was.
    """
    endings = {
        signal.SIGHUP: _Ending(_HUNG_UP, "hung up"),
        signal.SIGINT: _Ending(INTERRUPTED, "interrupted"),
        signal.SIGTERM: _Ending(_TERMINATED, "terminated"),
    }
    if timeout_s is not None:
        endings[signal.SIGALRM] = _Ending(_TOO_LATE, f"not done within {timeout_s:g} s")
    cancel, asked = CancelToken(), list[_Ending]()

    def end(number: int, _frame: FrameType | None) -> None:
        ending = endings[signal.Signals(number)]
        asked.append(ending)
        if len(asked) > 1:
            _leave_at_once(ending)
        if not cancel.request(ending.reason):
            raise Ended(ending.code, ending.reason)

    with _handle_signals(dict.fromkeys(endings, end)), _alarm(timeout_s), use_token(cancel):
        code = command() or 0
    return asked[0].code if asked and code else code


def abandon_threads() -> None:
    """Have `leave` wait for no thread: some wait for a server that does not answer."""
    _ABANDONED.set()


def leave(code: int) -> NoReturn:
    """End this process with an exit code."""
    if _ABANDONED.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


@contextlib.contextmanager
def _handle_signals(handlers: Mapping[signal.Signals, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _alarm(seconds: float | None) -> Iterator[None]:
    signal.setitimer(signal.ITIMER_REAL, seconds or 0, _GRACE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _leave_at_once(ending: _Ending) -> NoReturn:
    """End this process at once: an exception would wait for the threads of the run, which may not hear anything any more."""
    cursor = _SHOW_CURSOR if sys.stderr.isatty() else ""  # a live display hides it
    os.write(2, f"{cursor}\ndist: {ending.reason}, left before the run could end in order\n".encode())
    os._exit(ending.code)
