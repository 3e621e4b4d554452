"""A run that removes from a store the content that nothing needs."""

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from prefect_dist.mirror.causes import Cause, group_lines
from prefect_dist.mirror.run_report import Status, describe_pieces
from prefect_dist.ocispec.units import duration, format_count, size
from prefect_dist.storage.gc import Swept
from prefect_dist.transfer import units
from prefect_dist.transfer.pool import Failed, Pool, Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class GcReport:
    """What was removed, or would be."""

    swept: Swept
    dry_run: bool
    seconds: float
    tasks: int

    @property
    def status(self) -> Status:
        """Return `failed` if a name was recorded meanwhile whose content is not all there."""
        return "failed" if self.swept.lost else "complete"

    def summary(self) -> str:
        """One line that counts."""
        removed = f"{format_count(len(self.swept.blobs), 'blob')} with {size(self.swept.size)}"
        leftovers = f" and {format_count(len(self.swept.leftovers), 'leftover')}" if self.swept.leftovers else ""
        would = "would be removed" if self.dry_run else "removed"
        return f"{removed}{leftovers} {would}, {format_count(self.kept, 'blob')} kept; in {duration(self.seconds)}"

    @property
    def kept(self) -> int:
        """The number of blobs that stay, in a dry run too."""
        return self.swept.kept - len(self.swept.blobs) if self.dry_run else self.swept.kept

    def totals(self) -> dict[str, int]:
        """Return the numbers of blobs, leftovers and names; in a dry run of what would be removed."""
        return {
            "blobs": len(self.swept.blobs),
            "bytes": self.swept.size,
            "kept": self.kept,
            "leftovers": len(self.swept.leftovers),
            "lost": len(self.swept.lost),
        }

    def errors(self) -> list[str]:
        """Return a line for each name that lacks content."""
        return list(self.swept.lost)

    def causes(self) -> list[Cause]:
        """The failures, grouped by their cause."""
        return group_lines(self.errors())

    def to_json(self, flow_run_id: str) -> dict[str, Any]:
        """The command line's JSON output."""
        return {
            "flow_run_id": flow_run_id,
            "status": self.status,
            "seconds": round(self.seconds, 3),
            "dry_run": self.dry_run,
            "bytes": self.swept.size,
            "kept": self.kept,
            "blobs": [{"digest": str(info.digest), "size": info.size} for info in self.swept.blobs],
            "leftovers": list(self.swept.leftovers),
            "lost": list(self.swept.lost),
        }

    def facts(self) -> dict[str, str | int]:
        """What was done."""
        would = "would be removed" if self.dry_run else "removed"
        return {
            would: describe_pieces(len(self.swept.blobs), self.swept.size),
            f"leftovers {would}": len(self.swept.leftovers),
            "blobs kept": self.kept,
            "names that lack content": len(self.swept.lost),
            "took": duration(self.seconds),
        }

    def table(self) -> list[dict[str, str | int]]:
        """One row per blob that goes, the largest first."""
        largest = sorted(self.swept.blobs, key=lambda info: info.size, reverse=True)
        return [{"digest": str(i.digest), "size": size(i.size), "committed": f"{i.committed:%Y-%m-%d %H:%M}"} for i in largest]


def run_gc(pool: Pool, *, grace: timedelta, dry_run: bool) -> GcReport:
    """Remove blobs that no name and no active run needs, and leftovers of crashed runs, by one unit of work.

    Raises:
        NotFound: the store does not exist.
        DistError: the store cannot be read or written.
    """
    started = time.monotonic()
    pool.session.store.require()
    outcome = pool.call(Unit(work=units.sweep, arguments=(grace,), options={"dry_run": dry_run}))
    if isinstance(outcome, Failed):
        raise outcome.error
    return GcReport(swept=outcome.value, dry_run=dry_run, seconds=time.monotonic() - started, tasks=pool.runs)
