"""The walk of a push: over the tree of one image from its leaves to its root, a descriptor after its children."""

from dataclasses import dataclass

from prefect_dist.ocispec import Descriptor, Reference
from prefect_dist.ocispec.children import children_reader, without_foreign
from prefect_dist.ocispec.errors import NotFound
from prefect_dist.storage import Name, presence
from prefect_dist.transfer import units
from prefect_dist.transfer.cancellation import Stopped
from prefect_dist.transfer.confirming import confirm_referrers
from prefect_dist.transfer.content import Receipt
from prefect_dist.transfer.events import ContentFailed, ContentFinished, ContentFound, ImageResolved, ImageResolving, Notify
from prefect_dist.transfer.image_report import Failure
from prefect_dist.transfer.pool import Failed, Outcome, Pool, Unit, Worklist
from prefect_dist.transfer.push_graph import Node, Order


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """What became of an image's distinct descriptors, and the number of task runs that it took.

    `waiting` counts those that were not begun: because of what failed below them, or because the run was ended.
    """

    receipts: tuple[tuple[Descriptor, Receipt], ...]
    failures: tuple[Failure, ...]
    waiting: int
    tasks: int


class Ascent:
    """One run's walk to the repository of `target`, whose tag it sets last; with `referrers`, of what refers to it, too."""

    def __init__(self, pool: Pool, image: Name, target: Reference, notify: Notify, *, referrers: bool) -> None:
        self._pool, self._session, self._image, self._target, self._notify = pool, pool.session, image, target, notify
        self._referrers = image.referrers if referrers else ()
        host, _, repository = image.source.partition("/")
        self._source = repository if host == target.host and repository != target.repository else None
        self._children = without_foreign(children_reader(self._session.store.manifest))
        self._receipts: dict[object, tuple[Descriptor, Receipt]] = {}
        self._failures: list[Failure] = []

    def run(self) -> Delivered:
        """Push all of it. A failure keeps back what is above it, and nothing else.

        If the target resolves to the image already, the image is not visited: a registry has what its manifests name.

        Raises:
            NotFound: something of it is not in the store; nothing was sent.
        """
        image = self._held(self._image.descriptor)
        along = self._held(*(referrer.descriptor for referrer in self._referrers))
        self._notify(ImageResolving(str(self._target)))
        check = Unit(
            work=units.check_target,
            arguments=(self._image.descriptor, self._target),
            hosts=frozenset({self._target.host}),
        )
        asked = self._pool.call(check)
        if isinstance(asked, Failed):
            self._failures.append(Failure(descriptor=None, error=asked.error))
            return self._delivered(waiting=len(image | along))
        standing: units.Standing = asked.value
        self._notify(ImageResolved(str(self._target), self._image.descriptor))
        there = image if standing.stands else {}
        self._receipts = {key: (one, Receipt("existed")) for key, one in there.items()}
        order = Order(self._session.store, [one for key, one in (image | along).items() if key not in there], self._children)
        referrers = order.refer(self._referrers)
        if not standing.stands:
            order.tag(self._image.descriptor, self._target.tag, after=referrers)
        waiting = self._lift(order.nodes, standing)
        self._confirm_referrers()
        return self._delivered(waiting=waiting)

    def _confirm_referrers(self) -> None:
        """Check that the referrers are still listed; what is not is a failure."""
        if self._session.cancel.reason is None:
            self._failures += [Failure(descriptor=None, error=one.error) for one in confirm_referrers(self._pool)]

    def _held(self, *roots: Descriptor) -> dict[object, Descriptor]:
        found = presence.check(self._session.store, *roots, children=self._children)
        if not found.is_complete:  # a registry takes no index whose manifests it lacks, and nobody wants one that has holes
            raise NotFound(f"{self._image.name}: {found.shortage}; fetch it again, for all platforms, to push it")
        return {descriptor.key: descriptor for descriptor in found.present}

    def _lift(self, nodes: list[Node], standing: units.Standing) -> int:
        """Push nodes in their order. Return the number of those that were not begun."""
        for node in nodes:
            self._notify(ContentFound(node.descriptor))

        def unit_of(node: Node) -> Unit:
            return Unit(
                work=units.push,
                arguments=(node.descriptor, self._target, self._source, node.tag),
                hosts=frozenset({self._target.host}),
                parents=tuple(node.below) or (standing,),
            )

        worklist = Worklist(self._pool, unit_of)
        worklist.add(node for node in nodes if not node.missing)
        waiting, unbegun = len(nodes), list[Stopped]()
        for node, outcome in worklist:
            if isinstance(outcome, Failed) and isinstance(outcome.error, Stopped):
                unbegun.append(outcome.error)
                continue
            waiting -= 1
            worklist.add(self._pushed(node, outcome))
        if unbegun:
            self._failures.append(Failure(descriptor=None, error=unbegun[0]))
        return waiting

    def _pushed(self, node: Node, outcome: Outcome) -> list[Node]:
        """Note an outcome. Return the nodes that waited only for this one."""
        if isinstance(outcome, Failed):
            failure = Failure(descriptor=node.descriptor, error=outcome.error)
            self._failures.append(failure)
            self._notify(ContentFailed(node.descriptor, failure.error))
            return []
        receipt: Receipt = outcome.value
        known = self._receipts.get(node.descriptor.key)
        self._receipts[node.descriptor.key] = node.descriptor, receipt if known is None else known[1].with_more(receipt)
        self._notify(ContentFinished(node.descriptor, receipt))
        for parent in node.above:
            parent.missing -= 1
            parent.below.append(receipt)
        return [parent for parent in node.above if not parent.missing]

    def _delivered(self, *, waiting: int) -> Delivered:
        receipts = tuple(self._receipts.values())
        return Delivered(receipts=receipts, failures=tuple(self._failures), waiting=waiting, tasks=self._pool.runs)
