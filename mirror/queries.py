"""Queries of planning: a stage is a generator that yields units of work, and receives the outcomes.

So a stage reads like a plain function, although the walk runs the queries next to the units of images.
"""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from prefect_dist.transfer.pool import Outcome, Unit
from prefect_dist.transfer.walk_state import RegistryQuery

T = TypeVar("T")
# A stage of planning, which returns a T.
Stage = Generator[Unit[Any], Outcome[Any], T]


class QueryLoop(Protocol):
    """The loop of queries: the walk of the run."""

    def query(self, queries: Iterable[RegistryQuery], /) -> None:
        """Add queries."""


def ask(unit: Unit[T]) -> Stage[Outcome[T]]:
    """Have the loop run a unit, and return the outcome. A stage uses the result of `yield from` this generator."""
    outcome: Outcome[T] = yield unit
    return outcome


def run_stage(stage: Stage[T], loop: QueryLoop, *, lane: str, done: Callable[[T], None]) -> None:
    """Run the queries of a stage in a lane of the loop. Call `done` with the result, at once for a stage without queries."""
    _RunningStage(stage, loop, lane, done).resume(None)


@dataclass(frozen=True, slots=True)
class _RunningStage(Generic[T]):
    """A stage whose queries run. A function that refers to itself would keep the queries in memory after their end."""

    stage: Stage[T]
    loop: QueryLoop
    lane: str
    done: Callable[[T], None]

    def resume(self, outcome: Outcome[Any] | None) -> None:
        """Give the stage the outcome of its last query, and run the next query. Pass on the result after the last query."""
        try:
            unit = next(self.stage) if outcome is None else self.stage.send(outcome)
        except StopIteration as end:
            result: T = end.value
        else:
            self.loop.query([RegistryQuery(lane=self.lane, unit=unit, take=self.resume)])
            return
        self.done(result)
