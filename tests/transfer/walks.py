"""Parts of a walk for tests: a policy that fetches content, and an empty store."""
# ruff: noqa: ARG002 - the interfaces are those of a walk

from collections.abc import Callable, Sequence
from typing import Any

from prefect_dist.ocispec import Descriptor, Reference
from prefect_dist.ocispec.platform import Platforms
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.storage.presence import Presence
from prefect_dist.transfer import units
from prefect_dist.transfer.content import Receipt
from prefect_dist.transfer.fetching import Fetched
from prefect_dist.transfer.pool import Ok, Unit
from prefect_dist.transfer.walk_state import ContentNode, FollowUp, ImageState
from tests.transfer.pools import HeldPool


class FetchingPolicy:
    """Policy of a walk that fetches content. The policy calls `when_ended` with each image that ended."""

    visits_existing = True

    def __init__(self, when_ended: Callable[[ImageState], None]) -> None:
        self._when_ended = when_ended

    def unit_for(self, node: ContentNode, source: Reference) -> Unit[Fetched]:
        """Return a unit that fetches content."""
        return Unit(work=units.fetch, arguments=(node.descriptor, source), hosts=frozenset({source.host}))

    def end(self, image: ImageState, /) -> None:
        """Report an image to the test."""
        self._when_ended(image)

    def follow_ups(self, image: ImageState, /) -> Sequence[FollowUp[Any]]:
        """Return nothing."""
        return ()


class EmptyStore:
    """Recorder of an empty store that accepts every name."""

    def check_and_name(self, reference: Reference, root: Descriptor, *, platforms: Platforms) -> Presence:
        """Report that the root is missing."""
        return Presence((), (root,))

    def keep(self, *roots: Descriptor) -> None:
        """Protect nothing."""

    def pin(self, root: Descriptor, *, platforms: Platforms) -> Presence:
        """Report that the root is missing."""
        return Presence((), (root,))

    def record(
        self, reference: Reference, root: Descriptor, *, platforms: Platforms, referrers: tuple[Referrer, ...] | None
    ) -> None:
        """Record nothing."""


def end_fetched(pool: HeldPool, item: object) -> None:
    """End a unit that fetched a blob."""
    pool.finish(item, Ok(Fetched(Receipt("fetched"), ())))
