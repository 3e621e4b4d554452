"""The bounded worklist that every parallel walk over descriptors runs on.

It knows neither threads nor Prefect: it is given a function that starts work on an item and answers with a future, and it
listens to that future. So one walk serves an executor (`ocispec.handlers.dispatch`) and a task runner (`flows.walk`).
"""

import queue
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

Item = TypeVar("Item", bound=Hashable)


class Listened(Protocol):
    """The one thing asked of a future."""

    def add_done_callback(self, fn: Callable[[Any], None], /) -> None:
        """Call `fn` once, from any thread, when the work has ended; at once if it already has."""


F = TypeVar("F", bound=Listened)


class Frontier(Generic[Item, F]):
    """Items to be worked on, each started once, with at most `window` under way.

    Iterating yields every item with its ended future, in the order of ending; the body of that loop adds what it found:

        for item, future in frontier:
            frontier.add(found(future))

    Not for use by several threads; the futures may end in any.
    """

    def __init__(self, start: Callable[[Item], F], *, window: int) -> None:
        self._start = start
        self._window = window
        self._seen: set[Item] = set()
        self._waiting: deque[Item] = deque()
        self._under_way = 0
        self._ended: queue.SimpleQueue[tuple[Item, F]] = queue.SimpleQueue()

    def add(self, items: Iterable[Item]) -> None:
        """Take up those items that were never added before, after all that waits."""
        self._waiting.extend(self._new(items))

    def add_first(self, items: Iterable[Item]) -> None:
        """Take up those items that were never added before, before all that waits."""
        self._waiting.extendleft(reversed(self._new(items)))

    def again(self, item: Item) -> None:
        """Take up an item once more, although it has ended."""
        self._waiting.append(item)

    def drop(self) -> list[Item]:
        """Give up the items that were not started; those under way still end."""
        dropped = list(self._waiting)
        self._waiting.clear()
        return dropped

    def __iter__(self) -> Iterator[tuple[Item, F]]:
        while self._waiting or self._under_way:
            self._fill()
            item, future = self._ended.get()
            self._under_way -= 1
            yield item, future

    def _new(self, items: Iterable[Item]) -> list[Item]:
        new = [item for item in dict.fromkeys(items) if item not in self._seen]
        self._seen.update(new)
        return new

    def _fill(self) -> None:
        while self._waiting and self._under_way < self._window:
            item = self._waiting.popleft()
            future = self._start(item)
            self._under_way += 1
            future.add_done_callback(partial(self._end, item))

    def _end(self, item: Item, future: F) -> None:
        self._ended.put((item, future))
