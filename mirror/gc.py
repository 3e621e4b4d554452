"""A run that removes unneeded content from a store."""

from datetime import timedelta
from typing import Literal

from prefect_dist.mirror.report import BlobRow, LeftoverRow, NameRow, ReportBuilder, RunReport
from prefect_dist.transfer import units
from prefect_dist.transfer.pool import Failed, Pool, Unit


def run_gc(pool: Pool, *, grace: timedelta, dry_run: bool) -> RunReport:
    """Remove blobs that no name and no active run needs, and leftovers of crashed runs, in a single unit of work.

    Raises:
        NotFound: the store does not exist.
        DistError: the store cannot be read or written.
    """
    builder = ReportBuilder("gc", pool)
    pool.session.store.require()
    result = pool.call(Unit(work=units.sweep, arguments=(grace,), options={"dry_run": dry_run}))
    if isinstance(result, Failed):
        raise result.error
    swept = result.value
    outcome: Literal["planned", "removed"] = "planned" if dry_run else "removed"
    blobs = [BlobRow(digest=one.digest, outcome=outcome, size=one.size, committed=one.committed) for one in swept.blobs]
    leftovers = [LeftoverRow(path=path, outcome=outcome) for path in swept.leftovers]
    names = [NameRow(name=name, outcome="damaged", errors=(error,)) for name, error in swept.lost]
    counts = {
        **dict.fromkeys(("removed", "removed_bytes", "planned", "planned_bytes"), 0),
        outcome: len(blobs),
        f"{outcome}_bytes": swept.size,
        "kept": swept.kept - len(blobs) if dry_run else swept.kept,
        "leftovers": len(leftovers),
        "damaged": len(names),
    }
    return builder.build((*blobs, *leftovers, *names), counts, is_stopped=False, is_dry=dry_run)
