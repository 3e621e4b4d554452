"""The bounded worklist that every parallel walk over descriptors runs on.

It knows neither threads nor Prefect: it is given a function that starts work on an item and answers with a future, and it
listens to that future. So one walk serves an executor (`ocispec.handlers.dispatch`) and a task runner (`flows.walk`).
"""

import queue
from collections import Counter, deque
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
    """Items to be worked on, each started once, with at most `window` in flight.

    Items for which `lane` returns a name do not count: of each lane one is in flight at a time. So items that wait for one
    server do not delay items for others.

    Iterating yields every item with its ended future, in the order of ending; the body of that loop adds what it found:

        for item, future in frontier:
            frontier.add(found(future))

    Not for use by several threads; the futures may end in any.
    """

    def __init__(
        self, start: Callable[[Item], F], *, window: int, lane: Callable[[Item], str | None] = lambda _item: None
    ) -> None:
        self._start, self._lane = start, lane
        self._window = window
        self._seen: set[Item] = set()
        self._waiting: dict[str | None, deque[Item]] = {None: deque()}
        self._in_flight: Counter[str | None] = Counter()
        self._ended: queue.SimpleQueue[tuple[Item, F] | Callable[[], None]] = queue.SimpleQueue()

    def add(self, items: Iterable[Item]) -> None:
        """Take up those items that were never added before, after all that waits."""
        for item in self._new(items):
            self.again(item)

    def add_first(self, items: Iterable[Item]) -> None:
        """Take up those items that were never added before, before all that waits."""
        for item in reversed(self._new(items)):
            self._queue_of(item).appendleft(item)

    def again(self, item: Item) -> None:
        """Take up an item once more, although it has ended."""
        self._queue_of(item).append(item)

    def call(self, function: Callable[[], None]) -> None:
        """Call a function between two items, in the thread that iterates. May be called from any thread."""
        self._ended.put(function)

    def drop(self) -> list[Item]:
        """Give up the items that were not started; those under way still end."""
        dropped = [item for waiting in self._waiting.values() for item in waiting]
        for waiting in self._waiting.values():
            waiting.clear()
        return dropped

    def __iter__(self) -> Iterator[tuple[Item, F]]:
        while any(self._waiting.values()) or self._in_flight.total():
            self._fill()
            ended = self._ended.get()
            if callable(ended):
                ended()
                continue
            self._in_flight[self._lane(ended[0])] -= 1
            yield ended

    def _new(self, items: Iterable[Item]) -> list[Item]:
        new = [item for item in dict.fromkeys(items) if item not in self._seen]
        self._seen.update(new)
        return new

    def _fill(self) -> None:
        for lane, waiting in self._waiting.items():
            window = self._window if lane is None else 1
            while waiting and self._in_flight[lane] < window:
                item = waiting.popleft()
                future = self._start(item)
                self._in_flight[lane] += 1
                future.add_done_callback(partial(self._end, item))

    def _queue_of(self, item: Item) -> deque[Item]:
        return self._waiting.setdefault(self._lane(item), deque())

    def _end(self, item: Item, future: F) -> None:
        self._ended.put((item, future))
