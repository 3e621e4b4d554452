"""Walks whose units of work end when the test says so, and a store that has nothing."""
# ruff: noqa: ARG002 - the interfaces are those of a walk

from collections.abc import Callable, Hashable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from prefect_dist.ocispec import Descriptor, Reference
from prefect_dist.ocispec.platform import Platforms
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.storage.completeness import Completeness
from prefect_dist.transfer import units
from prefect_dist.transfer.cancellation import Stopping
from prefect_dist.transfer.content import Receipt
from prefect_dist.transfer.pool import Ok, Outcome, Pool, Unit
from prefect_dist.transfer.units import Fetched
from prefect_dist.transfer.walk_state import ContentNode, FollowUp, ImageState

if TYPE_CHECKING:
    from prefect_dist.transfer.session import Session

End = Callable[[Outcome], None]


class HeldPool(Pool):
    """Passes each unit to the test, which ends it."""

    def __init__(self, stopping: Stopping, run: Callable[[Unit, End], None]) -> None:
        super().__init__(cast("Session", SimpleNamespace(stopping=stopping)), window=2)
        self._run = run

    @property
    def waiting(self) -> AbstractSet[Hashable]:
        """No unit waits."""
        return frozenset()

    @contextmanager
    def on_wait(self, listener: Callable[[], None]) -> Iterator[None]:
        """No unit waits."""
        yield

    def start(self, unit: Unit, end: End) -> Hashable:
        """Pass a unit to the test."""
        self._run(unit, end)
        return object()


class FetchingPolicy:
    """The policy of a walk that fetches content. `when_ended` is called with each image that ended."""

    visits_existing = True

    def __init__(self, when_ended: Callable[[ImageState], None]) -> None:
        self._when_ended = when_ended

    def unit_for(self, node: ContentNode, source: Reference) -> Unit:
        """Return a unit that fetches content."""
        return Unit(work=units.fetch, arguments=(node.descriptor, source), hosts=frozenset({source.host}))

    def end(self, image: ImageState, /) -> None:
        """Report an image to the test."""
        self._when_ended(image)

    def follow_ups(self, image: ImageState, /) -> Sequence[FollowUp]:
        """Return nothing."""
        return ()


class EmptyStore:
    """The recorder of a store that has nothing and takes every name."""

    def look(self, reference: Reference, root: Descriptor, *, platforms: Platforms) -> Completeness:
        """Return that nothing is there."""
        return Completeness((), (root,))

    def hold(self, root: Descriptor, *, platforms: Platforms) -> Completeness:
        """Return that nothing is there."""
        return Completeness((), (root,))

    def record(
        self, reference: Reference, root: Descriptor, *, platforms: Platforms, referrers: tuple[Referrer, ...] | None
    ) -> None:
        """Record nothing."""


def end_fetched(_unit: Unit, end: End) -> None:
    """End a unit that fetched a blob."""
    end(Ok(Fetched(Receipt("fetched"), ())))
