"""Pools run the units of work of a run, and yield the outcome of each unit.

A `Pool` runs a unit in a thread (`transfer.threads`) or as a task run (`flows.pool`). A `Worklist` chooses the next unit. So
the same walk works with both pools.
"""

import queue
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from prefect_dist.ocispec.errors import DistError
from prefect_dist.transfer.cancellation import Stopped
from prefect_dist.transfer.session import Session

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Item = TypeVar("Item", bound=Hashable)


def split_batches(items: Sequence[T], size: int) -> Iterator[tuple[T, ...]]:
    """Yield the items in batches of at most `size`, each for a unit of work."""
    return (tuple(items[start : start + size]) for start in range(0, len(items), size))


@dataclass(frozen=True, slots=True)
class Ok(Generic[T_co]):
    """The result of a unit of work."""

    value: T_co


@dataclass(frozen=True, slots=True)
class Failed:
    """The error of a unit of work that failed or did not start.

    The error and the causes lose their tracebacks: a traceback would keep the locals of the frames as long as the report.
    """

    error: DistError

    def __post_init__(self) -> None:
        pending: list[BaseException | None] = [self.error]
        while pending:
            if (error := pending.pop()) is not None and error.__traceback__ is not None:
                error.__traceback__ = None
                pending += (error.__cause__, error.__context__)


