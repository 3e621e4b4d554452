"""The flow `push`: store → registry. Each descriptor is a task that waits for those of its children; the tag comes last."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from prefect import Task, flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.utilities.annotations import opaque, quote
from pydantic import Field

from flows.conclusion import concluded
from flows.limits import tags_of
from flows.parameters import Concurrency, Network, Retries, Store, StoreOptions, session_spec
from flows.progress import Listener, LogListener, told
from flows.report import Failure, Outcome
from flows.results import keep_no_results
from flows.runner import RUNNER, message, outcome
from ocispec import Descriptor, Reference
from ocispec.errors import InvalidInput, NotFound
from ocispec.frontier import Frontier
from ocispec.handlers import Handler, children_handler, visit
from ocispec.reference import expand
from ocispec.units import duration, size
from storage import completeness
from tasks import push as tasks
from tasks._task import RETRIES
from tasks.session import Session, open_session
from tasks.stopping import Stopped
from tasks.transfer import Receipt

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture

_STATUSES = ("pushed", "mounted", "existed")


@dataclass(frozen=True, slots=True, kw_only=True)
class PushReport:
    """How an image came to be at a registry. Distinct descriptors are counted; `transferred` counts the bytes of this run.

    `waiting` are descriptors that were not begun: because of what failed below them, or because the run was ended.
    """

    source: str
    target: str
    root: Descriptor
    receipts: tuple[Receipt, ...]
    failures: tuple[Failure, ...]
    waiting: int
    tasks: int
    seconds: float
    stopped: str | None

    @property
    def name(self) -> str:
        """What was pushed to."""
        return self.target

    @property
    def status(self) -> Outcome:
        """`complete` if all of it is there, under its tag."""
        if not self.failures:
            return "complete"
        return "stopped" if self.stopped else "failed"

    @property
    def transferred(self) -> int:
        """The bytes that were sent."""
        return sum(receipt.transferred for receipt in self.receipts)

    @property
    def moved(self) -> bool:
        """Whether anything had to be sent."""
        return any(receipt.status != "existed" for receipt in self.receipts)

    def told(self) -> str:
        """What was done, counted."""
        counts = {status: self._count(status) for status in _STATUSES} | {"failed": len(self.failures)}
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count or what == "pushed")

    def summary(self) -> str:
        """One line that counts."""
        what = f"{self.source} to {self.target} {self.status}: {self.told()}"
        return f"{what}; {size(self.transferred)} in {duration(self.seconds)}"

    def errors(self) -> list[str]:
        """One line per failure."""
        return list(dict.fromkeys(failure.message for failure in self.failures))

    def to_json(self, flow_run_id: str) -> dict[str, Any]:
        """The command line's JSON output."""
        return {
            "flow_run_id": flow_run_id,
            "status": self.status,
            "seconds": round(self.seconds, 3),
            "images": [
                {
                    "name": self.source,
                    "target": self.target,
                    "digest": str(self.root.digest),
                    "status": self.status,
                    **{status: self._count(status) for status in _STATUSES},
                    "failed": len(self.failures),
                    "waiting": self.waiting,
                    "bytes": self.transferred,
                    "errors": [failure.to_json() for failure in self.failures],
                }
            ],
        }

    def table(self) -> list[dict[str, str | int]]:
        """One row for the image."""
        row: dict[str, str | int] = {"image": self.source, "target": self.target, "outcome": self.status}
        row |= {status: self._count(status) for status in _STATUSES}
        row |= {"failed": len(self.failures), "bytes": size(self.transferred), "error": "; ".join(self.errors()[:1])}
        return [row]

    def _count(self, status: str) -> int:
        return sum(receipt.status == status for receipt in self.receipts)


def _run_name() -> str:
    return f"push {flow_run.parameters['name']} to {flow_run.parameters['target']}"


@flow(name="push", flow_run_name=_run_name, task_runner=RUNNER, persist_result=False)
def push(
    name: Annotated[str, Field(description="The image in the content store, as its name was recorded")],
    target: Annotated[str, Field(description="Where it goes, such as registry.example/team/app:v1")],
    store: Store,
    *,
    store_options: StoreOptions = {},  # noqa: B006 - Prefect shows it in the form and copies it
    network: Network = Network(),
    concurrency: Concurrency = 8,
    retries: Retries = RETRIES,
) -> State[Any]:
    """Bring an image from the content store to a registry: what is there is not sent, and its tag is set last."""
    keep_no_results()
    listener = told(LogListener(get_run_logger()))
    with open_session(session_spec(store, store_options, network), observer=listener) as session:
        report = _Push(session, name, Reference.parse(expand(target)), listener, retries=retries).run(window=concurrency)
    return concluded("push", report)


