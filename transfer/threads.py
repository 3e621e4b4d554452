"""Units of work in threads, without Prefect."""

import logging
import random
from collections.abc import Callable, Hashable
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import copy_context
from datetime import UTC, datetime
from typing import Generic, Self, TypeVar

from prefect_dist.ocispec.errors import DistError
from prefect_dist.transfer.attempts import RETRIES, Attempt, use_attempt
from prefect_dist.transfer.pool import Failed, Ok, Outcome, Pool, Raised, Unexpected, Unit, WaitingUnits
from prefect_dist.transfer.session import Session

# The executor makes threads on demand. Each unit that waits for a Retry-After holds a thread and does not count as in flight.
_MAX_THREADS = 1024
_FIRST_DELAY_S = 1.0
_LONGEST_DELAY_S = 60.0
T = TypeVar("T")
_log = logging.getLogger(__name__)


class ThreadPool(Pool):
    """Runs units in threads, with the retries that `transfer.attempts` describes.

    Leaving the block waits for the threads. An exception in the block cancels the run first.
    """

    def __init__(self, session: Session, *, window: int, retries: int = RETRIES) -> None:
        super().__init__(session, window=window)
        self._retries = retries
        self._waiting = WaitingUnits()
        self._executor = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="unit")

    @property
    def waiting(self) -> AbstractSet[Hashable]:
        """Return the keys of the units that wait for a Retry-After."""
        return self._waiting.keys

    def on_wait(self, listener: Callable[[], None]) -> AbstractContextManager[None]:
        """Call `listener` for each unit that starts to wait during the block."""
        return self._waiting.on_wait(listener)

    def start(self, unit: Unit[T], end: Callable[[Outcome[T] | Raised], None]) -> Hashable:
        """Start a unit in a thread with a copy of the current context."""
        key = object()
        self.submit(key, unit, end)
        return key

    def submit(self, key: Hashable, unit: Unit[T], end: Callable[[Outcome[T] | Raised], None]) -> None:
        """Start a unit like `start`, with the caller's key."""
        self._executor.submit(copy_context().run, self._run, key, unit, end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:  # units would wait for their Retry-After first
            self.session.cancel.set(f"the run failed: {error!r}")
        self._executor.shutdown(cancel_futures=error is not None)

    def _run(self, key: Hashable, unit: Unit[T], end: Callable[[Outcome[T] | Raised], None]) -> None:
        end(self._outcome(key, unit))

    def _outcome(self, key: Hashable, unit: Unit[T]) -> Outcome[T] | Raised:
        try:
            return Ok(_Attempts(self, key, unit).run())
        except DistError as exc:
            return Failed(exc)
        except Exception as exc:  # noqa: BLE001 - an unexpected error fails one unit
            _log.debug("unexpected error of a unit of work", exc_info=exc)
            return Failed(Unexpected.of(exc))
        except BaseException as exc:  # noqa: BLE001 - ends the run, not only the thread
            return Raised(exc)

    def pause(self, key: Hashable, seconds: float, *, is_waiting: bool) -> None:
        """Sleep before the next attempt of a unit. `is_waiting`: because of a Retry-After.

        Raises:
            Stopped: the run was cancelled.
        """
        if not is_waiting:
            self.session.cancel.pause(seconds)
            return
        with self._waiting.add(key):
            self.session.cancel.pause(seconds)

    @property
    def retries(self) -> int:
        """Return the largest number of retries of a unit."""
        return self._retries


class _Attempts(Generic[T]):
    """The attempts at a unit of work."""

    def __init__(self, pool: ThreadPool, key: Hashable, unit: Unit[T]) -> None:
        self._pool, self._key, self._unit = pool, key, unit
        self._began = datetime.now(UTC)
        self._number = 1

    def run(self) -> T:
        """Return the result of the first successful attempt. Raise the error of the last attempt."""
        while True:
            attempt = Attempt(self._number, self._pool.retries, self._began)
            try:
                return self._try(attempt)
            except DistError as exc:
                if not attempt.has_successor(exc):
                    raise
                wait_s = attempt.wait_s(exc)
            if wait_s is None:
                self._pool.pause(self._key, self._delay_s(), is_waiting=False)
                self._number += 1
            else:
                self._pool.pause(self._key, wait_s, is_waiting=True)

    def _try(self, attempt: Attempt) -> T:
        with use_attempt(attempt), self._pool.session.cancel.raise_stopped():
            return self._unit.work(self._pool.session, *self._unit.arguments, **self._unit.options)

    def _delay_s(self) -> float:
        """Return the seconds before the next attempt. Attempts that ended with a Retry-After do not lengthen the delay."""
        longest = min(_FIRST_DELAY_S * 2 ** (self._number - 1), _LONGEST_DELAY_S)
        return random.uniform(longest / 2, longest)  # noqa: S311 - spreads the attempts, hides nothing
