"""Calls to Prefect in the background, such as the calls that write artifacts. A run waits for these calls only at its end.

A busy server answers late. A run that made one call after the other would wait for each answer
(docs/explanation/performance.md). A failed call causes a warning, and does not fail the run.
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
def await_calls() -> Iterator[None]:
    """Wait at the end of this block for all calls that were submitted in the block."""
    with ThreadPoolExecutor(_MOST_AT_ONCE, thread_name_prefix="background") as executor:
        token = _EXECUTOR.set(executor)
        try:
            yield
        finally:
            _EXECUTOR.reset(token)


def submit(name: str, call: Callable[[], object]) -> None:
    """Make a call in another thread, in a copy of the current context. `name` is its name in a warning."""

    def call_or_warn() -> None:
        with best_effort(name):
            call()

    _EXECUTOR.get().submit(copy_context().run, call_or_warn)


@contextmanager
def best_effort(name: str) -> Iterator[None]:
    """Log a warning if a call to Prefect fails in this block.

    If the API cannot be reached, the warning is left out: the end of the run reports that once.
    """
    try:
        yield
    except Exception as exc:  # noqa: BLE001 - Prefect's client raises many kinds
        is_lost = isinstance(exc, UNREACHABLE) and not isinstance(exc, SLOW)
        level = logging.DEBUG if is_lost else logging.WARNING
        _log.log(level, "cannot show %s in Prefect: %s", name, exc)
