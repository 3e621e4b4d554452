"""The walk over the descriptor graphs of many images, each descriptor a Prefect task that is submitted once its parent ended.

Equal content is one node, however many images name it: it is fetched once, and tried again from the next repository that has
it when one fails. A failure ends nothing but what is below it. An image is reported as soon as nothing of it is under way.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from prefect import Task
from prefect.futures import PrefectFuture
from prefect.utilities.annotations import opaque, quote

from flows.limits import tags_of
from flows.progress import Listener
from flows.report import Failure, ImageReport
from flows.runner import message, outcome
from ocispec import Descriptor, Reference
from ocispec.errors import DistError
from ocispec.frontier import Frontier
from storage.completeness import Completeness
from tasks import fetch as tasks
from tasks.stopping import Stopped, Stopping
from tasks.transfer import Receipt

Future = PrefectFuture[Any]
# The result that a parent's task returned, that very object: what Prefect draws an arrow from.
Parent = Descriptor | tasks.Fetched


@dataclass(eq=False, slots=True)
class _Image:
    """An image on its way. `open` counts its nodes that have not ended."""

    reference: Reference
    started: float
    root: Descriptor | None = None
    open: int = 0
    recorded: bool = False
    fetched: int = 0
    existed: int = 0
    transferred: int = 0
    failures: list[Failure] = field(default_factory=list)

    def credit(self, receipt: Receipt) -> None:
        """Count content that is in the store now."""
        self.fetched += receipt.status == "fetched"
        self.existed += receipt.status == "existed"
        self.transferred += receipt.transferred

    def report(self) -> ImageReport:
        return ImageReport(
            name=str(self.reference),
            root=self.root,
            fetched=self.fetched,
            existed=self.existed,
            failures=tuple(self.failures),
            transferred=self.transferred,
            seconds=time.monotonic() - self.started,
        )


@dataclass(eq=False, slots=True)
class _Node:
    """Content that some images want. `sources`: repositories that it was not yet asked of, with the results that named it."""

    descriptor: Descriptor
    images: list[_Image] = field(default_factory=list)
    sources: deque[tuple[Reference, Parent]] = field(default_factory=deque)
    asked: set[str] = field(default_factory=set)
    fetched: tasks.Fetched | None = None
    failure: Failure | None = None


class Walk:
    """One run's walk.

    `present` says what the store has of an image, and records it if that is all; `complete` records one that became whole.

    Both may raise errors of `ocispec.errors`, which become failures of that image. `tasks` counts the task runs that ended.
    """

    def __init__(
        self,
        *,
        present: Callable[[Reference, Descriptor], Completeness],
        complete: Callable[[Reference, Descriptor], None],
        listener: Listener,
        stopping: Stopping,
        retries: int,
        window: int,
    ) -> None:
        self.tasks = 0
        self._present, self._complete, self._listener, self._stopping = present, complete, listener, stopping
        self._frontier: Frontier[_Image | _Node, Future] = Frontier(self._start, window=window)
        self._nodes: dict[object, _Node] = {}
        self._reports: dict[_Image, ImageReport] = {}
        self._task = cache(lambda kind, host: kind.with_options(retries=retries, tags=tags_of(host)))

    def run(self, references: Iterable[Reference]) -> tuple[ImageReport, ...]:
        """Bring in all images; the reports in the order of the references."""
        images = [_Image(reference, time.monotonic()) for reference in references]
        self._frontier.add(images)
        for item, future in self._frontier:
            self.tasks += 1
            self._ended(item, outcome(future))
            self._heed_stop()
        return tuple(self._reports[image] for image in images)

    def _ended(self, item: _Image | _Node, result: object) -> None:
        if isinstance(item, _Image):
            self._resolved(item, result)
        elif isinstance(result, tasks.Fetched):
            self._fetched(item, result)
        else:
            self._failed(item, message(result))

    def _heed_stop(self) -> None:
        """Begin nothing more once the run is to stop; what waited for its turn has failed for that reason."""
        try:
            self._stopping.check()
        except Stopped as exc:
            while dropped := self._frontier.drop():
                for item in dropped:
                    if isinstance(item, _Image):
                        self._unresolved(item, str(exc))
                    else:
                        item.sources.clear()
                        self._failed(item, str(exc))

    def _start(self, item: _Image | _Node) -> Future:
        """Submit the task of an item.

        Its arguments are quoted, or Prefect would draw arrows from whichever task returned equal strings in their fields. It is
        made to wait for its parent's result, which is there: that draws the arrow. For a future, Prefect would go through an
        event loop and back, at a tenth of what a small task costs.
        """
        if isinstance(item, _Image):
            self._listener.resolving(str(item.reference))
            return self._bound(tasks.resolve, item.reference).submit(quote(item.reference))
        source, parent = item.sources.popleft()
        return self._bound(tasks.fetch, source).submit(quote(item.descriptor), quote(source), wait_for=[opaque(parent)])

    def _bound(self, task: Task[..., Any], reference: Reference) -> Task[..., Any]:
        bound: Task[..., Any] = self._task(task, reference.host)
        return bound

    def _resolved(self, image: _Image, result: object) -> None:
        if not isinstance(result, Descriptor):
            self._unresolved(image, message(result))
            return
        image.root = result
        self._listener.resolved(str(image.reference), result)
        try:
            there = self._present(image.reference, result)
        except DistError as exc:
            image.failures.append(Failure(descriptor=None, message=str(exc)))
        else:
            if there.whole:
                image.existed, image.recorded = len(there.present), True
            else:
                self._reach(image, (result,), result)
        self._conclude(image)

    def _unresolved(self, image: _Image, message: str) -> None:
        image.failures.append(Failure(descriptor=None, message=message))
        self._conclude(image)

    def _fetched(self, node: _Node, result: tasks.Fetched) -> None:
        node.fetched = result
        self._listener.ended(node.descriptor, result.receipt)
        receipt = result.receipt
        for image in node.images:
            image.open -= 1
            image.credit(receipt)
            receipt = Receipt("existed")  # the first image that wanted it paid for it
            self._reach(image, result.children, result)
            self._conclude(image)

    def _failed(self, node: _Node, message: str) -> None:
        if node.sources:
            self._frontier.again(node)
            return
        node.failure = Failure(descriptor=node.descriptor, message=message)
        self._listener.failed(node.descriptor, message)
        for image in node.images:
            image.open -= 1
            image.failures.append(node.failure)
            self._conclude(image)

    def _reach(self, image: _Image, descriptors: Iterable[Descriptor], parent: Parent) -> None:
        """Have an image wait for content, and for what is below as far as that is known."""
        pending = deque(descriptors)
        while pending:
            descriptor = pending.popleft()
            node = self._nodes.setdefault(descriptor.content, _Node(descriptor))
            if image in node.images:
                continue
            node.images.append(image)
            if node.fetched is not None:
                image.credit(Receipt("existed"))
                pending.extend(node.fetched.children)
            else:
                self._ask(node, image, parent)

    def _ask(self, node: _Node, image: _Image, parent: Parent) -> None:
        """Have a node fetched from the image's repository too, should it not come from another one."""
        if image.reference.locator not in node.asked:
            node.asked.add(image.reference.locator)
            node.sources.append((image.reference, parent))
        if node.failure is not None and not node.sources:
            image.failures.append(node.failure)
            return
        image.open += 1
        if node.failure is not None:
            node.failure = None
            self._frontier.again(node)
        elif len(node.images) == 1:
            self._listener.waiting(node.descriptor)
            self._frontier.add((node,))

    def _conclude(self, image: _Image) -> None:
        """Report an image of which nothing is under way; record it if it is whole."""
        if image.open:
            return
        if image.root is not None and not image.failures and not image.recorded:
            try:
                self._complete(image.reference, image.root)
            except DistError as exc:
                image.failures.append(Failure(descriptor=None, message=str(exc)))
        self._reports[image] = image.report()
        self._listener.finished(self._reports[image])
