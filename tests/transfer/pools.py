"""A pool whose units the test ends."""

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
    """Passes each unit that starts to `run`, which ends it now or later.

    `started` has the first arguments of all units that were started, `open` the ends of those in flight by the same, and `most`
    is the largest number in flight at a time. `idle` are keys of units that wait for a registry: their first arguments.
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
        """The units that the test made idle."""
        return self.idle

    @contextmanager
    def on_wait(self, listener: Callable[[], None]) -> Iterator[None]:
        """Keep the listener for `wait`."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def wait(self, *items: Hashable) -> None:
        """Have units wait for a registry."""
        self.idle |= {*items}
        for listener in self._listeners:
            listener()

    def start(self, unit: Unit[Any], end: End) -> Hashable:
        """Pass a unit to the test."""
        item = unit.arguments[0]
        self.started.append(item)
        self.open[item] = end
        self.most = max(self.most, len(self.open))
        self._run(self, item)
        return item

    def finish(self, item: object, outcome: Outcome[Any] | Raised = Ok(None)) -> None:  # noqa: B008 - frozen
        """End a unit in flight."""
        self.open.pop(item)(outcome)


def end_at_once(pool: HeldPool, item: object) -> None:
    """End a unit with its first argument as its result."""
    pool.finish(item, Ok(item))
