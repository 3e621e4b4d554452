"""The walk over the descriptor graphs of many images, each descriptor a Prefect task that is submitted once its parent ended.

Equal content is one node, however many images name it: it is fetched once, and tried again from the next repository that has
it when one fails. A failure ends nothing but what is below it. An image is reported as soon as nothing of it is under way.

Where referrers are wanted, each manifest of an image also gets a task that lists what refers to it. What that finds is
brought in like an image of its own, and asked about in turn; the image is whole when all of it is there.

How content is brought, and what else is done for an image that is whole, is said by the walk's course.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol
from uuid import UUID

from prefect import Task
from prefect.futures import PrefectFuture
from prefect.utilities.annotations import opaque, quote

from prefect_dist.flows.api import CALL_ERRORS, ApiUnavailable, client
from prefect_dist.flows.limits import Limits
from prefect_dist.flows.runner import Unsubmitted, message, outcome
from prefect_dist.flows.wanted import Errand, Image, Inquiry, Listing, Node, Parent, Scope
from prefect_dist.mirror.progress import Listener
from prefect_dist.mirror.run_report import Failure, ImageReport
from prefect_dist.ocispec import Descriptor, Reference
from prefect_dist.ocispec.errors import DistError, Unsupported
from prefect_dist.ocispec.frontier import Frontier, Lane
from prefect_dist.ocispec.platform import Platforms
from prefect_dist.ocispec.referrers import MAX_REFERRERS, Referrer
from prefect_dist.storage.presence import Presence
from prefect_dist.tasks import fetch as tasks
from prefect_dist.tasks.waiting import WAITING
from prefect_dist.transfer.cancellation import Stopped, Stopping, ending
from prefect_dist.transfer.content import Receipt

Future = PrefectFuture[Any]
Item = Image | Node | Listing | Errand | Inquiry


class Keeper(Protocol):
    """Who knows what the store has. What is raised, of `ocispec.errors`, becomes a failure of the image in question."""

    def look(self, reference: Reference, root: Descriptor, *, platforms: Platforms) -> Presence:
        """What the store has of an image; its name is recorded if that is all."""

    def hold(self, root: Descriptor, *, platforms: Platforms) -> Presence:
        """What the store has of a tree, and keeps."""

    def record(
        self, reference: Reference, root: Descriptor, *, platforms: Platforms, referrers: tuple[Referrer, ...] | None
    ) -> None:
        """Record the name of an image that became whole; `referrers` None: they were not asked for."""


class Course(Protocol):
    """What a walk is for: what is done with content, and with an image that is whole."""

    misses_nothing: bool
    """Whether what is in the store gets a task, too."""

    def bring(self, node: Node, source: Reference) -> tuple[Task[..., Any], Sequence[Reference], Sequence[object]]:
        """The task that brings some content from a repository, whose registries it talks to, and its arguments."""

    def ended(self, image: Image, /) -> None:
        """Nothing more is done for an image."""

    def onward(self, image: Image, /) -> Sequence[Errand]:
        """What else is to be done for an image, whose content and name are in the store; asked again when that is done."""


class Walk:
    """One run's walk. `tasks` counts the task runs that ended."""

    def __init__(
        self, keeper: Keeper, course: Course, *, listener: Listener, stopping: Stopping, retries: int, window: int
    ) -> None:
        self.tasks = 0
        self._keeper, self._course, self._listener, self._stopping = keeper, course, listener, stopping
        self._frontier: Frontier[Item, Future | Unsubmitted] = Frontier(
            self._start_counted, window=window, lane=self._lane, idle=self._count_waiting
        )
        self._in_flight = set[UUID]()
        self._nodes: dict[object, Node] = {}
        self._listings: dict[object, Listing] = {}
        self._known: deque[tuple[Image, tasks.Listed]] = deque()
        self._added: deque[Image] = deque()
        self._is_busy = False
        self._reports: dict[Image, ImageReport] = {}
        self._limits = Limits(retries=retries)

    def add(self, images: Iterable[Image]) -> None:
        """Add images, before `run` or from a function that it calls, also from the end of another image."""
        self._added.extend(images)
        if not self._is_busy:
            self._go_on()

    def ask(self, inquiries: Iterable[Inquiry]) -> None:
        """Add inquiries, before `run` or from a function that it calls."""
        self._frontier.add(inquiries)

    def call(self, function: Callable[[], None]) -> None:
        """Have `run` call a function. May be called from any thread."""
        self._frontier.call(function)

    def run(self, images: Sequence[Image] = ()) -> tuple[ImageReport, ...]:
        """Bring in all images that were added and these, and return the reports of these in their order."""
        self.add(images)
        with WAITING.heard(lambda: self.call(_start_more)):
            for item, future in self._frontier:
                self.tasks += 1
                self._note_end(future)
                self._handle(item, outcome(future))
                self._heed_stop()
        return self.reports(images)

    def reports(self, images: Iterable[Image]) -> tuple[ImageReport, ...]:
        """The reports of images that ended, in their order."""
        return tuple(self._reports[image] for image in images)

    def _handle(self, item: Item, result: object) -> None:
        """Handle the result of an item, and then what that led to."""
        self._is_busy = True
        self._ended(item, result)
        self._go_on()

    def _go_on(self) -> None:
        """Begin images that were added, and follow lists of referrers.

        No result is being handled then, so nodes do not get images while the images that they have are informed. A chain of
        referrers, or of images that end at once, is no chain of calls.
        """
        self._is_busy = True
        while self._known or self._added:
            if self._known:
                self._follow(*self._known.popleft())
            else:
                self._begin(self._added.popleft())
        self._is_busy = False

    def _begin(self, image: Image) -> None:
        if image.root is None:
            self._frontier.add((image,))
        else:
            self._resolved(image, image.root, image.origin or image.root)

    def _ended(self, item: Item, result: object) -> None:
        if isinstance(item, Inquiry):
            item.take(result)
        elif isinstance(item, Errand):
            self._done(item, result)
        elif isinstance(item, Image) and isinstance(result, Descriptor):
            self._resolved(item, result, result)
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
                    self._handle(item, exc)

    def _start_counted(self, item: Item) -> Future | Unsubmitted:
        """Submit the task of an item, and note that it is in flight. Inquiries do not count."""
        future = self._start(item)
        if not isinstance(future, Unsubmitted) and not isinstance(item, Inquiry):
            self._in_flight.add(future.task_run_id)
        return future

    def _start(self, item: Item) -> Future | Unsubmitted:
        """Submit the task of an item, unless the run is to stop. It is to stop if Prefect's API cannot be reached for that."""
        try:
            self._stopping.check()
            return self._submitted(item)
        except (ApiUnavailable, *CALL_ERRORS) as exc:
            told = str(exc) if isinstance(exc, ApiUnavailable) else f"Prefect API {client().api_url}: {exc}"
            self._stopping.set(told)
            return Unsubmitted(Stopped(ending(str(self._stopping.reason))))
        except Stopped as exc:
            return Unsubmitted(exc)

    def _note_end(self, future: Future | Unsubmitted) -> None:
        if not isinstance(future, Unsubmitted):
            self._in_flight.discard(future.task_run_id)

    def _count_waiting(self) -> int:
        """Return the number of tasks in flight, inquiries apart, that wait for as long as a registry wants."""
        return len(self._in_flight & WAITING.ids)

    def _lane(self, item: Item) -> Lane:
        """Return the lane of an item: the registries that its task talks to. Inquiries have lanes of their own."""
        if isinstance(item, Inquiry):
            return Lane(item.lane, is_single=True)
        if isinstance(item, Image):
            talks_to: Sequence[Reference] = (item.reference,)
        elif isinstance(item, Errand):
            talks_to = item.talks_to
        elif isinstance(item, Listing):
            talks_to = (item.source,)
        else:
            _, talks_to, _ = self._course.bring(item, item.sources[0][0])
        return Lane(frozenset(place.host for place in talks_to))

    def _submitted(self, item: Item) -> Future:
        """Submit the task of an item.

        Its arguments are quoted, or Prefect would draw arrows from whichever task returned equal strings in their fields. It is
        made to wait for its parent's result, which is there: that draws the arrow. For a future, Prefect would go through an
        event loop and back, at a tenth of what a small task costs.
        """
        if isinstance(item, Image):
            self._listener.resolving(str(item.reference))
            return self._submit(tasks.resolve, (item.reference,), (item.reference,), (), item.scope)
        if isinstance(item, Inquiry):
            ready = self._limits.ready(item.task, *item.hosts)
            future: Future = ready.submit(quote(item.argument), **item.options)
            return future
        if isinstance(item, Errand):
            return self._submit(item.task, item.talks_to, item.arguments, item.parents, item.image.scope)
        if isinstance(item, Listing):
            return self._submit(
                tasks.referrers, (item.source,), (item.subject, item.source, item.related), (item.parent,), item.scope
            )
        source, parent, scope = item.sources.popleft()
        return self._submit(*self._course.bring(item, source), (parent,), scope)

    def _submit(
        self,
        task: Task[..., Any],
        talks_to: Sequence[Reference],
        arguments: Sequence[object],
        parents: Sequence[object],
        scope: Scope | None,
    ) -> Future:
        ready = self._limits.ready(task, *(reference.host for reference in talks_to))

        def submit() -> Future:
            future: Future = ready.submit(*map(quote, arguments), wait_for=[opaque(parent) for parent in parents])
            return future

        return submit() if scope is None else scope.run(submit)

    def _resolved(self, image: Image, root: Descriptor, parent: Parent) -> None:
        image.root = root
        self._listener.resolved(str(image.reference), root)
        try:
            if image.related or self._course.misses_nothing:
                for descriptor in (root, *(referrer.descriptor for referrer in image.referrers)):
                    self._bring_in(image, descriptor, parent)
            elif (there := self._keeper.look(image.reference, root, platforms=image.platforms)).is_complete:
                for descriptor in there.present:
                    image.credit(descriptor, Receipt("existed"))
                image.recorded = True
            else:
                self._reach(image, (root,), parent)
        except DistError as exc:
            image.fail(str(exc))
        self._conclude(image)

    def _bring_in(self, image: Image, root: Descriptor, parent: Parent) -> None:
        """Have an image wait for a tree. One that is there may need no task, but is asked about like any other."""
        there = self._keeper.hold(root, platforms=image.platforms)
        if self._course.misses_nothing or not there.is_complete:
            self._reach(image, (root,), parent)
            return
        for descriptor in filter(image.meet, there.present):
            image.credit(descriptor, Receipt("existed"))
            self._ask_about(image, descriptor, parent)

    def _fetched(self, node: Node, result: tasks.Fetched) -> None:
        node.fetched = result
        self._listener.ended(node.descriptor, result.receipt)
        receipt = result.receipt
        for image in node.images:
            image.open -= 1
            image.credit(node.descriptor, receipt)
            receipt = Receipt("existed")  # the first image that wanted it paid for it
            self._ask_about(image, node.descriptor, result)
            self._reach(image, self._below(image, node.descriptor, result), result)
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

    def _failed(self, item: Image | Node | Listing, message: str) -> None:
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
                image.credit(descriptor, Receipt("existed"))
                self._ask_about(image, descriptor, node.fetched)
                pending.extend(self._below(image, descriptor, node.fetched))

    def _below(self, image: Image, descriptor: Descriptor, result: tasks.Fetched) -> Sequence[Descriptor]:
        children = image.chosen(descriptor, result.children)
        if not children:
            image.leaves.append(result)
        return children

    def _ask(self, node: Node, image: Image, parent: Parent) -> None:
        """Have a node fetched from the image's repository too, should it not come from another one."""
        if image.reference.locator not in node.asked:
            node.asked.add(image.reference.locator)
            node.sources.append((image.reference, parent, image.scope))
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
        if not image.related or not subject.is_manifest:
            return
        key = image.reference.locator, subject.content, image.related
        listing = self._listings.setdefault(key, Listing(subject, image.reference, image.related, parent, image.scope))
        listing.images.append(image)
        if listing.failure is not None:
            image.failures.append(listing.failure)
            return
        image.open += 1
        if listing.listed is None:
            self._frontier.add((listing,))
        else:
            self._known.append((image, listing.listed))

    def _done(self, errand: Errand, result: object) -> None:
        errand.image.open -= 1
        errand.result = result
        if isinstance(result, BaseException):
            errand.image.fail(message(result))
        else:
            self._listener.did(str(errand.image.reference), errand.told(result))
        self._conclude(errand.image)

    def _conclude(self, image: Image) -> None:
        """Record an image of which nothing is under way, if it is whole; report it when nothing else is to be done for it."""
        if image.open:
            return
        if image.root is not None and not image.failures and not image.recorded:
            self._record(image, image.root)
        if image.recorded and not image.failures and (errands := self._course.onward(image)):
            image.open += len(errands)
            self._frontier.add_first(errands)  # what is whole is not held up by what is not
            return
        self._reports[image] = image.report()
        self._listener.finished(self._reports[image])
        self._course.ended(image)

    def _record(self, image: Image, root: Descriptor) -> None:
        referrers = tuple(image.referrers) if image.related or image.referrers else None
        try:
            self._keeper.record(image.reference, root, platforms=image.platforms, referrers=referrers)
        except DistError as exc:
            image.fail(str(exc))
        else:
            image.recorded = True


def _start_more() -> None:
    """Do nothing: the walk starts more once a task waits."""
