"""Running one command within its time."""

import signal
from collections.abc import Callable
from types import FrameType

from cli.errors import TimedOut


def bounded(command: Callable[[], int | None], *, timeout_s: float | None) -> int | None:
    """What `command` returns.

    Raises:
        TimedOut: `timeout_s` passed; raised in the main thread, wherever it was.
    """
    if timeout_s is None:
        return command()

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise TimedOut(f"not done within {timeout_s:g} s; what has arrived is kept, run again to go on")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        return command()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
