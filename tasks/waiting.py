"""The task runs that wait for as long as a registry's Retry-After says, and do nothing else."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID


class WaitingTasks:
    """The ids of task runs that wait. Thread-safe."""

    def __init__(self) -> None:
        self._ids: frozenset[UUID] = frozenset()
        self._listeners: tuple[Callable[[], None], ...] = ()
        self._guard = threading.Lock()

    @property
    def ids(self) -> frozenset[UUID]:
        """The ids of the task runs that wait now."""
        return self._ids

    @contextmanager
    def including(self, task_run: UUID) -> Iterator[None]:
        """Count a task run among those that wait during this block, and call the listeners at its beginning."""
        with self._guard:
            self._ids |= {task_run}
            listeners = self._listeners
        for listener in listeners:
            listener()
        try:
            yield
        finally:
            with self._guard:
                self._ids -= {task_run}

    @contextmanager
    def heard(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call `listener`, from any thread, each time that a task run begins to wait during this block."""
        with self._guard:
            self._listeners += (listener,)
        try:
            yield
        finally:
            with self._guard:
                self._listeners = tuple(one for one in self._listeners if one is not listener)


WAITING = WaitingTasks()
