"""The units of work that only wait for the time in a registry's Retry-After."""

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager


class WaitingUnits:
    """The keys of waiting units. Thread-safe."""

    def __init__(self) -> None:
        self._keys: frozenset[Hashable] = frozenset()
        self._listeners: tuple[Callable[[], None], ...] = ()
        self._guard = threading.Lock()

    @property
    def keys(self) -> frozenset[Hashable]:
        """Return the keys of the waiting units."""
        return self._keys

    @contextmanager
    def add(self, key: Hashable) -> Iterator[None]:
        """Call the listeners, and list a unit as waiting during the block."""
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
        """Call `listener`, from any thread, for each unit that starts to wait during the block."""
        with self._guard:
            self._listeners += (listener,)
        try:
            yield
        finally:
            with self._guard:
                self._listeners = tuple(one for one in self._listeners if one is not listener)