Outcome = Ok[T] | Failed
Grain = Literal["descriptor", "image"]
"""The work of one task run: the content of a descriptor, or an image with all its content."""


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception that ends the loop over the outcomes. For example, Prefect suspends a flow run by an exception."""

    error: BaseException


class Unexpected(DistError):
    """An error that no unit of work should end with."""

    @classmethod
    def of(cls, error: object) -> "Unexpected":
        """Return the error for an exception, or for a result, of any kind."""
        try:
            text = f": {error}"
        except Exception:  # noqa: BLE001 - an exception whose text cannot be made is still an outcome
            text = ""
        return cls(" ".join(f"unexpected {type(error).__name__}{text}; this is a bug in dist: report it".split()))


class Scope(Protocol):
    """A child flow run for the units of some images."""

    def run(self, submit: Callable[[], T], /) -> T:
        """Call `submit` such that the submitted task run belongs to the child flow run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit(Generic[T_co]):
    """A unit of work with a result of type `T_co`.

    Attributes:
        work: a function of `transfer.units`, called with the session of the run, `arguments` and `options`.
        hosts: the registries that the unit sends requests to.
        parents: the results that the unit follows from. Prefect draws an arrow from each result object.
        scope: the flow run of the unit; None for the current flow run.
    """

    work: Callable[..., T_co]
    arguments: tuple[object, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    hosts: frozenset[str] = frozenset()
    parents: tuple[object, ...] = ()
    scope: Scope | None = None


class Lane(NamedTuple):
    """A kind of items, such as the items for a server. A lane with `is_single` has at most one item in flight."""

    name: Hashable
    is_single: bool = False


_ONLY_LANE = Lane(None)


class WaitingUnits:
    """The keys of the units that only wait for the time in a registry's Retry-After. Thread-safe."""

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


class Pool(ABC):
    """Runs the units of work of a run, with at most `window` in flight.

    `runs` counts the completed units, without retries.
    """

    def __init__(self, session: Session, *, window: int) -> None:
        self.session = session
        self.window = window
        self.runs = 0

    @property
    @abstractmethod
    def waiting(self) -> AbstractSet[Hashable]:
        """Return the keys of units in flight that only wait for a Retry-After."""

    @abstractmethod
    def on_wait(self, listener: Callable[[], None]) -> AbstractContextManager[None]:
        """Call `listener`, from any thread, for each unit that starts to wait during the block."""

    def counts(self, _unit: Unit[Any], /) -> bool:
        """Return True if a unit counts as a run."""
        return True

    def release_held(self, _in_flight: Iterable[Hashable], /) -> None:
        """Start a unit that the pool holds back, if the pool holds back every unit of the given keys.

        A worklist calls this method each time before it waits.
        """
        return

    @abstractmethod
    def start(self, unit: Unit[T], end: Callable[[Outcome[T] | Raised], None]) -> Hashable:
        """Start a unit of work. Return its key. The pool calls `end` once with the outcome, from any thread.

        Raises:
            Stopped: the run starts no more units.
        """

    def run(self, items: Iterable[Item], unit_of: Callable[[Item], Unit[T]]) -> Iterator[tuple[Item, Outcome[T]]]:
        """Run the unit of each item. Yield each item with the outcome, in the order of ending."""
        worklist = Worklist(self, unit_of)
        worklist.add(items)
        return iter(worklist)

    def call(self, unit: Unit[T]) -> Outcome[T]:
        """Run a unit of work, and return the outcome."""
        ((_, outcome),) = self.run([0], lambda _: unit)
        return outcome


@dataclass(eq=False, slots=True)
class _LaneState(Generic[Item]):
    """The items of a lane: the numbered items that wait to start, and the runs in flight."""

    lane: Lane
    queued: deque[tuple[int, Item]] = field(default_factory=deque)
    in_flight: set["_Run[Item]"] = field(default_factory=set)

    def count_active(self, waiting: AbstractSet[Hashable]) -> int:
        """Return the number of runs that use the window of the pool."""
        if self.lane.is_single:
            return 0
        return sum(run.key not in waiting for run in self.in_flight) if waiting else len(self.in_flight)

    def has_room(self, window: int, *, is_full: bool) -> bool:
        """Return whether the next item of the lane may start. `is_full`: the window of the pool is used up."""
        if self.lane.is_single:
            return not self.in_flight
        return not is_full and len(self.in_flight) < window

    @property
    def turn(self) -> tuple[bool, int, int]:
        """Return the sort key of the lane: the lane with the least key starts the next item."""
        number, _ = self.queued[0]
        return number >= 0, len(self.in_flight), number


@dataclass(eq=False, slots=True)
class _Run(Generic[Item]):
    """An item in flight. `key` is the pool's key of the unit, if the unit was started."""

    item: Item
    state: _LaneState[Item]
    is_counted: bool = False
    key: Hashable = None


class Worklist(Generic[Item, T]):
    """Items for a pool: each runs once, and at most `pool.window` are in flight.

    `lane` returns the lane of an item. Lanes with items from `add_first` come first. Next comes the lane with the fewest items
    in flight, and among lanes with equally many, the lane with the oldest item. So items that wait for one server leave room
    for items of other servers.

    Units that only wait for a Retry-After do not count towards `pool.window`. Even so, at most `pool.window` items of one lane
    are in flight. Items of lanes with `is_single` never count.

    Iterating yields every item with its outcome, in the order of ending. The loop may add items:

        for item, outcome in worklist:
            worklist.add(found(outcome))

    After the run is cancelled, items that were not started end with `Stopped`.

    Not thread-safe.
    """

    def __init__(
        self, pool: Pool, unit_of: Callable[[Item], Unit[T]], *, lane: Callable[[Item], Lane] = lambda _item: _ONLY_LANE
    ) -> None:
        self._pool, self._unit_of, self._lane_of = pool, unit_of, lane
        self._seen: set[Item] = set()
        self._lanes: dict[Lane, _LaneState[Item]] = {}
        self._last, self._first = count(), count(-1, -1)
        # None: a unit in flight starts to wait, and so makes room for more items.
        self._events: queue.SimpleQueue[tuple[_Run[Item], Outcome[T] | Raised] | None] = queue.SimpleQueue()

    def add(self, items: Iterable[Item]) -> None:
        """Add new items after the queued items."""
        for item in self._filter_new(items):
            self.again(item)

    def add_first(self, items: Iterable[Item]) -> None:
        """Add new items before the queued items."""
        for item in reversed(self._filter_new(items)):
            self._state_for(item).queued.appendleft((next(self._first), item))

    def again(self, item: Item) -> None:
        """Add an item after the queued items, even if the item has already run."""
        self._state_for(item).queued.append((next(self._last), item))

    def __iter__(self) -> Iterator[tuple[Item, Outcome[T]]]:
        with self._pool.on_wait(lambda: self._events.put(None)):
            while self._lanes:
                self._fill()
                self._pool.release_held(run.key for state in self._lanes.values() for run in state.in_flight)
                event = self._events.get()
                if event is None:
                    continue
                run, outcome = event
                if isinstance(outcome, Raised):
                    raise outcome.error
                self._end(run)
                yield run.item, outcome

    def _filter_new(self, items: Iterable[Item]) -> list[Item]:
        new = [item for item in dict.fromkeys(items) if item not in self._seen]
        self._seen.update(new)
        return new

    def _state_for(self, item: Item) -> _LaneState[Item]:
        lane = self._lane_of(item)
        return self._lanes.setdefault(lane, _LaneState(lane))

    def _end(self, run: _Run[Item]) -> None:
        self._pool.runs += run.is_counted
        run.state.in_flight.remove(run)
        if not run.state.queued and not run.state.in_flight:
            del self._lanes[run.state.lane]

    def _fill(self) -> None:
        while (state := self._choose_lane()) is not None:
            _, item = state.queued.popleft()
            self._start(_Run(item, state))

    def _start(self, run: _Run[Item]) -> None:
        run.state.in_flight.add(run)
        try:
            self._pool.session.cancel.check()
            unit = self._unit_of(run.item)
            run.key = self._pool.start(unit, lambda outcome: self._events.put((run, outcome)))
        except Stopped as exc:
            self._events.put((run, Failed(exc)))
        else:
            run.is_counted = self._pool.counts(unit)

    def _choose_lane(self) -> _LaneState[Item] | None:
        """Return the lane that starts the next item, None if no lane may start an item."""
        waiting, states, window = self._pool.waiting, self._lanes.values(), self._pool.window
        is_full = sum(state.count_active(waiting) for state in states) >= window
        free = (state for state in states if state.queued and state.has_room(window, is_full=is_full))
        return min(free, key=lambda state: state.turn, default=None)
