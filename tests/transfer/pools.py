"""A pool in which the test ends each unit."""

from collections.abc import Callable, Hashable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from prefect_dist.transfer.cancellation import CancelToken
from prefect_dist.transfer.pool import Ok, Outcome, Pool, Raised, Unit

if TYPE_CHECKING:
    from prefect_dist.transfer.session import Session

End = Callable[[Outcome[Any] | Raised], None]


class HeldPool(Pool):
    """Calls `run` with each unit that starts. `run` ends the unit, immediately or later.

    The first argument of a unit identifies the unit. `started` lists the started units, `open` has the callback of each unit in
    flight, and `most` is the highest number of units in flight. `idle` has the units that wait for a registry.
    """

    def __init__(self, run: Callable[["HeldPool", Any], None], *, window: int = 2, cancel: CancelToken | None = None) -> None:
        super().__init__(cast("Session", SimpleNamespace(cancel=cancel or CancelToken())), window=window)
        self.started: list[Any] = []
        self.open: dict[Any, End] = {}
        self.idle: set[Hashable] = set()
        self.most = 0
        self._run = run
        self._listeners: list[Callable[[], None]] = []

    @property
    def waiting(self) -> AbstractSet[Hashable]:
        """The units that wait for a registry because of `set_idle`."""
        return self.idle

    @contextmanager
    def on_wait(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call the listener at each `set_idle` during the block."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def set_idle(self, *items: Hashable) -> None:
        """Make units wait for a registry."""
        self.idle |= {*items}
        for listener in self._listeners:
            listener()

    def start(self, unit: Unit[Any], end: End) -> Hashable:
        """Start a unit: call `run` with the unit."""
        item = unit.arguments[0]
        self.started.append(item)
        self.open[item] = end
        self.most = max(self.most, len(self.open))
        self._run(self, item)
        return item

    def finish(self, item: object, outcome: Outcome[Any] | Raised = Ok(None)) -> None:  # noqa: B008 - frozen
        """End a unit in flight."""
        self.open.pop(item)(outcome)


def end_immediately(pool: HeldPool, item: object) -> None:
    """End a unit. The result is the first argument of the unit."""
    pool.finish(item, Ok(item))
