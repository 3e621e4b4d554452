"""The walk over the descriptor graphs of many images. Each descriptor is a unit of work that starts after its parent has ended.

Equal content of several images is one node. The node is fetched once; after a failure, the next repository with the content is
tried. A failure ends only the content below the failed node. An image is reported as soon as no unit of the image is in flight.

If referrers are wanted, each manifest of an image also gets a query for referrers. Referrers are fetched like an image, and
queried in turn. The image is whole when the store has the referrers, too.

The policy of the walk decides how content is fetched, and which further steps follow for a whole image.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from prefect_dist.ocispec import Descriptor, Reference
from prefect_dist.ocispec.errors import DistError, Unsupported
from prefect_dist.ocispec.platform import Platforms
from prefect_dist.ocispec.referrers import MAX_REFERRERS, Referrer
from prefect_dist.storage.presence import Presence
from prefect_dist.transfer import units
from prefect_dist.transfer.cancellation import Stopped
from prefect_dist.transfer.content import Receipt
from prefect_dist.transfer.events import (
    ContentFailed,
    ContentFinished,
    ContentFound,
    ImageEnded,
    ImageResolved,
    ImageResolving,
    Notify,
    StepDone,
)
from prefect_dist.transfer.fetching import Fetched
from prefect_dist.transfer.image_report import Failure, ImageReport
from prefect_dist.transfer.pool import Failed, Lane, Outcome, Pool, Unexpected, Unit, Worklist
from prefect_dist.transfer.units import Answer
from prefect_dist.transfer.walk_state import (
    ContentNode,
    ContentSource,
    FollowUp,
    ImageState,
    ReferrersAnswer,
    ReferrersQuery,
    RegistryQuery,
)

Item = ImageState | ContentNode | ReferrersQuery | FollowUp[Any] | RegistryQuery


class Recorder(Protocol):
    """Checks and records images in the store. An error of `ocispec.errors` becomes a failure of the image."""

    def check_and_name(self, reference: Reference, root: Descriptor, *, platforms: Platforms) -> Presence:
        """Return the present and the missing content of an image. Record the name of a whole image."""

    def keep(self, *roots: Descriptor) -> None:
        """Protect some trees from gc."""

    def pin(self, root: Descriptor, *, platforms: Platforms) -> Presence:
        """Protect a tree from gc. Return the present and the missing content of the tree."""

    def record(
        self, reference: Reference, root: Descriptor, *, platforms: Platforms, referrers: tuple[Referrer, ...] | None
    ) -> None:
        """Record the name of an image that became whole. `referrers` is None if they were not queried."""


class WalkPolicy(Protocol):
    """The purpose of a walk: decisions about content, and about whole images."""

    visits_existing: bool
    """True if content that is already in the store also gets a unit of work."""

    def unit_for(self, node: ContentNode, source: Reference) -> Unit[Fetched]:
        """Return the unit of work that fetches some content from a repository."""

    def follow_ups(self, image: ImageState, /) -> Sequence[FollowUp[Any]]:
        """Return further units for a recorded image. Called again after these units end, until no units are returned."""

    def end(self, image: ImageState, /) -> None:
        """Take an image that has ended."""


class Walk:
    """The walk of one run, on a pool."""

    def __init__(self, recorder: Recorder, policy: WalkPolicy, pool: Pool, notify: Notify) -> None:
        self._recorder, self._policy, self._notify = recorder, policy, notify
        self._session = pool.session
        self._worklist: Worklist[Item, object] = Worklist(pool, self._unit_of, lane=self._lane_of)
        self._nodes: dict[object, ContentNode] = {}
        self._queries: dict[object, ReferrersQuery] = {}
        self._known: deque[tuple[ImageState, ReferrersAnswer]] = deque()
        self._added: deque[ImageState] = deque()
        self._is_busy = False
        self._reports: dict[ImageState, ImageReport] = {}

    def add(self, images: Iterable[ImageState]) -> None:
        """Add images, before `run` or from a function that `run` calls, also from the end of another image."""
        self._added.extend(images)
        if not self._is_busy:
            self._continue()

    def query(self, queries: Iterable[RegistryQuery]) -> None:
        """Add queries, before `run` or from a function that `run` calls."""
        for query in queries:
            self._worklist.again(query)  # each query is new, and `add` would keep its images in memory until the end

    def run(self, images: Sequence[ImageState] = ()) -> tuple[ImageReport, ...]:
        """Walk over the given images and the images that were added. Return the reports of the given images, in their order."""
        self.add(images)
        for item, outcome in self._worklist:
            self._is_busy = True
            self._end(item, outcome)
            self._continue()
        return self.reports(images)

    def reports(self, images: Iterable[ImageState]) -> tuple[ImageReport, ...]:
        """Return the reports of ended images, in their order."""
        return tuple(self._reports[image] for image in images)

    def _continue(self) -> None:
        """Begin added images, and follow lists of referrers.

        The walk calls this method only between outcomes, because a node must not get images while the walk iterates over the
        images of the node. A loop in place of recursion allows long chains of referrers, and of images that end immediately.
        """
        self._is_busy = True
        while self._known or self._added:
            if self._known:
                self._follow(*self._known.popleft())
            else:
                self._begin(self._added.popleft())
        self._is_busy = False

    def _begin(self, image: ImageState) -> None:
        if image.root is None:
            self._worklist.add((image,))
        else:
            self._take_root(image, image.root, image.origin or image.root)

    def _end(self, item: Item, outcome: Outcome[object]) -> None:
        if isinstance(item, RegistryQuery):
            item.take(outcome)
        elif isinstance(item, FollowUp):
            self._end_follow_up(item, outcome)
        elif isinstance(outcome, Failed):
            self._fail(item, outcome.error)
        elif isinstance(item, ImageState) and isinstance(outcome.value, Descriptor):
            self._take_root(item, outcome.value, outcome.value)
        elif isinstance(item, ContentNode) and isinstance(outcome.value, Fetched):
            self._take_fetched(item, outcome.value)
        elif isinstance(item, ReferrersQuery) and isinstance(outcome.value, Answer):
            self._take_listed(item, outcome.value)
        else:
            self._fail(item, Unexpected.of(outcome.value))

    def _lane_of(self, item: Item) -> Lane:
        """Return the lane of an item: the registries that its unit sends requests to. Queries have separate lanes."""
        if isinstance(item, RegistryQuery):
            return Lane(item.lane, is_single=True)
        if isinstance(item, ImageState):
            return Lane(frozenset({item.reference.host}))
        if isinstance(item, FollowUp):
            return Lane(item.unit.hosts)
        if isinstance(item, ReferrersQuery):
            return Lane(self._session.source_hosts(item.source))
        return Lane(self._policy.unit_for(item, item.sources[0].repository).hosts)

    def _unit_of(self, item: Item) -> Unit[object]:
        if isinstance(item, RegistryQuery | FollowUp):
            return item.unit
        if isinstance(item, ImageState):
            self._notify(ImageResolving(str(item.reference)))
            hosts = frozenset({item.reference.host})
            return Unit(work=units.resolve, arguments=(item.reference,), hosts=hosts, scope=item.scope)
        if isinstance(item, ReferrersQuery):
            return Unit(
                work=units.list_referrers,
                arguments=(item.subject, item.source, item.related),
                hosts=self._session.source_hosts(item.source),
                parents=(item.parent,),
                scope=item.scope,
            )
        source = item.sources.popleft()
        return replace(self._policy.unit_for(item, source.repository), parents=(source.parent,), scope=source.scope)

    def _take_root(self, image: ImageState, root: Descriptor, parent: object) -> None:
        image.root = root
        self._notify(ImageResolved(str(image.reference), root))
        try:
            if image.related or self._policy.visits_existing:
                for descriptor in (root, *(referrer.descriptor for referrer in image.referrers)):
                    self._await_tree(image, descriptor, parent)
            elif (there := self._recorder.check_and_name(image.reference, root, platforms=image.platforms)).is_complete:
                for descriptor in there.present:
                    image.credit(descriptor, Receipt("existed"))
                image.recorded = True
            else:
                self._reach(image, (root,), parent)
        except DistError as exc:
            image.fail(exc)
        self._conclude(image)

    def _await_tree(self, image: ImageState, root: Descriptor, parent: object) -> None:
        """Make an image wait for a tree. A tree in the store may need no unit, but its referrers are queried."""
        if self._policy.visits_existing:
            self._recorder.keep(root)
            self._reach(image, (root,), parent)
            return
        there = self._recorder.pin(root, platforms=image.platforms)
        if not there.is_complete:
            self._reach(image, (root,), parent)
            return
        for descriptor in filter(image.meet, there.present):
            image.credit(descriptor, Receipt("existed"))
            self._query_referrers(image, descriptor, parent)

    def _take_fetched(self, node: ContentNode, result: Fetched) -> None:
        node.fetched = result
        self._notify(ContentFinished(node.descriptor, result.receipt))
        receipt = result.receipt
        for image in node.images:
            image.open -= 1
            image.credit(node.descriptor, receipt)
            receipt = Receipt("existed")  # only the first image counts the transfer
            self._query_referrers(image, node.descriptor, result)
            self._reach(image, self._below(image, node.descriptor, result), result)
            self._conclude(image)

    def _take_listed(self, query: ReferrersQuery, result: ReferrersAnswer) -> None:
        query.listed = result
        self._known.extend((image, result) for image in query.images)

    def _follow(self, image: ImageState, listed: ReferrersAnswer) -> None:
        """Make an image wait for the referrers of one manifest."""
        image.open -= 1
        try:
            for referrer in listed.found:
                if len(image.referrers) == MAX_REFERRERS:
                    raise Unsupported(f"expected at most {MAX_REFERRERS} referrers, there are more", subject=image.reference)
                if referrer not in image.referrers:
                    image.referrers[referrer] = None
                    self._await_tree(image, referrer.descriptor, listed)
        except DistError as exc:
            image.fail(exc)
        self._conclude(image)

    def _fail(self, item: ImageState | ContentNode | ReferrersQuery, error: DistError) -> None:
        if isinstance(item, ImageState):
            item.fail(error)
            self._conclude(item)
            return
        if isinstance(item, ContentNode) and item.sources:
            if not isinstance(error, Stopped):
                self._worklist.again(item)
                return
            item.sources.clear()
        descriptor = item.descriptor if isinstance(item, ContentNode) else item.subject
        item.failure = Failure(descriptor=descriptor, error=error)
        self._notify(ContentFailed(descriptor, error))
        images, item.images = item.images, []  # images that come later may have another source
        for image in images:
            image.open -= 1
            image.failures.append(item.failure)
            self._conclude(image)

    def _reach(self, image: ImageState, descriptors: Iterable[Descriptor], parent: object) -> None:
        """Make an image wait for content and the known descendants of the content."""
        pending = deque(descriptors)
        while pending:
            descriptor = pending.popleft()
            if not image.meet(descriptor):
                continue
            node = self._nodes.setdefault(descriptor.key, ContentNode(descriptor))
            node.images.append(image)
            if node.fetched is None:
                self._request(node, image, parent)
            else:
                image.credit(descriptor, Receipt("existed"))
                self._query_referrers(image, descriptor, node.fetched)
                pending.extend(self._below(image, descriptor, node.fetched))

    def _below(self, image: ImageState, descriptor: Descriptor, result: Fetched) -> Sequence[Descriptor]:
        children = image.select_children(descriptor, result.children)
        if not children:
            image.leaves.append(result)
        return children

    def _request(self, node: ContentNode, image: ImageState, parent: object) -> None:
        """Request a node. The repository of the image is a further source, unless the repository was tried."""
        if image.reference.locator not in node.asked:
            node.asked.add(image.reference.locator)
            node.sources.append(ContentSource(image.reference, parent, image.scope))
        if node.failure is not None and not node.sources:
            node.images.remove(image)
            image.failures.append(node.failure)
            return
        image.open += 1
        if node.failure is not None:
            node.failure = None
            self._worklist.again(node)
        elif len(node.images) == 1:
            self._notify(ContentFound(node.descriptor))
            self._worklist.add((node,))

    def _query_referrers(self, image: ImageState, subject: Descriptor, parent: object) -> None:
        """Make an image wait for the list of referrers of one manifest, if the image wants referrers."""
        if not image.related or not subject.is_manifest:
            return
        key = image.reference.locator, subject.key, image.related
        new = ReferrersQuery(subject, image.reference, image.related, parent, image.scope)
        query = self._queries.setdefault(key, new)
        query.images.append(image)
        if query.failure is not None:
            image.failures.append(query.failure)
            return
        image.open += 1
        if query.listed is None:
            self._worklist.add((query,))
        else:
            self._known.append((image, query.listed))

    def _end_follow_up(self, follow_up: FollowUp[Any], outcome: Outcome[Any]) -> None:
        follow_up.image.open -= 1
        follow_up.outcome = outcome
        if isinstance(outcome, Failed):
            follow_up.image.fail(outcome.error)
        else:
            self._notify(StepDone(str(follow_up.image.reference), follow_up.describe(outcome.value)))
        self._conclude(follow_up.image)

    def _conclude(self, image: ImageState) -> None:
        """Record a whole image, and report the image if no follow-up is left. Do nothing while the image is in flight."""
        if image.open:
            return
        if image.root is not None and not image.failures and not image.recorded:
            self._record(image, image.root)
        if image.recorded and not image.failures and (further := self._policy.follow_ups(image)):
            image.open += len(further)
            self._worklist.add_first(further)  # a whole image does not wait for content of other images
            return
        self._reports[image] = image.report()
        self._notify(ImageEnded(self._reports[image]))
        self._policy.end(image)

    def _record(self, image: ImageState, root: Descriptor) -> None:
        referrers = tuple(image.referrers) if image.related or image.referrers else None
        try:
            self._recorder.record(image.reference, root, platforms=image.platforms, referrers=referrers)
        except DistError as exc:
            image.fail(exc)
        else:
            image.recorded = True
