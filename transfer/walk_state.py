"""The state of a walk: images, the content that they want, and further requests for them."""

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
    """An image on its way.

    Attributes:
        platforms: the platforms wanted of an index; None is all.
        related: the related manifests that are wanted, too.
        root: the descriptor that the reference resolves to, if it is known already; `origin` is the result that has it.
        scope: the flow run that the image's units belong to; None is the current one.
        open: the number of nodes, queries and follow-ups in flight or waiting whose images contain this one.
        recorded: the store has the image's name.
        met: the content that the image is known to want.
        referrers: the manifests that refer to the image or its content, each once, in the order in which they were found.
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
        """Note that the image wants some content. Return False if that was known."""
        is_known = descriptor.key in self.met
        self.met.add(descriptor.key)
        return not is_known

    def select_children(self, descriptor: Descriptor, children: Sequence[Descriptor]) -> Sequence[Descriptor]:
        """Return the children that the image wants. If an index has none for its platforms, the image fails."""
        try:
            return select_manifests(self.platforms, descriptor, children)
        except NotFound as exc:
            self.fail(exc)
            return ()

    def credit(self, descriptor: Descriptor, receipt: Receipt) -> None:
        """Count content that is in the store now."""
        self.fetched += receipt.status == "fetched"
        if receipt.status == "existed":
            self.existed += 1
            self.existed_bytes += descriptor.size
        self.transferred += receipt.transferred

    def fail(self, error: DistError) -> None:
        """Add an error that concerns the image as a whole."""
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
            transferred=self.transferred,
            seconds=time.monotonic() - self.started,
        )


@dataclass(frozen=True, slots=True)
class ContentSource:
    """A repository that may have some content, the result that named the content there, and the scope of its image."""

    repository: Reference
    parent: object
    scope: Scope | None


@dataclass(eq=False, slots=True)
class ContentNode:
    """Content that some images want. `sources` were not tried yet; `asked` are the locators of all that were or will be."""

    descriptor: Descriptor
    images: list[ImageState] = field(default_factory=list)
    sources: deque[ContentSource] = field(default_factory=deque)
    asked: set[str] = field(default_factory=set)
    fetched: Fetched | None = None
    failure: Failure | None = None


@dataclass(eq=False, slots=True)
class ReferrersQuery:
    """The referrers of a manifest in one repository, which some images want; `parent` is the result that gave the manifest."""

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
    """A query to a registry that is not about one image on its way.

    One query of each `lane` is in flight at a time. `take` is called with the outcome.
    """

    lane: str
    unit: Unit[Any]
    take: Callable[[Outcome[Any]], None]


@dataclass(eq=False, slots=True, kw_only=True)
class FollowUp(Generic[T]):
    """A further unit of work for an image that is whole, and its outcome once it ended. `describe` puts a result in words."""

    image: ImageState
    unit: Unit[T]
    describe: Callable[[T], str]
    outcome: Outcome[T] | None = None
