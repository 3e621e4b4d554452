"""The units of work that wait for as long as a registry's Retry-After says, and do nothing else."""

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager


class WaitingUnits:
    """The keys of units that wait. Thread-safe."""

    def __init__(self) -> None:
        self._keys: frozenset[Hashable] = frozenset()
        self._listeners: tuple[Callable[[], None], ...] = ()
        self._guard = threading.Lock()

    @property
    def keys(self) -> frozenset[Hashable]:
        """Return the keys of the units that wait now."""
        return self._keys

    @contextmanager
    def add(self, key: Hashable) -> Iterator[None]:
        """Count a unit among those that wait during this block, and call the listeners at its beginning."""
        with self._guard:
            self._keys |= {key}
            listeners = self._listeners
        for listener in listeners:
            listener()
        try:
            yield
        finally:
            with self._guard:
                self._keys -= {key}

    @contextmanager
    def on_wait(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call `listener`, from any thread, each time that a unit begins to wait during this block."""
        with self._guard:
            self._listeners += (listener,)
        try:
            yield
        finally:
            with self._guard:
                self._listeners = tuple(one for one in self._listeners if one is not listener)
