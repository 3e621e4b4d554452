"""Pools run the units of work of one run, and yield the outcome of each as it ends.

A `Pool` says how a unit runs: in a thread here, as a task run in `flows.pool`. A `Worklist` says which unit is next. So one
walk serves both.
"""

import queue
from abc import ABC, abstractmethod
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from prefect_dist.ocispec.errors import DistError
from prefect_dist.transfer.cancellation import Stopped
from prefect_dist.transfer.session import Session

T = TypeVar("T")
Item = TypeVar("Item", bound=Hashable)


def split_batches(items: Sequence[T], size: int) -> Iterator[tuple[T, ...]]:
    """Yield the items in batches of at most `size`, each for one unit of work."""
    return (tuple(items[start : start + size]) for start in range(0, len(items), size))


@dataclass(frozen=True, slots=True)
class Ok(Generic[T]):
    """The result of a unit of work."""

    value: T


@dataclass(frozen=True, slots=True)
class Failed:
    """The error that a unit of work ended with, or because of which it was not started.

    The error and its causes lose their tracebacks, which would keep the locals of their frames as long as the report.
    """

    error: DistError

    def __post_init__(self) -> None:
        pending: list[BaseException | None] = [self.error]
        while pending:
            if (error := pending.pop()) is not None and error.__traceback__ is not None:
                error.__traceback__ = None
                pending += (error.__cause__, error.__context__)


Outcome = Ok[Any] | Failed


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception that ends the loop over the outcomes, such as the one by which Prefect suspends a flow run."""

    error: BaseException


class Unexpected(DistError):
    """An error that no unit of work should end with."""

    @classmethod
    def of(cls, error: object) -> "Unexpected":
        """Return the error for an exception, or a result, of any kind."""
        try:
            text = f": {error}"
        except Exception:  # noqa: BLE001 - an exception whose text cannot be made is still an outcome
            text = ""
        return cls(" ".join(f"unexpected {type(error).__name__}{text}; report it".split()))


class Scope(Protocol):
    """A flow run of its own for the units of some images."""

    def run(self, submit: Callable[[], T], /) -> T:
        """Call `submit`, so that the task run that it submits belongs to that flow run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A unit of work.

    Attributes:
        work: a function of `transfer.units`. It is called with the session of the run, `arguments` and `options`.
        hosts: the registries that it sends requests to.
        parents: the results that it follows from: those very objects, from which Prefect draws arrows.
        scope: the flow run that it belongs to; None is the current one.
    """

    work: Callable[..., Any]
    arguments: tuple[object, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    hosts: frozenset[str] = frozenset()
    parents: tuple[object, ...] = ()
    scope: Scope | None = None


class Lane(NamedTuple):
    """A kind of items, such as those that need one server. Of a single lane, one item is in flight at a time."""

    name: Hashable
    is_single: bool = False


_ONLY_LANE = Lane(None)


class Pool(ABC):
    """Runs units of work of one run, with at most `window` in flight.

    `runs` counts the units that were run; retries of a unit do not count.
    """

    def __init__(self, session: Session, *, window: int) -> None:
        self.session = session
        self.window = window
        self.runs = 0

    @property
    @abstractmethod
    def waiting(self) -> AbstractSet[Hashable]:
        """Return the keys of units in flight that only wait for the time in a registry's Retry-After."""

    @abstractmethod
    def on_wait(self, listener: Callable[[], None]) -> AbstractContextManager[None]:
        """Call `listener`, from any thread, each time that a unit begins to wait during the block."""

    @abstractmethod
    def start(self, unit: Unit, end: Callable[[Outcome | Raised], None]) -> Hashable:
        """Start a unit of work. Return its key. `end` is called once with its outcome, from any thread.

        Raises:
            Stopped: the run cannot start units any more.
        """

    def run(self, items: Iterable[Item], unit_of: Callable[[Item], Unit]) -> Iterator[tuple[Item, Outcome]]:
        """Run the unit of each item. Yield each item with its outcome, in the order of ending."""
        worklist = Worklist(self, unit_of)
        worklist.add(items)
        return iter(worklist)

    def call(self, unit: Unit) -> Outcome:
        """Run one unit of work. Return its outcome."""
        ((_, outcome),) = self.run([0], lambda _: unit)
        return outcome


