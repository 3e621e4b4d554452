"""The state of a walk: images, their content, and further requests for images."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from prefect_dist.ocispec import Descriptor, Reference
from prefect_dist.ocispec.children import select_manifests
from prefect_dist.ocispec.errors import DistError, NotFound
from prefect_dist.ocispec.platform import Platforms
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.transfer.content import Receipt
from prefect_dist.transfer.fetching import Fetched
from prefect_dist.transfer.image_report import Failure, ImageReport
from prefect_dist.transfer.pool import Outcome, Scope, Unit
from prefect_dist.transfer.related import NOTHING, Related
from prefect_dist.transfer.units import Answer

ReferrersAnswer = Answer[tuple[Referrer, ...]]
"""The result of a unit that lists referrers."""

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class ImageState:
    """An image in a walk.

    Attributes:
        platforms: the wanted platforms of an index; None is every platform.
        related: the related manifests to fetch with the image.
        root: the descriptor of the reference, if known; `origin` is the result with the descriptor.
        scope: the flow run of the image's units; None is the current flow run.
        open: the number of unfinished nodes, queries and follow-ups of the image.
        recorded: the store has the image's name.
        met: the keys of the content that the image is known to want.
        referrers: the distinct manifests that refer to the image or to its content, in the order of discovery.
        leaves: the results without children.
    """

    reference: Reference
    platforms: Platforms = None
    related: Related = NOTHING
    root: Descriptor | None = None
    origin: object = None
    started: float = field(default_factory=time.monotonic)
    open: int = 0
    recorded: bool = False
    met: set[object] = field(default_factory=set)
    referrers: dict[Referrer, None] = field(default_factory=dict)
    leaves: list[Fetched] = field(default_factory=list)
    scope: Scope | None = None
    fetched: int = 0
    existed: int = 0
    existed_bytes: int = 0
    transferred: int = 0
    failures: list[Failure] = field(default_factory=list)

    def meet(self, descriptor: Descriptor) -> bool:
        """Note some wanted content of the image. Return False if the content was known."""
        is_known = descriptor.key in self.met
        self.met.add(descriptor.key)
        return not is_known

    def select_children(self, descriptor: Descriptor, children: Sequence[Descriptor]) -> Sequence[Descriptor]:
        """Return the wanted children. The image fails if an index has no manifest for the platforms."""
        try:
            return select_manifests(self.platforms, descriptor, children)
        except NotFound as exc:
            self.fail(exc)
            return ()

    def credit(self, descriptor: Descriptor, receipt: Receipt) -> None:
        """Count content that the store has now."""
        if receipt.status == "fetched":
            self.fetched += 1
            self.transferred += receipt.transferred
        else:
            self.existed += 1
            self.existed_bytes += descriptor.size

    def fail(self, error: DistError) -> None:
        """Add an error of the image as a whole."""
        self.failures.append(Failure(descriptor=None, error=error))

    def report(self) -> ImageReport:
        """Return the result for the image."""
        return ImageReport(
            name=str(self.reference),
            root=self.root,
            fetched=self.fetched,
            existed=self.existed,
            existed_bytes=self.existed_bytes,
            referrers=len(self.referrers),
            failures=tuple(self.failures),
            fetched_bytes=self.transferred,
            seconds=time.monotonic() - self.started,
        )


Admit = Callable[[Sequence[ImageState]], None]
"""Adds images to a walk."""


@dataclass(frozen=True, slots=True)
class ContentSource:
    """A repository that may have some content, the parent result, and the scope of the image."""

    repository: Reference
    parent: object
    scope: Scope | None


@dataclass(eq=False, slots=True)
class ContentNode:
    """Content of some images. `sources` are untried; `asked` are the locators of tried and untried sources."""

    descriptor: Descriptor
    images: list[ImageState] = field(default_factory=list)
    sources: deque[ContentSource] = field(default_factory=deque)
    asked: set[str] = field(default_factory=set)
    fetched: Fetched | None = None
    failure: Failure | None = None


@dataclass(eq=False, slots=True)
class ReferrersQuery:
    """A query of some images for the referrers of a manifest in one repository; `parent` is the result with the manifest."""

    subject: Descriptor
    source: Reference
    related: Related
    parent: object
    scope: Scope | None = None
    images: list[ImageState] = field(default_factory=list)
    listed: ReferrersAnswer | None = None
    failure: Failure | None = None


@dataclass(eq=False, slots=True, kw_only=True)
class RegistryQuery:
    """A query to a registry for no single image in flight.

    One query of each `lane` is in flight at a time. `take` is called with the outcome.
    """

    lane: str
    unit: Unit[Any]
    take: Callable[[Outcome[Any]], None]


@dataclass(eq=False, slots=True, kw_only=True)
class FollowUp(Generic[T]):
    """A further unit of work for a whole image, and the outcome after the end. `describe` returns a result in words."""

    image: ImageState
    unit: Unit[T]
    describe: Callable[[T], str]
    outcome: Outcome[T] | None = None
