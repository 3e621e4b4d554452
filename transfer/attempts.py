"""Attempts at a unit of work: which errors get another one, and when.

Three rules hold for every pool:

- an error that is not `retryable` gets no other attempt;
- wrong bytes are fetched once more: a bit that flipped on the way is right then, a wrong blob at the registry is not;
- a Retry-After of a registry is waited for, up to a day after the first attempt. Such attempts do not count as retries.
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
    """An attempt: its `number` from 1 on, of which at most `retries` + 1 are made, and when the first one `began`."""

    number: int
    retries: int
    began: datetime

    def has_successor(self, error: DistError) -> bool:
        """Return whether another attempt is made if this one ends with `error`."""
        if self.wait_s(error) is not None:
            return True
        return is_retried(error, self.number) and self.number <= self.retries

    def wait_s(self, error: DistError) -> float | None:
        """Return the seconds to wait because `error` has a Retry-After, at most a day; None if another rule applies."""
        if not isinstance(error, RegistryError) or not error.retryable or error.exchange.retry_after_s is None:
            return None
        if self.began < datetime.now(UTC) - LONGEST_WAIT:
            return None
        return min(error.exchange.retry_after_s, LONGEST_WAIT.total_seconds())


def is_retried(error: object, number: int) -> bool:
    """Return whether an error gets another attempt after attempt `number`, if any are left."""
    if isinstance(error, Corrupt):
        return number <= _RETRIES_CORRUPT
    return isinstance(error, DistError) and error.retryable


_ATTEMPT: ContextVar[Attempt | None] = ContextVar("attempt", default=None)


@contextmanager
def use_attempt(attempt: Attempt) -> Iterator[None]:
    """Make `attempt` the current one in this block."""
    token = _ATTEMPT.set(attempt)
    try:
        yield
    finally:
        _ATTEMPT.reset(token)


def has_another(error: DistError) -> bool:
    """Return whether the current unit of work gets another attempt if it raises `error`; False outside of a pool."""
    attempt = _ATTEMPT.get()
    return attempt is not None and attempt.has_successor(error)
