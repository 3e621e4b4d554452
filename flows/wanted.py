"""What the walk of a fetch keeps in mind: images, the content that they want, and the lists of what refers to that."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from prefect import Task

from prefect_dist.mirror.run_report import Failure, ImageReport
from prefect_dist.ocispec import Descriptor, Reference
from prefect_dist.ocispec.children import select_manifests
from prefect_dist.ocispec.errors import NotFound
from prefect_dist.ocispec.platform import Platforms
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.tasks.fetch import Fetched, Listed
from prefect_dist.tasks.mirror import Located, Surveyed
from prefect_dist.transfer.content import Receipt
from prefect_dist.transfer.related import NOTHING, Related

T = TypeVar("T")
# The result that a parent's task returned, that very object: what Prefect draws an arrow from.
Parent = Descriptor | Fetched | Listed | Surveyed | Located


class Scope(Protocol):
    """A flow run of its own for the tasks of some images."""

    def run(self, submit: Callable[[], T], /) -> T:
        """Call `submit`, so that the tasks that it submits belong to that flow run."""


@dataclass(eq=False, slots=True)
class Image:
    """An image on its way. `platforms` are those that are wanted of an index; None is all of them.

    `related` is what is wanted beside it. `root` may be known from the start, with the result that told it, its `origin`, and
    so may `referrers`.

    Its tasks are submitted in its `scope`, None is the current flow run.

    `met` is the content that it is known to want; `open` counts what of that has not ended. `referrers` are the
    manifests about it and about its content, each once, in the order in which they were found. `leaves` are the results that
    nothing follows from.
    """

    reference: Reference
    platforms: Platforms = None
    related: Related = NOTHING
    root: Descriptor | None = None
    origin: Parent | None = None
    started: float = field(default_factory=time.monotonic)
    open: int = 0
    recorded: bool = False
    met: set[object] = field(default_factory=set)
    referrers: dict[Referrer, None] = field(default_factory=dict)
    leaves: list[Fetched] = field(default_factory=list)
    scope: "Scope | None" = None
    fetched: int = 0
    existed: int = 0
    existed_bytes: int = 0
    transferred: int = 0
    failures: list[Failure] = field(default_factory=list)

    def meet(self, descriptor: Descriptor) -> bool:
        """Take note that the image wants some content; whether that is news."""
        known = descriptor.content in self.met
        self.met.add(descriptor.content)
        return not known

    def chosen(self, descriptor: Descriptor, children: Sequence[Descriptor]) -> Sequence[Descriptor]:
        """Which children of its content it wants; none, which is a failure, where it cannot be had for its platforms."""
        try:
            return select_manifests(self.platforms, descriptor, children)
        except NotFound as exc:
            self.fail(str(exc))
            return ()

    def credit(self, descriptor: Descriptor, receipt: Receipt) -> None:
        """Count content that is in the store now."""
        self.fetched += receipt.status == "fetched"
        if receipt.status == "existed":
            self.existed += 1
            self.existed_bytes += descriptor.size
        self.transferred += receipt.transferred

    def fail(self, message: str) -> None:
        """Take note of what is wrong with the image as a whole."""
        self.failures.append(Failure(descriptor=None, message=message))

    def report(self) -> ImageReport:
        """How it came out."""
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


@dataclass(eq=False, slots=True)
class Node:
    """Content that some images want. `sources`: repositories that it was not yet asked of, with the results that named it."""

    descriptor: Descriptor
    images: list[Image] = field(default_factory=list)
    sources: deque[tuple[Reference, Parent, "Scope | None"]] = field(default_factory=deque)
    asked: set[str] = field(default_factory=set)
    fetched: Fetched | None = None
    failure: Failure | None = None


@dataclass(eq=False, slots=True)
class Listing:
    """What refers to a manifest in one repository, wanted by some images; `parent` is the result that gave the manifest."""

    subject: Descriptor
    source: Reference
    related: Related
    parent: Parent
    scope: "Scope | None" = None
    images: list[Image] = field(default_factory=list)
    listed: Listed | None = None
    failure: Failure | None = None


@dataclass(eq=False, slots=True, kw_only=True)
class Inquiry:
    """A question to a registry that is not about one image on its way: a task, its arguments, and the hosts that it talks to.

    One inquiry of each `lane` is in flight at a time. `take` is called with what the task returned, or with its error.
    """

    lane: str
    task: Task[..., Any]
    hosts: frozenset[str]
    argument: object
    options: Mapping[str, Any]
    take: Callable[[object], None]


@dataclass(eq=False, slots=True, kw_only=True)
class Errand:
    """What else is to be done for an image that is whole: a task, whose registries it talks to, and what came before it.

    `result` is what the task answered, or the error that it ended with; None until then. `told` says an answer to people.
    """

    image: Image
    task: Task[..., Any]
    talks_to: tuple[Reference, ...]
    arguments: tuple[object, ...]
    parents: tuple[object, ...]
    told: Callable[[Any], str]
    result: object = None
