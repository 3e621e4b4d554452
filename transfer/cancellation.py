"""Cancellation of runs.

A cancelled run ends in order: transfers stop and keep the received bytes, no further unit of work starts, and the run reports
its results.
"""

import _thread
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import TypeVar

from prefect_dist.ocispec.errors import DistError

T = TypeVar("T")
_REMEDY = "complete content is kept, run again to resume"


class Stopped(DistError):
    """The run was cancelled. The store keeps the received bytes, and another run resumes with them."""


def describe_stop(reason: str) -> str:
    """Return the message for interrupted work, with the reason and the remedy."""
    return f"{reason}; {_REMEDY}"


class CancelToken:
    """Cancels runs. Thread-safe, but a signal handler may call only `request_in_thread`.

    Attributes:
        reason: the reason of the cancellation, None until the token is cancelled.
        failure: the error that ended the run, None unless `fail` cancelled the token. A run with a failure has failed: another
            run meets the same error. Any other cancelled run was only stopped, and another run resumes.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.failure: DistError | None = None
        self._cause: BaseException | None = None
        self._requested = threading.Event()
        self._callbacks: list[Callable[[], None]] = []

    def request(self, reason: str) -> bool:
        """Cancel the runs in progress and call their callbacks. If no run is in progress, do nothing and return False."""
        if not self._callbacks:
            return False
        self._cancel(reason)
        return True

    def request_in_thread(self, reason: str) -> bool:
        """Set the reason, and cancel the runs in progress in a new thread. If no run is in progress, return False.

        A signal handler may interrupt code of its thread that holds a lock of the token or of a callback. If the handler
        waited for such a lock, the thread would block forever. `threading.Thread.start` takes locks, too.
        """
        if not self._callbacks:
            return False
        self.reason = self.reason or reason
        _thread.start_new_thread(copy_context().run, (self._cancel, reason))
        return True

    def set(self, reason: str, *, cause: BaseException | None = None) -> None:
        """Cancel without the callbacks: work ends at the next `check` or `pause`. The `Stopped` errors have the `cause`."""
        if self.reason is None:
            self.reason, self._cause = reason, cause
        self._requested.set()

    def fail(self, error: DistError) -> None:
        """Cancel because of an error that ends the run, without the callbacks."""
        if self.reason is None:
            self.failure = error
        self.set(str(error), cause=error)

    def check(self) -> None:
        """Raise an error if the token is cancelled.

        Raises:
            Stopped: the token is cancelled.
        """
        if self._requested.is_set() and (stopped := self.error) is not None:
            raise stopped

    @property
    def error(self) -> Stopped | None:
        """Return the error of work that the cancellation left unfinished, or None if the token is not cancelled."""
        if self.reason is None:
            return None
        stopped = Stopped(describe_stop(self.reason) if self.failure is None else f"not finished: {self.reason}")
        if self._cause is not None:
            stopped.__cause__ = self._cause
        return stopped

    def pause(self, seconds: float) -> None:
        """Sleep, at most until the token is cancelled.

        Raises:
            Stopped: the token is cancelled.
        """
        self._requested.wait(seconds)
        self.check()

    @contextmanager
    def raise_stopped(self) -> Iterator[None]:
        """Raise `Stopped` instead of any error of this block if the token is cancelled.

        Cancellation aborts connections. The errors of aborted requests do not mention the reason.
        """
        self.check()
        try:
            yield
        except DistError:
            self.check()
            raise

    def catch_error(self, call: Callable[[], T]) -> T | DistError:
        """Return the result of a call, or its error.

        Raises:
            Stopped: the token is cancelled.
        """
        try:
            with self.raise_stopped():
                return call()
        except Stopped:
            raise
        except DistError as exc:
            return exc

    def _cancel(self, reason: str) -> None:
        self.set(reason)
        for callback in tuple(self._callbacks):
            callback()

    @contextmanager
    def on_cancel(self, callback: Callable[[], None]) -> Iterator[None]:
        """Let a request call `callback` during this block. A run is in progress during the block."""
        self._callbacks.append(callback)
        try:
            yield
        finally:
            self._callbacks.remove(callback)


_TOKEN: ContextVar[CancelToken | None] = ContextVar("cancel_token", default=None)


def current_token() -> CancelToken:
    """Return the token for runs that start now: the token of `use_token`, otherwise a new token."""
    return _TOKEN.get() or CancelToken()


@contextmanager
def use_token(token: CancelToken) -> Iterator[None]:
    """Use a token for the runs that start in this block."""
    previous = _TOKEN.set(token)
    try:
        yield
    finally:
        _TOKEN.reset(previous)
