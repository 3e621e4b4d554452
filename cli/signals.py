"""Signals and `--timeout` end a command early.

The first signal asks the active run to stop and to report the results. A command without a run ends at once. The
second signal exits the process.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from prefect_dist.transfer.cancellation import CancelToken, current_token, use_token

if TYPE_CHECKING:
    from prefect_dist.transfer.events import Notify

INTERRUPTED = 130
_HUNG_UP, _TERMINATED = 129, 143
_TIMED_OUT = 1
# Time for a run to stop after its timeout, before the process exits.
_GRACE_S = 10
_ABANDONED = threading.Event()
# Filled by `exit_process`.
_EXIT_CODES: list[int] = []
_SHOW_CURSOR = "\x1b[?25h"


@dataclass(frozen=True, slots=True)
class _Cause:
    """Exit code and message of an interrupted command."""

    code: int
    reason: str


class Interrupted(BaseException):
    """A signal or the timeout ended the command. Not an `Exception`, so that no library swallows it."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def run_interruptible(command: Callable[[], int | None], *, timeout_s: float | None) -> int:
    """Return the exit code of `command`; if a signal or the timeout made it fail, the exit code for the signal or timeout.

    Raises:
        Interrupted: a signal or the timeout came while no run was active. The main thread raises the error, at any place.
    """
    causes = {
        signal.SIGHUP: _Cause(_HUNG_UP, "hung up"),
        signal.SIGINT: _Cause(INTERRUPTED, "interrupted"),
        signal.SIGTERM: _Cause(_TERMINATED, "terminated"),
    }
    if timeout_s is not None:
        causes[signal.SIGALRM] = _Cause(_TIMED_OUT, f"not done within {timeout_s:g} s")
    cancel, received = CancelToken(), list[_Cause]()

    def stop(number: int, _frame: FrameType | None) -> None:
        cause = causes[signal.Signals(number)]
        received.append(cause)
        if len(received) > 1:
            _exit_now(cause)
        if not cancel.request_in_thread(cause.reason):
            raise Interrupted(cause.code, cause.reason)

    with _handle_signals(dict.fromkeys(causes, stop)), _set_alarm(timeout_s), use_token(cancel):
        try:
            code = command() or 0
        except Exception as exc:
            if (interrupted := _find_interrupted(exc)) is None:
                raise
            raise interrupted from None
    return received[0].code if received and code else code


def _find_interrupted(error: BaseException) -> Interrupted | None:
    """Return the interruption that caused an error. Python 3.11 raises RuntimeError from an error in `__set_name__`."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, Interrupted):
        cause = cause.__cause__
    return cause


def note_stop(notify: "Notify") -> contextlib.AbstractContextManager[None]:
    """Return a block with a run in progress. The first signal in the block stops the run, and sends a note to `notify`."""
    from prefect_dist.transfer.events import Note

    return current_token().on_cancel(lambda: notify(Note("stopping; press Ctrl-C again to exit immediately")))


def abandon_threads() -> None:
    """Make `exit_process` exit without waiting for threads, which may be blocked by an unreachable server."""
    _ABANDONED.set()


def exit_process(code: int) -> NoReturn:
    """Exit the process when its threads have ended, or at once if they were abandoned."""
    if _ABANDONED.is_set():
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    _EXIT_CODES.append(code)
    sys.exit(code)


@atexit.register
def _skip_cleanup() -> None:
    """Exit without freeing all objects of the interpreter, which takes 0.3 s after a run.

    Python calls this function last: the threads have ended, and functions that other modules registered later have returned.
    """
    if _EXIT_CODES:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(_EXIT_CODES[-1])


@contextlib.contextmanager
def _handle_signals(handlers: Mapping[signal.Signals, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    """Handle signals in the block, except those that the caller ignores for the command, such as SIGHUP under nohup."""
    ignored = {number for number in (signal.SIGHUP, signal.SIGINT) if signal.getsignal(number) is signal.SIG_IGN}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items() if number not in ignored}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _set_alarm(seconds: float | None) -> Iterator[None]:
    """Raise SIGALRM after `seconds`, and again after the grace period."""
    signal.setitimer(signal.ITIMER_REAL, seconds or 0, _GRACE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _exit_now(cause: _Cause) -> NoReturn:
    """Exit at once. An exception would wait for the threads of the run, which may be blocked."""
    cursor = _SHOW_CURSOR if sys.stderr.isatty() else ""  # the live display hides it
    with contextlib.suppress(OSError):  # standard error may be broken
        os.write(2, f"{cursor}\ndist: {cause.reason}; exited before the run could stop and report its results\n".encode())
    os._exit(cause.code)
