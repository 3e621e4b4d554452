"""A run that removes unneeded content from a store."""

from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar, Literal

from prefect_dist.mirror.report import BlobRow, LeftoverRow, NameRow, ReportBuilder, RunReport
from prefect_dist.mirror.resources import RunResources
from prefect_dist.mirror.run_spec import RunContext, RunSpec
from prefect_dist.ocispec.units import seconds
from prefect_dist.storage import open_store
from prefect_dist.storage.gc import find_hazard
from prefect_dist.transfer import units
from prefect_dist.transfer.pool import Failed, Pool, Unit
from prefect_dist.transfer.session import SessionSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class GcJob:
    """The removal of content that was not used within the time `grace`. A dry run only reports the content."""

    grace: timedelta
    is_dry: bool
    planning: ClassVar[None] = None

    def list_hosts(self, _session: SessionSpec, /) -> frozenset[str]:
        """Return no registry."""
        return frozenset()

    def run(self, context: RunContext, /) -> RunReport:
        """Remove the content."""
        return run_gc(context.pool, grace=self.grace, dry_run=self.is_dry)


def make_gc_run(resources: RunResources, *, grace: str, dry_run: bool) -> RunSpec:
    """Return the run for the parameters of a garbage collection.

    Raises:
        InvalidInput: a parameter is invalid.
    """
    job, session = GcJob(grace=timedelta(seconds=seconds(grace)), is_dry=dry_run), resources.make_session()
    with open_store(session.store, options=session.store_options) as store:
        hazard = find_hazard(store, grace=job.grace)
    return RunSpec(job=job, session=session, window=1, warnings=() if hazard is None else (hazard,))


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
