"""The flow `push`: store → registry. A task for each blob uploads it, then one pushes the manifests and sets the tag."""

import time
from dataclasses import dataclass
from typing import Annotated, Any

from prefect.runtime import flow_run

from prefect_dist.flows._flow import flow_of
from prefect_dist.flows.parameters import Concurrency, Reached, Referrers, Retries, Store, StoreOptions, label, session_spec
from prefect_dist.flows.pool import PrefectPool
from prefect_dist.flows.progress_artifact import publish_run_progress
from prefect_dist.flows.slots import lease_slots
from prefect_dist.mirror.causes import Cause, group_lines
from prefect_dist.mirror.hosts_file import CONCURRENCY
from prefect_dist.mirror.run_report import Status, describe_pieces, pace
from prefect_dist.ocispec import Descriptor, Reference
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.ocispec.reference import expand
from prefect_dist.ocispec.units import duration, size
from prefect_dist.storage import Name
from prefect_dist.transfer.attempts import RETRIES
from prefect_dist.transfer.events import ImageEnded
from prefect_dist.transfer.image_report import Failure
from prefect_dist.transfer.pushing import Delivered, Push
from prefect_dist.transfer.session import Session, open_session

_STATUSES = ("pushed", "mounted", "existed")


@dataclass(frozen=True, slots=True, kw_only=True)
class PushReport:
    """How an image came to be at a registry; `stopped` says why the run was ended early, None where it was not."""

    source: str
    target: str
    root: Descriptor
    done: Delivered
    seconds: float
    stopped: str | None

    @property
    def name(self) -> str:
        """What was pushed to."""
        return self.target

    @property
    def tasks(self) -> int:
        """The number of task runs that it took."""
        return self.done.tasks

    @property
    def failures(self) -> tuple[Failure, ...]:
        """What went wrong."""
        return self.done.failures

    @property
    def status(self) -> Status:
        """`complete` if the target has the whole image and the tag resolves to it."""
        if not self.failures:
            return "complete"
        return "stopped" if self.stopped else "failed"

    @property
    def transferred(self) -> int:
        """Return the bytes that were sent."""
        return sum(receipt.transferred for _, receipt in self.done.receipts)

    @property
    def has_moved(self) -> bool:
        """Return whether anything had to be sent."""
        return any(receipt.status != "existed" for _, receipt in self.done.receipts)

    def describe_counts(self) -> str:
        """Return the counts in words."""
        counts = {status: self._count(status) for status in _STATUSES} | {"failed": len(self.failures)}
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count or what == "pushed")

    def summary(self) -> str:
        """One line that counts."""
        what = f"{self.source} to {self.target} {self.status}: {self.describe_counts()}"
        return f"{what}; {size(self.transferred)} in {duration(self.seconds)}"

    def facts(self) -> dict[str, str | int]:
        """What was done."""
        return {
            "sent": describe_pieces(self._count("pushed"), self.transferred),
            "mounted from elsewhere in the registry": describe_pieces(self._count("mounted"), self._size("mounted")),
            "at the target already": describe_pieces(self._count("existed"), self._size("existed")),
            "failed": len(self.failures),
            "not begun": self.done.waiting,
            **pace(self.transferred, self.seconds),
        }

    def totals(self) -> dict[str, int]:
        """Return the number of descriptors by result, and the bytes that were sent."""
        return {
            **{status: self._count(status) for status in _STATUSES},
            "failed": len(self.failures),
            "waiting": self.done.waiting,
            "sent_bytes": self.transferred,
        }

    def errors(self) -> list[str]:
        """One line per failure."""
        return list(dict.fromkeys(failure.message for failure in self.failures))

    def causes(self) -> list[Cause]:
        """The failures, grouped by their cause."""
        return group_lines(self.errors())

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
                    "waiting": self.done.waiting,
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
        return sum(receipt.status == status for _, receipt in self.done.receipts)

    def _size(self, status: str) -> int:
        return sum(descriptor.size for descriptor, receipt in self.done.receipts if receipt.status == status)


def _run_name() -> str:
    return f"push {flow_run.parameters['name']} to {flow_run.parameters['target']}"


@flow_of("push", run_name=_run_name)
def push(
    name: Annotated[str, label("Image", "As its name was recorded in the content store")],
    target: Annotated[str, label("Target", "Where it goes, such as registry.example/team/app:v1")],
    store: Store,
    *,
    referrers: Referrers = False,
    concurrency: Concurrency = CONCURRENCY,
    retries: Retries = RETRIES,
    store_options: StoreOptions = {},  # noqa: B006 - Prefect shows it in the form and copies it
    network: Reached = None,
) -> PushReport:
    """Push an image of the content store to a registry. Existing content is not sent, and the tag is set last."""
    started = time.monotonic()
    to = Reference.parse(expand(target))
    spec = session_spec(store, store_options, network)
    with (
        publish_run_progress() as notify,
        lease_slots(spec, (to.host,), workers=concurrency, notify=notify) as bounded,
        open_session(bounded, notify=notify) as session,
    ):
        recorded = _read_name(session, name, to)
        pool = PrefectPool(session, window=concurrency, retries=retries)
        done = Push(pool, recorded, to, notify, referrers=referrers).run()
        stopped, seconds = session.cancel.reason, time.monotonic() - started
        report = PushReport(source=name, target=str(to), root=recorded.descriptor, done=done, seconds=seconds, stopped=stopped)
        notify(ImageEnded(report))
    return report


def _read_name(session: Session, name: str, target: Reference) -> Name:
    """What the store has under a name, if that is what the target's digest says, should it have one.

    Raises:
        NotFound: no such name.
        InvalidInput: the target has the digest of something else.
    """
    recorded = session.store.names.get(name)
    if (pinned := target.pinned_digest()) is not None and pinned != recorded.descriptor.digest:
        raise InvalidInput(f"{target}: expected the digest of {name}, which is {recorded.descriptor.digest}")
    return recorded