class Worklist(Generic[Item]):
    """Items for a pool: each runs once, and at most `pool.window` are in flight.

    `lane` returns the lane of an item. The lane with the fewest items in flight is next, and of lanes with equally many the one
    whose first item was added first. So items that wait for one server leave room for items of others.

    Units that only wait do not count. Even so, at most `pool.window` items of one lane are in flight. Items of single lanes
    never count.

    Iterating yields every item with its outcome, in the order of ending; the body of that loop adds what it found:

        for item, outcome in worklist:
            worklist.add(found(outcome))

    Once the run is cancelled, items that were not started end with `Stopped`.

    Not for use by several threads; only `call` is.
    """

    def __init__(
        self, pool: Pool, unit_of: Callable[[Item], Unit], *, lane: Callable[[Item], Lane] = lambda _item: _ONLY_LANE
    ) -> None:
        self._pool, self._unit_of, self._lane = pool, unit_of, lane
        self._seen: set[Item] = set()
        self._waiting: defaultdict[Lane, deque[tuple[int, Item]]] = defaultdict(deque)
        self._in_flight: Counter[Lane] = Counter()
        self._counted: dict[object, Hashable] = {}  # the pool's keys of units in flight
        self._last, self._first = count(), count(-1, -1)
        self._ended: queue.SimpleQueue[tuple[Item, Lane, object, Outcome | Raised] | Callable[[], None]] = queue.SimpleQueue()

    def add(self, items: Iterable[Item]) -> None:
        """Add those items that were never added before, after all that wait."""
        for item in self._new(items):
            self.again(item)

    def add_first(self, items: Iterable[Item]) -> None:
        """Add those items that were never added before, before all that wait."""
        for item in reversed(self._new(items)):
            self._waiting[self._lane(item)].appendleft((next(self._first), item))

    def again(self, item: Item) -> None:
        """Add an item once more, although it has ended."""
        self._waiting[self._lane(item)].append((next(self._last), item))

    def call(self, function: Callable[[], None]) -> None:
        """Call a function between two items, in the thread that iterates. May be called from any thread."""
        self._ended.put(function)

    def __iter__(self) -> Iterator[tuple[Item, Outcome]]:
        with self._pool.on_wait(lambda: self.call(_fill_again)):
            while any(self._waiting.values()) or self._in_flight.total():
                self._fill()
                ended = self._ended.get()
                if callable(ended):
                    ended()
                    continue
                item, lane, run, outcome = ended
                if isinstance(outcome, Raised):
                    raise outcome.error
                self._in_flight[lane] -= 1
                self._counted.pop(run, None)
                self._pool.runs += run is not None
                yield item, outcome

    def _new(self, items: Iterable[Item]) -> list[Item]:
        new = [item for item in dict.fromkeys(items) if item not in self._seen]
        self._seen.update(new)
        return new

    def _fill(self) -> None:
        while (lane := self._next_lane()) is not None:
            _, item = self._waiting[lane].popleft()
            if not self._waiting[lane]:
                del self._waiting[lane]
            self._in_flight[lane] += 1
            self._start(item, lane)

    def _start(self, item: Item, lane: Lane) -> None:
        run = object()

        def end(outcome: Outcome | Raised) -> None:
            self._ended.put((item, lane, run, outcome))

        try:
            self._pool.session.cancel.check()
            key = self._pool.start(self._unit_of(item), end)
        except Stopped as exc:
            self._ended.put((item, lane, None, Failed(exc)))
        else:
            if not lane.is_single:
                self._counted[run] = key

    def _count(self) -> int:
        """Return the number of units in flight that count."""
        waiting = self._pool.waiting
        return sum(key not in waiting for key in self._counted.values()) if waiting else len(self._counted)

    def _next_lane(self) -> Lane | None:
        """Return the lane whose first item is to be started next, or None if none may be."""
        is_full = self._count() >= self._pool.window
        return min((lane for lane in self._waiting if self._has_room(lane, is_full=is_full)), key=self._turn, default=None)

    def _has_room(self, lane: Lane, *, is_full: bool) -> bool:
        if lane.is_single:
            return not self._in_flight[lane]
        return not is_full and self._in_flight[lane] < self._pool.window

    def _turn(self, lane: Lane) -> tuple[bool, int, int]:
        number, _ = self._waiting[lane][0]
        return number >= 0, self._in_flight[lane], number


def _fill_again() -> None:
    """Do nothing: the worklist starts more items, because one that waits does not count."""
