"""Calls to Prefect in the background, such as those that write artifacts. A run waits for them only at its end.

A busy server answers late, and a run that made one call after the other would wait each time (docs/explanation/performance.md).
A call that fails is a warning, and does not fail the run.
"""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context

from prefect_dist.flows.api import SLOW, UNREACHABLE

_MOST_AT_ONCE = 8
_EXECUTOR: ContextVar[ThreadPoolExecutor] = ContextVar("executor")
_log = logging.getLogger(__name__)


@contextmanager
def drained() -> Iterator[None]:
    """Wait at the end of this block for all calls that were submitted in it."""
    with ThreadPoolExecutor(_MOST_AT_ONCE, thread_name_prefix="background") as executor:
        token = _EXECUTOR.set(executor)
        try:
            yield
        finally:
            _EXECUTOR.reset(token)


def submit(what: str, call: Callable[[], object]) -> None:
    """Make a call in a thread of its own, in the current context. `what` names it in a warning."""

    def call_or_warn() -> None:
        with best_effort(what):
            call()

    _EXECUTOR.get().submit(copy_context().run, call_or_warn)


@contextmanager
def best_effort(what: str) -> Iterator[None]:
    """Log a failed call to Prefect.

    This is a warning, unless the API cannot be reached: the end of the run reports that once.
    """
    try:
        yield
    except Exception as exc:  # noqa: BLE001 - Prefect's client raises many kinds
        is_lost = isinstance(exc, UNREACHABLE) and not isinstance(exc, SLOW)
        level = logging.DEBUG if is_lost else logging.WARNING
        _log.log(level, "%s cannot be shown: %s", what, exc)
