"""Attempts at a unit of work: the errors that cause a retry, and the time of the retry.

Three rules hold for every pool:

- an error that is not `retryable` causes no retry;
- corrupt content causes one retry: a bit may have flipped in transit, a corrupt blob at the registry stays corrupt;
- a Retry-After header of a registry causes a wait, up to a day after the first attempt. The wait does not count as a retry.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from prefect_dist.ocispec.errors import Corrupt, DistError
from prefect_dist.remotes import RegistryError

RETRIES = 3
LONGEST_WAIT = timedelta(days=1)
_RETRIES_CORRUPT = 1


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt: the `number` (1 to `retries` + 1), and the time when the first attempt `began`."""

    number: int
    retries: int
    began: datetime

    def has_successor(self, error: DistError) -> bool:
        """Return whether another attempt follows if this attempt ends with `error`."""
        if self.wait_s(error) is not None:
            return True
        return is_retried(error, self.number) and self.number <= self.retries

    def wait_s(self, error: DistError) -> float | None:
        """Return the seconds to wait for the Retry-After of `error`, at most a day; None if another rule applies."""
        if not isinstance(error, RegistryError) or not error.retryable or error.exchange.retry_after_s is None:
            return None
        if self.began < datetime.now(UTC) - LONGEST_WAIT:
            return None
        return min(error.exchange.retry_after_s, LONGEST_WAIT.total_seconds())


def is_retried(error: object, number: int) -> bool:
    """Return whether an error of attempt `number` causes a retry, if the unit has retries left."""
    if isinstance(error, Corrupt):
        return number <= _RETRIES_CORRUPT
    return isinstance(error, DistError) and error.retryable


_ATTEMPT: ContextVar[Attempt | None] = ContextVar("attempt", default=None)


@contextmanager
def use_attempt(attempt: Attempt) -> Iterator[None]:
    """Make `attempt` the current attempt in the block."""
    token = _ATTEMPT.set(attempt)
    try:
        yield
    finally:
        _ATTEMPT.reset(token)


def has_another(error: DistError) -> bool:
    """Return whether the current unit of work has another attempt after `error`; False outside of a pool."""
    attempt = _ATTEMPT.get()
    return attempt is not None and attempt.has_successor(error)