@dataclass(eq=False, slots=True)
class _Node:
    """Content on its way. `above` are the manifests that list it, `below` the receipts of its children that are there."""

    descriptor: Descriptor
    missing: int = 0
    above: list["_Node"] = field(default_factory=list)
    below: list[Receipt] = field(default_factory=list)


class _Push:
    """One run: a walk over the tree of an image from its leaves to its root."""

    def __init__(self, session: Session, name: str, target: Reference, listener: Listener, *, retries: int) -> None:
        recorded = session.store.names.get(name)
        self._session, self._name, self._target, self._listener = session, name, target, listener
        self._root = recorded.descriptor
        if (pinned := target.pinned()) is not None and pinned != self._root.digest:
            raise InvalidInput(f"{target}: expected the digest of {name}, which is {self._root.digest}")
        host, _, repository = recorded.source.partition("/")
        self._source = repository if host == target.host and repository != target.repository else None
        self._task: Task[..., Any] = tasks.push.with_options(retries=retries, tags=tags_of(target.host))

    def run(self, *, window: int) -> PushReport:
        """Push all of it.

        Raises:
            NotFound: something of it is not in the store.
        """
        started = time.monotonic()
        children = children_handler(self._session.store.manifest)
        found = completeness.check(self._session.store, self._root, children=children)
        if not found.whole:  # a registry takes no index whose manifests it lacks, and nobody wants one that has holes
            raise NotFound(f"{self._name}: {found.shortage}; fetch it again, for all platforms, to push it")
        tree = found.present
        nodes = _linked(tree, children)
        self._listener.resolving(str(self._target))
        self._listener.resolved(str(self._target), self._root)
        for node in nodes:
            self._listener.waiting(node.descriptor)
        frontier: Frontier[_Node, PrefectFuture[Any]] = Frontier(self._start, window=window)
        frontier.add(node for node in nodes if not node.missing)
        receipts, failures = list[Receipt](), list[Failure]()
        for node, future in frontier:
            result = outcome(future)
            if isinstance(result, Receipt):
                receipts.append(result)
                self._listener.ended(node.descriptor, result)
                frontier.add(self._freed(node, result))
            else:
                failures.append(Failure(descriptor=node.descriptor, message=message(result)))
                self._listener.failed(node.descriptor, failures[-1].message)
            self._heed_stop(frontier, failures)
        ended = len(receipts) + sum(failure.descriptor is not None for failure in failures)
        report = PushReport(
            source=self._name,
            target=str(self._target),
            root=self._root,
            receipts=tuple(receipts),
            failures=tuple(failures),
            waiting=len(nodes) - ended,
            tasks=ended,
            seconds=time.monotonic() - started,
            stopped=self._session.stopping.reason,
        )
        self._listener.finished(report)
        return report

    def _start(self, node: _Node) -> "PrefectFuture[Any]":
        """Submit a task; quoted and opaque for the reasons that `flows.walk` gives."""
        is_root = node.descriptor.content == self._root.content
        arguments = map(quote, (node.descriptor, self._target, self._source, self._target.tag if is_root else None))
        future: PrefectFuture[Any] = self._task.submit(*arguments, wait_for=[opaque(receipt) for receipt in node.below])
        return future

    @staticmethod
    def _freed(node: _Node, receipt: Receipt) -> list[_Node]:
        """The manifests all of whose children are there now."""
        for parent in node.above:
            parent.missing -= 1
            parent.below.append(receipt)
        return [parent for parent in node.above if not parent.missing]

    def _heed_stop(self, frontier: Frontier[_Node, Any], failures: list[Failure]) -> None:
        try:
            self._session.stopping.check()
        except Stopped as exc:
            if frontier.drop():
                failures.append(Failure(descriptor=None, message=str(exc)))


def _linked(tree: Iterable[Descriptor], children: Handler) -> list[_Node]:
    """The nodes of a tree of distinct descriptors, each knowing how many children it has and who lists it."""
    nodes = {descriptor.content: _Node(descriptor) for descriptor in tree}
    for node in nodes.values():
        below = {child.content for child in visit(children, node.descriptor)}
        node.missing = len(below)
        for content in below:
            nodes[content].above.append(node)
    return list(nodes.values())
