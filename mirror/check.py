"""A run that audits the targets of a mirror, and repairs targets on request."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from prefect_dist.mirror.checking import Checking, CheckResults
from prefect_dist.mirror.config import Mirror
from prefect_dist.mirror.divided_checking import DividedChecking
from prefect_dist.mirror.division import ShardRunner
from prefect_dist.mirror.loading import load_config
from prefect_dist.mirror.lock import Lock
from prefect_dist.mirror.lock_config import parse_audited
from prefect_dist.mirror.mirror_policy import MirrorObserver
from prefect_dist.mirror.registry_state import summarize_check
from prefect_dist.mirror.report import ReportBuilder, RunError, RunReport, count_outcomes
from prefect_dist.mirror.resources import RunResources
from prefect_dist.mirror.run_spec import RunContext, RunSpec
from prefect_dist.mirror.scopes import MirrorScopes
from prefect_dist.mirror.store_index import update_index
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.transfer.events import Notify
from prefect_dist.transfer.pool import Pool
from prefect_dist.transfer.session import SessionSpec
from prefect_dist.transfer.stats import TransferStats


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckJob:
    """The mirror to check, and to repair if `is_repairing`."""

    mirror: Mirror
    is_repairing: bool

    @property
    def planning(self) -> float:
        """Return the share of the audit in the work."""
        return 0.5 if self.is_repairing else 1

    def list_hosts(self, _session: SessionSpec, /) -> frozenset[str]:
        """Return the target registries, and the source registries for a repair."""
        entries = (*self.mirror.entries, *self.mirror.seed)
        sources = {entry.source_host for entry in entries} if self.is_repairing else set[str]()
        return frozenset(host for entry in entries for host in entry.target_hosts) | sources

    def run(self, context: RunContext, /) -> RunReport:
        """Check the mirror."""
        return check_mirror(
            self.mirror,
            context.pool,
            context.scopes.open_mirror(f"repair of {self.mirror.name}"),
            context.notify,
            context.observer,
            is_repairing=self.is_repairing,
            shards=context.shards,
        )


def make_check_run(
    resources: RunResources,
    *,
    config: str,
    repair: bool,
    concurrency: int | None,
    retries: int,
) -> RunSpec:
    """Return the run for the parameters of a check.

    Raises:
        InvalidInput: a parameter or the configuration is invalid.
        Denied, Unavailable: see `mirror.loading.load_config`.
    """
    wanted = load_config(config, resources.blocks, parse_audited)
    return RunSpec(
        job=CheckJob(mirror=wanted, is_repairing=repair),
        session=resources.make_mirror_session(wanted),
        window=concurrency or wanted.concurrency,
        retries=retries,
        configuration=wanted.name,
        warnings=wanted.warnings,
    )


def check_mirror(
    mirror: Mirror,
    pool: Pool,
    scopes: MirrorScopes,
    notify: Notify,
    observer: MirrorObserver,
    *,
    is_repairing: bool,
    shards: ShardRunner | None = None,
) -> RunReport:
    """Audit each target in the lock file that an entry selects. If `is_repairing`, upload missing content.

    With `shards`, other processes check the targets.

    Raises:
        InvalidInput: the lock file is damaged, or names no image.
        DistError: the lock file cannot be read, or the store cannot be used.
    """
    builder, entries = ReportBuilder("check", pool), (*mirror.entries, *mirror.seed)
    locked = Lock(mirror.lock).read()
    if not locked:
        lacks = "no lock file is configured, set `lock`" if mirror.lock is None else f"{mirror.lock} names no image"
        raise InvalidInput(f"nothing to check: {lacks}; run mirror or seed first", subject=mirror.path)
    checking = Checking(pool, scopes, notify, observer, entries, is_repairing=is_repairing)
    if shards is not None:
        checking = DividedChecking(pool, scopes, notify, observer, entries, is_repairing=is_repairing, runner=shards)
    wanted = checking.select(locked)
    found = checking.check(wanted)
    is_changed = is_repairing and any(row.outcome != "unresolved" for row in found.rows)
    errors = update_index(pool.session, notify) if is_changed else []
    unchecked = len(locked) - len(wanted)
    report = build_check_report(
        builder, found, stats=checking.stats, unchecked=unchecked, errors=errors, configuration=mirror.name
    )
    return replace(report, registries=summarize_check(report, entries), quotas=checking.quotas)


def build_check_report(
    builder: ReportBuilder,
    found: CheckResults,
    *,
    stats: TransferStats,
    unchecked: int,
    errors: Sequence[RunError] = (),
    configuration: str | None,
) -> RunReport:
    """Return the report of a check. `unchecked` is the number of targets of no entry, and `errors` concern no target."""
    counts = {
        "ok": found.ok,
        **count_outcomes(found.rows, ("damaged", "repaired", "failed", "unresolved")),
        "unchecked": unchecked,
        "fetched_bytes": stats.received,
        "sent_bytes": stats.sent,
    }
    return builder.build(found.rows, counts, errors=errors, configuration=configuration)
