"""Units of work in threads, without Prefect."""

from collections.abc import Callable, Hashable, Iterator
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from datetime import UTC, datetime
from typing import Any, Self

import tenacity

from prefect_dist.ocispec.errors import DistError
from prefect_dist.transfer.attempts import RETRIES, Attempt, use_attempt
from prefect_dist.transfer.pool import Failed, Ok, Outcome, Pool, Raised, Unexpected, Unit
from prefect_dist.transfer.session import Session
from prefect_dist.transfer.waiting import WaitingUnits

# Units that wait for a Retry-After hold a thread each and do not count as in flight.
_THREADS_PER_UNIT = 4
_DELAYS_S = tenacity.wait_exponential_jitter(initial=1, jitter=0.5)


class ThreadPool(Pool):
    """Runs units in threads, with the retries that `transfer.attempts` describes. Leaving the block waits for the threads."""

    def __init__(self, session: Session, *, window: int, retries: int = RETRIES) -> None:
        super().__init__(session, window=window)
        self._retries = retries
        self._waiting = WaitingUnits()
        self._executor = ThreadPoolExecutor(_THREADS_PER_UNIT * window, thread_name_prefix="unit")

    @property
    def waiting(self) -> AbstractSet[Hashable]:
        """The units that wait for a Retry-After."""
        return self._waiting.keys

    @contextmanager
    def on_wait(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call `listener` each time that a unit begins to wait during the block."""
        with self._waiting.on_wait(listener):
            yield

    def start(self, unit: Unit, end: Callable[[Outcome | Raised], None]) -> Hashable:
        """Start a unit in a thread that has a copy of the present context."""
        key = object()
        self._executor.submit(copy_context().run, self._run, key, unit, end)
        return key

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown()

    def _run(self, key: Hashable, unit: Unit, end: Callable[[Outcome | Raised], None]) -> None:
        try:
            end(Ok(_Attempts(self, key, unit).run()))
        except DistError as exc:
            end(Failed(exc))
        except Exception as exc:  # noqa: BLE001 - an error that no one expects concerns one unit
            end(Failed(Unexpected.of(exc)))
        except BaseException as exc:  # noqa: BLE001 - it ends the run, not only this thread
            end(Raised(exc))

    def pause(self, key: Hashable, seconds: float, *, is_waiting: bool) -> None:
        """Sleep before the next attempt of a unit. `is_waiting`: because of a Retry-After.

        Raises:
            Stopped: the run was cancelled meanwhile.
        """
        if not is_waiting:
            self.session.cancel.pause(seconds)
            return
        with self._waiting.add(key):
            self.session.cancel.pause(seconds)

    @property
    def retries(self) -> int:
        """The number of further attempts that a unit gets."""
        return self._retries


class _Attempts:
    """The attempts at one unit of work."""

    def __init__(self, pool: ThreadPool, key: Hashable, unit: Unit) -> None:
        self._pool, self._key, self._unit = pool, key, unit
        self._began = datetime.now(UTC)
        self._number = 1
        self._wait_s: float | None = None

    def run(self) -> Any:
        """Return the result of the first attempt that succeeds. Raise the error of the last one."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._is_retried), wait=self._delay_s, sleep=self._sleep, reraise=True
        )
        return retrying(self._attempt)

    def _attempt(self) -> Any:
        with use_attempt(Attempt(self._number, self._pool.retries, self._began)):
            return self._unit.work(self._pool.session, *self._unit.arguments, **self._unit.options)

    def _is_retried(self, error: BaseException) -> bool:
        if not isinstance(error, DistError):
            return False
        attempt = Attempt(self._number, self._pool.retries, self._began)
        self._wait_s = attempt.wait_s(error)
        return attempt.has_successor(error)

    def _delay_s(self, state: tenacity.RetryCallState) -> float:
        return _DELAYS_S(state) if self._wait_s is None else self._wait_s

    def _sleep(self, seconds: float) -> None:
        is_waiting = self._wait_s is not None
        self._pool.pause(self._key, seconds, is_waiting=is_waiting)
        self._number += not is_waiting
