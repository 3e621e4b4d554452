"""What Prefect is told while a run goes on, such as its artifacts: nothing in the run waits for that, but its end does.

A server that has much to take in answers late, and a run that told it one thing after the other would wait each time
(docs/performance.md). That it cannot be told is a warning, and no reason for a run to fail.
"""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context

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
    """Warn if something cannot be told."""
    try:
        yield
    except Exception as exc:  # noqa: BLE001 - whatever Prefect's client raises
        _log.warning("%s cannot be shown: %s", what, exc)
