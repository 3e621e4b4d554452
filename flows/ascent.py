"""The walk of a push: over the tree of one image from its leaves to its root, a descriptor after its children."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from prefect.utilities.annotations import opaque, quote

from prefect_dist.flows.confirming import Confirming
from prefect_dist.flows.limits import Limits
from prefect_dist.flows.runner import message, outcome
from prefect_dist.mirror.progress import Listener
from prefect_dist.mirror.run_report import Failure
from prefect_dist.ocispec import Descriptor, Reference
from prefect_dist.ocispec.children import children_reader, without_foreign
from prefect_dist.ocispec.errors import NotFound
from prefect_dist.ocispec.frontier import Frontier
from prefect_dist.storage import Name, presence
from prefect_dist.tasks import push as tasks
from prefect_dist.transfer.cancellation import Stopped
from prefect_dist.transfer.content import Receipt
from prefect_dist.transfer.push_graph import Node, Order
from prefect_dist.transfer.session import Session

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture


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

    def __init__(
        self, session: Session, image: Name, target: Reference, listener: Listener, *, referrers: bool, retries: int
    ) -> None:
        self._session, self._image, self._target, self._listener = session, image, target, listener
        self._referrers = image.referrers if referrers else ()
        host, _, repository = image.source.partition("/")
        self._source = repository if host == target.host and repository != target.repository else None
        self._children = without_foreign(children_reader(session.store.manifest))
        self._limits = limits = Limits(retries=retries)
        self._resolve, self._push = limits.ready(tasks.resolve, target.host), limits.ready(tasks.push, target.host)
        self._receipts: dict[object, tuple[Descriptor, Receipt]] = {}
        self._failures: list[Failure] = []
        self._tasks = 0

    def run(self, *, window: int) -> Delivered:
        """Push all of it, at most `window` descriptors at once. A failure keeps back what is above it, and nothing else.

        Where the target stands for the image already, that is not looked through: a registry has what its manifests name.

        Raises:
            NotFound: something of it is not in the store; nothing was sent.
        """
        image = self._held(self._image.descriptor)
        along = self._held(*(referrer.descriptor for referrer in self._referrers))
        self._listener.resolving(str(self._target))
        asked = self._ended(self._resolve.submit(quote(self._image.descriptor), quote(self._target)))
        if not isinstance(asked, tasks.Standing):
            self._failures.append(Failure(descriptor=None, message=message(asked)))
            return self._delivered(waiting=len(image | along))
        self._listener.resolved(str(self._target), self._image.descriptor)
        there = image if asked.stands else {}
        self._receipts = {key: (one, Receipt("existed")) for key, one in there.items()}
        order = Order(self._session.store, [one for key, one in (image | along).items() if key not in there], self._children)
        referrers = order.refer(self._referrers)
        if not asked.stands:
            order.tag(self._image.descriptor, self._target.tag, after=referrers)
        waiting = self._lift(order.nodes, asked, window=window)
        self._confirm_referrers(window=window)
        return self._delivered(waiting=waiting)

    def _confirm_referrers(self, *, window: int) -> None:
        """Check that the referrers are still listed; what is not is a failure."""
        if self._session.stopping.reason is None:
            confirming = Confirming(self._session, self._limits, workers=window)
            self._failures += [Failure(descriptor=None, message=one.error) for one in confirming.run()]
            self._tasks += confirming.tasks

    def _held(self, *roots: Descriptor) -> dict[object, Descriptor]:
        found = presence.check(self._session.store, *roots, children=self._children)
        if not found.is_complete:  # a registry takes no index whose manifests it lacks, and nobody wants one that has holes
            raise NotFound(f"{self._image.name}: {found.shortage}; fetch it again, for all platforms, to push it")
        return {descriptor.content: descriptor for descriptor in found.present}

    def _lift(self, nodes: list[Node], asked: tasks.Standing, *, window: int) -> int:
        """Push what has to be there, in its order; the number of those that were not begun."""
        for node in nodes:
            self._listener.waiting(node.descriptor)
        frontier: Frontier[Node, PrefectFuture[Any]] = Frontier(partial(self._start, asked), window=window)
        frontier.add(node for node in nodes if not node.missing)
        waiting = len(nodes)
        for node, future in frontier:
            waiting -= 1
            frontier.add(self._pushed(node, self._ended(future)))
            self._heed_stop(frontier)
        return waiting

    def _start(self, asked: tasks.Standing, node: Node) -> "PrefectFuture[Any]":
        """Submit a task; quoted and opaque for the reasons that `flows.walk` gives."""
        arguments = map(quote, (node.descriptor, self._target, self._source, node.tag))
        parents: list[object] = [*node.below] or [asked]
        future: PrefectFuture[Any] = self._push.submit(*arguments, wait_for=[opaque(parent) for parent in parents])
        return future

    def _ended(self, future: "PrefectFuture[Any]") -> object:
        self._tasks += 1
        return outcome(future)

    def _pushed(self, node: Node, result: object) -> list[Node]:
        """Take note; those that waited for nothing but this."""
        if not isinstance(result, Receipt):
            self._failures.append(Failure(descriptor=node.descriptor, message=message(result)))
            self._listener.failed(node.descriptor, self._failures[-1].message)
            return []
        known = self._receipts.get(node.descriptor.content)
        self._receipts[node.descriptor.content] = node.descriptor, result if known is None else known[1].with_more(result)
        self._listener.ended(node.descriptor, result)
        for parent in node.above:
            parent.missing -= 1
            parent.below.append(result)
        return [parent for parent in node.above if not parent.missing]

    def _heed_stop(self, frontier: Frontier[Node, Any]) -> None:
        try:
            self._session.stopping.check()
        except Stopped as exc:
            if frontier.drop():
                self._failures.append(Failure(descriptor=None, message=str(exc)))

    def _delivered(self, *, waiting: int) -> Delivered:
        receipts = tuple(self._receipts.values())
        return Delivered(receipts=receipts, failures=tuple(self._failures), waiting=waiting, tasks=self._tasks)
