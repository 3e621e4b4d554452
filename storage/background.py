"""Repeats a short action in a thread, such as a sign of life or a look at another process."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeat_in_thread(step: Callable[[], bool], *, pause_s: float, name: str) -> Iterator[None]:
    """Call `step` during this block, at once and after each pause in seconds, until it returns True. `name` is the thread's."""
    is_over = threading.Event()

    def run() -> None:
        while not step():
            if is_over.wait(pause_s):
                return

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
