"""A run that pushes one image from the store to a registry."""

import time
from dataclasses import dataclass
from typing import Any

from prefect_dist.mirror.causes import Cause, group_lines
from prefect_dist.mirror.run_report import Status, describe_pieces, pace
from prefect_dist.ocispec import Descriptor, Reference
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.ocispec.units import duration, size
from prefect_dist.storage import Name
from prefect_dist.transfer.events import ImageEnded, Notify
from prefect_dist.transfer.image_report import Failure
from prefect_dist.transfer.pool import Pool
from prefect_dist.transfer.pushing import Delivered, Push
from prefect_dist.transfer.session import Session

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


def run_push(name: str, target: Reference, pool: Pool, notify: Notify, *, referrers: bool) -> PushReport:
    """Push an image that the store has under `name`, with `referrers` also the manifests that refer to it.

    Raises:
        NotFound: the store does not have the name, or lacks content of the image; nothing was sent.
        InvalidInput: the target has the digest of another image.
    """
    started, session = time.monotonic(), pool.session
    recorded = _read_name(session, name, target)
    done = Push(pool, recorded, target, notify, referrers=referrers).run()
    report = PushReport(
        source=name,
        target=str(target),
        root=recorded.descriptor,
        done=done,
        seconds=time.monotonic() - started,
        stopped=session.cancel.reason,
    )
    notify(ImageEnded(report))
    return report


def _read_name(session: Session, name: str, target: Reference) -> Name:
    """Return the record of a name. If the target has a digest, it has to be the digest of the image."""
    recorded = session.store.names.get(name)
    if (pinned := target.pinned_digest()) is not None and pinned != recorded.descriptor.digest:
        raise InvalidInput(f"{target}: expected the digest of {name}, which is {recorded.descriptor.digest}")
    return recorded
