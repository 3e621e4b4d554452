"""Calls to Prefect that run beside the work, such as those that write artifacts: the work does not wait for them, its end does.

A busy server answers late, and a run that made one call after the other would wait each time (docs/performance.md). A call that
fails is a warning, and no reason for a run to fail.
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
def awaited() -> Iterator[None]:
    """Leave the block only when all is done that was begun in it with `meanwhile`."""
    with ThreadPoolExecutor(_MOST_AT_ONCE, thread_name_prefix="meanwhile") as executor:
        token = _EXECUTOR.set(executor)
        try:
            yield
        finally:
            _EXECUTOR.reset(token)


def meanwhile(what: str, tell: Callable[[], object]) -> None:
    """Have something told in a thread of its own, in the present context."""

    def tolerantly() -> None:
        with tolerated(what):
            tell()

    _EXECUTOR.get().submit(copy_context().run, tolerantly)


@contextmanager
def tolerated(what: str) -> Iterator[None]:
    """Log a failed call to Prefect.

    A warning, unless the API cannot be reached: then the end of the run says so, once.
    """
    try:
        yield
    except Exception as exc:  # noqa: BLE001 - Prefect's client raises many kinds
        is_lost = isinstance(exc, UNREACHABLE) and not isinstance(exc, SLOW)
        level = logging.DEBUG if is_lost else logging.WARNING
        _log.log(level, "%s cannot be shown: %s", what, exc)
