"""The walk of a push: over the tree of one image from its leaves to its root, a descriptor after its children."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from prefect.utilities.annotations import opaque, quote

from flows.limits import tags_of
from flows.progress import Listener
from flows.report import Failure
from flows.runner import message, outcome
from ocispec import Descriptor, Reference
from ocispec.errors import NotFound
from ocispec.frontier import Frontier
from ocispec.handlers import Handler, children_handler, visit
from storage import Name, completeness
from tasks import push as tasks
from tasks.session import Session
from tasks.stopping import Stopped
from tasks.transfer import Receipt

if TYPE_CHECKING:
    from prefect import Task
    from prefect.futures import PrefectFuture


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """What became of an image's distinct descriptors.

    `waiting` counts those that were not begun: because of what failed below them, or because the run was ended.
    """

    receipts: tuple[Receipt, ...]
    failures: tuple[Failure, ...]
    waiting: int

    @property
    def ended(self) -> int:
        """The number of those whose tasks have ended, well or not."""
        return len(self.receipts) + sum(failure.descriptor is not None for failure in self.failures)


@dataclass(eq=False, slots=True)
class _Node:
    """Content on its way. `missing` counts its children that are not there yet, `below` has the receipts of those that are.

    `above` are the manifests that list it.
    """

    descriptor: Descriptor
    missing: int = 0
    above: list["_Node"] = field(default_factory=list)
    below: list[Receipt] = field(default_factory=list)


class Ascent:
    """One run's walk to the repository of `target`, whose tag it sets last."""

    def __init__(self, session: Session, image: Name, target: Reference, listener: Listener, *, retries: int) -> None:
        self._session, self._image, self._target, self._listener = session, image, target, listener
        host, _, repository = image.source.partition("/")
        self._source = repository if host == target.host and repository != target.repository else None
        self._task: Task[..., Any] = tasks.push.with_options(retries=retries, tags=tags_of(target.host))
        self._receipts: list[Receipt] = []
        self._failures: list[Failure] = []

    def run(self, *, window: int) -> Delivered:
        """Push all of it, at most `window` descriptors at once. A failure keeps back what is above it, and nothing else.

        Raises:
            NotFound: something of it is not in the store; nothing was sent.
        """
        nodes = self._nodes()
        self._listener.resolving(str(self._target))
        self._listener.resolved(str(self._target), self._image.descriptor)
        for node in nodes:
            self._listener.waiting(node.descriptor)
        frontier: Frontier[_Node, PrefectFuture[Any]] = Frontier(self._start, window=window)
        frontier.add(node for node in nodes if not node.missing)
        for node, future in frontier:
            frontier.add(self._ended(node, outcome(future)))
            self._heed_stop(frontier)
        done = Delivered(receipts=tuple(self._receipts), failures=tuple(self._failures), waiting=0)
        return replace(done, waiting=len(nodes) - done.ended)

    def _nodes(self) -> list[_Node]:
        children = children_handler(self._session.store.manifest)
        found = completeness.check(self._session.store, self._image.descriptor, children=children)
        if not found.whole:  # a registry takes no index whose manifests it lacks, and nobody wants one that has holes
            raise NotFound(f"{self._image.name}: {found.shortage}; fetch it again, for all platforms, to push it")
        return _linked(found.present, children)

    def _start(self, node: _Node) -> "PrefectFuture[Any]":
        """Submit a task; quoted and opaque for the reasons that `flows.walk` gives."""
        is_root = node.descriptor.content == self._image.descriptor.content
        arguments = map(quote, (node.descriptor, self._target, self._source, self._target.tag if is_root else None))
        future: PrefectFuture[Any] = self._task.submit(*arguments, wait_for=[opaque(receipt) for receipt in node.below])
        return future

    def _ended(self, node: _Node, result: object) -> list[_Node]:
        """Take note; the manifests all of whose children are there now."""
        if not isinstance(result, Receipt):
            self._failures.append(Failure(descriptor=node.descriptor, message=message(result)))
            self._listener.failed(node.descriptor, self._failures[-1].message)
            return []
        self._receipts.append(result)
        self._listener.ended(node.descriptor, result)
        for parent in node.above:
            parent.missing -= 1
            parent.below.append(result)
        return [parent for parent in node.above if not parent.missing]

    def _heed_stop(self, frontier: Frontier[_Node, Any]) -> None:
        try:
            self._session.stopping.check()
        except Stopped as exc:
            if frontier.drop():
                self._failures.append(Failure(descriptor=None, message=str(exc)))


def _linked(tree: Iterable[Descriptor], children: Handler) -> list[_Node]:
    """The nodes of a tree of distinct descriptors, each knowing how many children it has and who lists it."""
    nodes = {descriptor.content: _Node(descriptor) for descriptor in tree}
    for node in nodes.values():
        below = {child.content for child in visit(children, node.descriptor)}
        node.missing = len(below)
        for content in below:
            nodes[content].above.append(node)
    return list(nodes.values())
