"""Repeats a short action in a thread, such as a sign of life or a look at another process."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)


@contextmanager
def repeat_in_thread(step: Callable[[], bool], *, pause_s: float, name: str) -> Iterator[None]:
    """Call `step` during this block, at once and after each pause in seconds, until it returns True. `name` is the thread's.

    An unexpected error of one call says nothing about the next one. The first error is logged as a warning, only with its type:
    its text may contain an answer of a server.
    """
    is_over = threading.Event()

    def run() -> None:
        level = logging.WARNING
        while True:
            try:
                if step():
                    return
            except Exception as exc:  # noqa: BLE001 - the rest of the run needs the next call
                _log.log(level, "%s: unexpected %s, trying again every %g s", name, type(exc).__name__, pause_s)
                _log.debug("%s: the unexpected error", name, exc_info=exc)
                level = logging.DEBUG
            if is_over.wait(pause_s):
                return

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
