"""The walk over the descriptor graphs of many images, each descriptor a Prefect task that is submitted once its parent ended.

Equal content is one node, however many images name it: it is fetched once, and tried again from the next repository that has
it when one fails. A failure ends nothing but what is below it. An image is reported as soon as nothing of it is under way.

Where referrers are wanted, each manifest of an image also gets a task that lists what refers to it. What that finds is
brought in like an image of its own, and asked about in turn; the image is whole when all of it is there.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Protocol

from prefect import Task
from prefect.futures import PrefectFuture
from prefect.utilities.annotations import opaque, quote

from flows.limits import tags_of
from flows.progress import Listener
from flows.report import Failure, ImageReport
from flows.runner import message, outcome
from flows.wanted import Image, Listing, Node, Parent
from ocispec import Descriptor, Reference
from ocispec.errors import DistError, Unsupported
from ocispec.frontier import Frontier
from ocispec.referrers import MAX_REFERRERS, Referrer
from storage.completeness import Completeness
from tasks import fetch as tasks
from tasks.session import Platforms
from tasks.stopping import Stopped, Stopping
from tasks.transfer import Receipt

Future = PrefectFuture[Any]
Item = Image | Node | Listing


class Keeper(Protocol):
    """Who knows what the store has. What is raised, of `ocispec.errors`, becomes a failure of the image in question."""

    def look(self, reference: Reference, root: Descriptor, *, platforms: Platforms) -> Completeness:
        """What the store has of an image; its name is recorded if that is all."""

    def hold(self, root: Descriptor, *, platforms: Platforms) -> Completeness:
        """What the store has of a tree, and keeps."""

    def record(
        self, reference: Reference, root: Descriptor, *, platforms: Platforms, referrers: tuple[Referrer, ...] | None
    ) -> None:
        """Record the name of an image that became whole; `referrers` None: they were not asked for."""


class Walk:
    """One run's walk; with `referrers`, over what refers to images, too. `tasks` counts the task runs that ended."""

    def __init__(
        self, keeper: Keeper, *, referrers: bool, listener: Listener, stopping: Stopping, retries: int, window: int
    ) -> None:
        self.tasks = 0
        self._keeper, self._referrers, self._listener, self._stopping = keeper, referrers, listener, stopping
        self._frontier: Frontier[Item, Future] = Frontier(self._start, window=window)
        self._nodes: dict[object, Node] = {}
        self._listings: dict[object, Listing] = {}
        self._known: deque[tuple[Image, tasks.Listed]] = deque()
        self._reports: dict[Image, ImageReport] = {}
        self._task = cache(lambda kind, host: kind.with_options(retries=retries, tags=tags_of(host)))

    def run(self, images: Sequence[Image]) -> tuple[ImageReport, ...]:
        """Bring in all images; the reports in their order."""
        self._frontier.add(images)
        for item, future in self._frontier:
            self.tasks += 1
            self._ended(item, outcome(future))
            while self._known:  # from here, so that a chain of referrers is no chain of calls
                self._follow(*self._known.popleft())
            self._heed_stop()
        return tuple(self._reports[image] for image in images)

    def _ended(self, item: Item, result: object) -> None:
        if isinstance(item, Image) and isinstance(result, Descriptor):
            self._resolved(item, result)
        elif isinstance(item, Node) and isinstance(result, tasks.Fetched):
            self._fetched(item, result)
        elif isinstance(item, Listing) and isinstance(result, tasks.Listed):
            self._listed(item, result)
        else:
            self._failed(item, message(result))

    def _heed_stop(self) -> None:
        """Begin nothing more once the run is to stop; what waited for its turn has failed for that reason."""
        try:
            self._stopping.check()
        except Stopped as exc:
            while dropped := self._frontier.drop():
                for item in dropped:
                    if isinstance(item, Node):
                        item.sources.clear()
                    self._failed(item, str(exc))

    def _start(self, item: Item) -> Future:
        """Submit the task of an item.

        Its arguments are quoted, or Prefect would draw arrows from whichever task returned equal strings in their fields. It is
        made to wait for its parent's result, which is there: that draws the arrow. For a future, Prefect would go through an
        event loop and back, at a tenth of what a small task costs.
        """
        if isinstance(item, Image):
            self._listener.resolving(str(item.reference))
            return self._bound(tasks.resolve, item.reference).submit(quote(item.reference))
        if isinstance(item, Listing):
            arguments = quote(item.subject), quote(item.source)
            return self._bound(tasks.referrers, item.source).submit(*arguments, wait_for=[opaque(item.parent)])
        source, parent = item.sources.popleft()
        return self._bound(tasks.fetch, source).submit(quote(item.descriptor), quote(source), wait_for=[opaque(parent)])

    def _bound(self, task: Task[..., Any], reference: Reference) -> Task[..., Any]:
        bound: Task[..., Any] = self._task(task, reference.host)
        return bound

    def _resolved(self, image: Image, root: Descriptor) -> None:
        image.root = root
        self._listener.resolved(str(image.reference), root)
        try:
            if self._referrers:
                self._bring_in(image, root, root)
            elif (there := self._keeper.look(image.reference, root, platforms=image.platforms)).whole:
                image.existed, image.recorded = len(there.present), True
            else:
                self._reach(image, (root,), root)
        except DistError as exc:
            image.fail(str(exc))
        self._conclude(image)

    def _bring_in(self, image: Image, root: Descriptor, parent: Parent) -> None:
        """Have an image wait for a tree. One that is there needs no task, but is asked about like any other."""
        there = self._keeper.hold(root, platforms=image.platforms)
        if not there.whole:
            self._reach(image, (root,), parent)
            return
        for descriptor in filter(image.meet, there.present):
            image.credit(Receipt("existed"))
            self._ask_about(image, descriptor, parent)

    def _fetched(self, node: Node, result: tasks.Fetched) -> None:
        node.fetched = result
        self._listener.ended(node.descriptor, result.receipt)
        receipt = result.receipt
        for image in node.images:
            image.open -= 1
            image.credit(receipt)
            receipt = Receipt("existed")  # the first image that wanted it paid for it
            self._ask_about(image, node.descriptor, result)
            self._reach(image, image.chosen(node.descriptor, result.children), result)
            self._conclude(image)

    def _listed(self, listing: Listing, result: tasks.Listed) -> None:
        listing.listed = result
        self._known.extend((image, result) for image in listing.images)

    def _follow(self, image: Image, listed: tasks.Listed) -> None:
        """Have an image wait for what refers to one of its manifests."""
        image.open -= 1
        try:
            for referrer in listed.referrers:
                if len(image.referrers) == MAX_REFERRERS:
                    raise Unsupported(f"{image.reference}: expected at most {MAX_REFERRERS} referrers, there are more")
                if referrer not in image.referrers:
                    image.referrers[referrer] = None
                    self._bring_in(image, referrer.descriptor, listed)
        except DistError as exc:
            image.fail(str(exc))
        self._conclude(image)

    def _failed(self, item: Item, message: str) -> None:
        if isinstance(item, Image):
            item.fail(message)
            self._conclude(item)
            return
        if isinstance(item, Node) and item.sources:
            self._frontier.again(item)
            return
        descriptor = item.descriptor if isinstance(item, Node) else item.subject
        item.failure = Failure(descriptor=descriptor, message=message)
        self._listener.failed(descriptor, message)
        for image in item.images:
            image.open -= 1
            image.failures.append(item.failure)
            self._conclude(image)

    def _reach(self, image: Image, descriptors: Iterable[Descriptor], parent: Parent) -> None:
        """Have an image wait for content, and for what is below as far as that is known."""
        pending = deque(descriptors)
        while pending:
            descriptor = pending.popleft()
            if not image.meet(descriptor):
                continue
            node = self._nodes.setdefault(descriptor.content, Node(descriptor))
            node.images.append(image)
            if node.fetched is None:
                self._ask(node, image, parent)
            else:
                image.credit(Receipt("existed"))
                self._ask_about(image, descriptor, node.fetched)
                pending.extend(image.chosen(descriptor, node.fetched.children))

    def _ask(self, node: Node, image: Image, parent: Parent) -> None:
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

    def _ask_about(self, image: Image, subject: Descriptor, parent: Parent) -> None:
        """Where referrers are wanted, have an image wait for the list of those of one of its manifests."""
        if not self._referrers or not subject.is_manifest:
            return
        key = image.reference.locator, subject.content
        listing = self._listings.setdefault(key, Listing(subject, image.reference, parent))
        listing.images.append(image)
        if listing.failure is not None:
            image.failures.append(listing.failure)
            return
        image.open += 1
        if listing.listed is None:
            self._frontier.add((listing,))
        else:
            self._known.append((image, listing.listed))

    def _conclude(self, image: Image) -> None:
        """Report an image of which nothing is under way; record it if it is whole."""
        if image.open:
            return
        if image.root is not None and not image.failures and not image.recorded:
            referrers = tuple(image.referrers) if self._referrers else None
            try:
                self._keeper.record(image.reference, image.root, platforms=image.platforms, referrers=referrers)
            except DistError as exc:
                image.fail(str(exc))
        self._reports[image] = image.report()
        self._listener.finished(self._reports[image])
