"""The bounded worklist that every parallel walk over descriptors runs on.

It knows neither threads nor Prefect: it is given a function that starts work on an item and answers with a future, and it
listens to that future. So it serves an executor as well as a task runner (`flows.walk`).
"""

import queue
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial
from itertools import count
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

Item = TypeVar("Item", bound=Hashable)


class Listened(Protocol):
    """The one thing asked of a future."""

    def add_done_callback(self, fn: Callable[[Any], None], /) -> None:
        """Call `fn` once, from any thread, when the work has ended; at once if it already has."""


F = TypeVar("F", bound=Listened)


class Lane(NamedTuple):
    """A kind of items, such as those that need one server. Of a single lane, one item is in flight at a time."""

    name: Hashable
    is_single: bool = False


_ONLY_LANE = Lane(None)


class Frontier(Generic[Item, F]):
    """Items to be worked on, each started once, with at most `window` in flight.

    `lane` returns the lane of an item. The lane with the fewest items in flight is next, and of lanes with equally many the one
    whose first item was added first. So items that wait for one server leave room for items of others.

    Items that are in flight and do nothing do not count; `idle` returns their number. Even so, at most `window` items of one
    lane are in flight. Items of single lanes never count.

    Iterating yields every item with its ended future, in the order of ending; the body of that loop adds what it found:

        for item, future in frontier:
            frontier.add(found(future))

    Not for use by several threads; the futures may end in any.
    """

    def __init__(
        self,
        start: Callable[[Item], F],
        *,
        window: int,
        lane: Callable[[Item], Lane] = lambda _item: _ONLY_LANE,
        idle: Callable[[], int] = lambda: 0,
    ) -> None:
        self._start, self._lane, self._idle = start, lane, idle
        self._window = window
        self._seen: set[Item] = set()
        self._waiting: defaultdict[Lane, deque[tuple[int, Item]]] = defaultdict(deque)
        self._in_flight: Counter[Lane] = Counter()
        self._counted = 0
        self._last, self._first = count(), count(-1, -1)
        self._ended: queue.SimpleQueue[tuple[Item, Lane, F] | Callable[[], None]] = queue.SimpleQueue()

    def add(self, items: Iterable[Item]) -> None:
        """Take up those items that were never added before, after all that waits."""
        for item in self._new(items):
            self.again(item)

    def add_first(self, items: Iterable[Item]) -> None:
        """Take up those items that were never added before, before all that waits."""
        for item in reversed(self._new(items)):
            self._waiting[self._lane(item)].appendleft((next(self._first), item))

    def again(self, item: Item) -> None:
        """Take up an item once more, although it has ended."""
        self._waiting[self._lane(item)].append((next(self._last), item))

    def call(self, function: Callable[[], None]) -> None:
        """Call a function between two items, in the thread that iterates. May be called from any thread."""
        self._ended.put(function)

    def drop(self) -> list[Item]:
        """Give up the items that were not started; those under way still end."""
        dropped = [item for waiting in self._waiting.values() for _, item in waiting]
        self._waiting.clear()
        return dropped

    def __iter__(self) -> Iterator[tuple[Item, F]]:
        while any(self._waiting.values()) or self._in_flight.total():
            self._fill()
            ended = self._ended.get()
            if callable(ended):
                ended()
                continue
            item, lane, future = ended
            self._in_flight[lane] -= 1
            self._counted -= not lane.is_single
            yield item, future

    def _new(self, items: Iterable[Item]) -> list[Item]:
        new = [item for item in dict.fromkeys(items) if item not in self._seen]
        self._seen.update(new)
        return new

    def _fill(self) -> None:
        while (lane := self._next_lane()) is not None:
            _, item = self._waiting[lane].popleft()
            if not self._waiting[lane]:
                del self._waiting[lane]
            future = self._start(item)
            self._in_flight[lane] += 1
            self._counted += not lane.is_single
            future.add_done_callback(partial(self._end, item, lane))

    def _next_lane(self) -> Lane | None:
        """Return the lane whose first item is to be started next, or None if none may be."""
        is_full = self._counted - self._idle() >= self._window
        return min((lane for lane in self._waiting if self._has_room(lane, is_full=is_full)), key=self._turn, default=None)

    def _has_room(self, lane: Lane, *, is_full: bool) -> bool:
        if lane.is_single:
            return not self._in_flight[lane]
        return not is_full and self._in_flight[lane] < self._window

    def _turn(self, lane: Lane) -> tuple[bool, int, int]:
        number, _ = self._waiting[lane][0]
        return number >= 0, self._in_flight[lane], number

    def _end(self, item: Item, lane: Lane, future: F) -> None:
        self._ended.put((item, lane, future))
