"""The flow `gc`: remove from a store what nothing needs."""

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

from prefect import get_run_logger
from prefect.runtime import flow_run

from prefect_dist.flows._flow import flow_of
from prefect_dist.flows.parameters import Store, StoreOptions, label, session_spec
from prefect_dist.mirror.causes import Cause, group_lines
from prefect_dist.mirror.progress import LogWriter
from prefect_dist.mirror.run_report import Status, describe_pieces
from prefect_dist.ocispec.units import duration, format_count, seconds, size
from prefect_dist.storage.gc import Swept, find_hazard
from prefect_dist.tasks import upkeep
from prefect_dist.transfer.session import open_session


@dataclass(frozen=True, slots=True, kw_only=True)
class GcReport:
    """What was removed, or would be."""

    swept: Swept
    dry_run: bool
    seconds: float
    tasks: int = 1

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


def _run_name() -> str:
    return f"gc of {flow_run.parameters['store']}"


@flow_of("gc", run_name=_run_name)
def gc(
    store: Store,
    grace: Annotated[str, label("Grace", "How long nobody must have touched what is removed, such as 24h or 7d")] = "24h",
    *,
    dry_run: Annotated[bool, label("Dry run", "Only tell what would be removed")] = False,
    store_options: StoreOptions = {},  # noqa: B006 - Prefect shows it in the form and copies it
) -> GcReport:
    """Remove blobs that no name and no active run needs, and what crashed runs left."""
    started = time.monotonic()
    with open_session(session_spec(store, store_options), notify=LogWriter(get_run_logger())) as opened:
        opened.store.require()
        untouched = timedelta(seconds=seconds(grace))
        if warning := find_hazard(opened.store, grace=untouched):
            get_run_logger().warning(warning)
        swept = upkeep.sweep(untouched, dry_run=dry_run)
    return GcReport(swept=swept, dry_run=dry_run, seconds=time.monotonic() - started)
