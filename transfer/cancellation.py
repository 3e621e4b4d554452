"""The wish that a run ends early: asked from outside, heard by whatever is under way.

Ending in order takes a moment and loses nothing: transfers break off and keep what has arrived, nothing new is begun, and the
run reports what it has.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from prefect_dist.ocispec.errors import DistError

_GOES_ON = "what is whole is kept, run again to go on"


class Stopped(DistError):
    """The run is being ended: what has arrived is kept, another run goes on with it."""


def ending(reason: str) -> str:
    """What there is to say of what was broken off for a reason."""
    return f"{reason}; {_GOES_ON}"


class Stopping:
    """Whether runs are to end, and why. Thread-safe; `request` may be called by a signal handler."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._requested = threading.Event()
        self._ends: list[Callable[[], None]] = []

    def request(self, reason: str) -> bool:
        """Ask what is under way to end; False, and nothing done, where nothing is."""
        if not self._ends:
            return False
        self.set(reason)
        for end in tuple(self._ends):
            end()
        return True

    def set(self, reason: str) -> None:
        """Have everything end that looks; who waits is not woken."""
        self.reason = self.reason or reason
        self._requested.set()

    def check(self) -> None:
        """Go on, or not.

        Raises:
            Stopped: it was asked to end.
        """
        if self._requested.is_set():
            raise Stopped(ending(str(self.reason)))

    def pause(self, seconds: float) -> None:
        """Sleep, unless it is asked to end.

        Raises:
            Stopped: it was.
        """
        self._requested.wait(seconds)
        self.check()

    @contextmanager
    def heard(self, end: Callable[[], None]) -> Iterator[None]:
        """Have a request call `end` during this block, which is what makes it one that is under way."""
        self._ends.append(end)
        try:
            yield
        finally:
            self._ends.remove(end)


_STOPPING: ContextVar[Stopping | None] = ContextVar("stopping", default=None)


def current() -> Stopping:
    """What the runs that are started from here listen to: what `stopped_by` gave, or else one that nobody else has."""
    return _STOPPING.get() or Stopping()


@contextmanager
def stopped_by(stopping: Stopping) -> Iterator[None]:
    """Have runs that are started in this block hear what is requested of `stopping`."""
    token = _STOPPING.set(stopping)
    try:
        yield
    finally:
        _STOPPING.reset(token)
