"""A run that audits the targets of a mirror, and repairs targets on request."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from prefect_dist.mirror.applying import Applying, MirrorScopes
from prefect_dist.mirror.auditing import Auditing, Audits
from prefect_dist.mirror.config import Mirror
from prefect_dist.mirror.loading import load_config
from prefect_dist.mirror.lock import Lock, Records
from prefect_dist.mirror.lock_config import accept_lock
from prefect_dist.mirror.mirror_policy import MirrorObserver
from prefect_dist.mirror.plan import Plan, TargetAction
from prefect_dist.mirror.report import AuditRow, ReportBuilder, RunError, RunReport, count_outcomes
from prefect_dist.mirror.resources import RunResources
from prefect_dist.mirror.run_spec import RunContext, RunSpec
from prefect_dist.mirror.skopeo import Dialect, choose_parser
from prefect_dist.mirror.store_index import update_index
from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import Denied, DistError, InvalidInput
from prefect_dist.transfer.audit import Finding
from prefect_dist.transfer.events import Notify
from prefect_dist.transfer.pool import Pool
from prefect_dist.transfer.session import SessionSpec

_Errors = Mapping[Reference, Sequence[DistError]]


class DamagedTarget(DistError):
    """A target of a mirror lacks content, or the tag resolves to a wrong digest. The text lists the faults."""


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
        )


def make_check_run(
    resources: RunResources,
    *,
    config: str,
    repair: bool,
    concurrency: int | None,
    retries: int,
    dialect: Dialect,
    to: Sequence[str],
) -> RunSpec:
    """Return the run for the parameters of a check.

    Raises:
        InvalidInput: a parameter or the configuration is invalid.
        Denied, Unavailable: see `mirror.loading.load_config`.
    """
    wanted = load_config(config, resources.blocks, accept_lock(choose_parser(dialect, to)))
    return RunSpec(
        job=CheckJob(mirror=wanted, is_repairing=repair),
        session=resources.make_mirror_session(wanted),
        window=concurrency or wanted.concurrency,
        retries=retries,
        configuration=wanted.name,
        warnings=wanted.warnings,
    )


def check_mirror(
    mirror: Mirror, pool: Pool, scopes: MirrorScopes, notify: Notify, observer: MirrorObserver, *, is_repairing: bool
) -> RunReport:
    """Audit each target in the lock file that an entry selects. If `is_repairing`, upload missing content.

    Raises:
        InvalidInput: the lock file is damaged, or names no image.
        DistError: the lock file cannot be read.
    """
    builder, session = ReportBuilder("check", pool), pool.session
    locked = Lock(mirror.lock).read()
    if not locked:
        lacks = "no lock file is configured, set `lock`" if mirror.lock is None else f"{mirror.lock} names no image"
        raise InvalidInput(f"nothing to check: {lacks}; run mirror or seed first", subject=mirror.path)
    auditing = Auditing(pool, notify, (*mirror.entries, *mirror.seed))
    first = auditing.audit(locked)
    rows = [AuditRow(target=one, outcome="unresolved", errors=(error,)) for one, error in first.unresolved.items()]
    errors = list[RunError]()
    if is_repairing and first.damaged:
        repairs = _Repairs(observer)
        repaired = _repair(auditing, Applying(pool, scopes, notify, repairs), first, locked)
        repairs.report(repaired)
        errors = update_index(session, notify)
        rows = [*repaired, *rows]
    else:
        rows = [*(_damaged_row(target, found) for target, found in first.damaged.items()), *rows]
    counts = {
        "ok": first.ok,
        **count_outcomes(rows, ("damaged", "repaired", "failed", "unresolved")),
        "unchecked": first.unchecked,
        "fetched_bytes": session.stats.received,
        "sent_bytes": session.stats.sent,
    }
    return builder.build(rows, counts, errors=errors, configuration=mirror.name)


class _Repairs:
    """Passes the result of a repair to `observer`. A publication becomes a result only after the audit that follows."""

    def __init__(self, observer: MirrorObserver) -> None:
        self._observer = observer
        self._published: dict[Reference, TargetAction] = {}

    def on_begin(self) -> None:
        """Report the begin."""
        self._observer.on_begin()

    def on_plan(self, plan: Plan, *, is_dry: bool) -> None:
        """Report the plan."""
        self._observer.on_plan(plan, is_dry=is_dry)

    def on_mirrored(self, action: TargetAction) -> None:
        """Keep the action of a published target for `report`."""
        self._published[action.target] = action

    def on_failed(self, action: TargetAction, errors: Sequence[DistError]) -> None:
        """Report the failure."""
        self._published.pop(action.target, None)
        self._observer.on_failed(action, errors)

    def report(self, rows: Sequence[AuditRow]) -> None:
        """Report the published targets: a target that is still damaged has failed."""
        for row in rows:
            if (action := self._published.get(row.target)) is None:
                continue
            if row.errors:
                self._observer.on_failed(action, row.errors)
            else:
                self._observer.on_mirrored(action)


def _repair(auditing: Auditing, applying: Applying, first: Audits, locked: Records) -> list[AuditRow]:
    """Upload the missing content of the damaged targets of the first audit, and audit the targets again. Return their rows."""
    located, lost = auditing.locate(first, locked)
    applying.add(tuple(located), located)
    results = applying.run()
    vetoed = {target: (Denied(str(veto)),) for target, veto in results.vetoes.items()}
    failures = {**{target: (error,) for target, error in lost.items()}, **results.failures, **vetoed}
    again = auditing.audit({target: locked[target] for target in first.damaged if target not in lost})
    return list(_repaired_rows(first, again, failures))


def _damaged_row(target: Reference, found: Finding) -> AuditRow:
    error = DamagedTarget("; ".join(found.faults))
    return AuditRow(target=target, outcome="damaged", faults=found.faults, errors=(error,))


def _repaired_rows(first: Audits, again: Audits, failures: _Errors) -> Iterator[AuditRow]:
    """Yield the rows of the damaged targets of the first audit; `again` is the audit after the repair."""
    for target, found in first.damaged.items():
        errors = tuple(failures.get(target, ()))
        if not errors and target in again.unresolved:
            errors = (again.unresolved[target],)
        elif not errors and target in again.damaged:
            errors = (DamagedTarget(f"after the repair: {'; '.join(again.damaged[target].faults)}"),)
        yield AuditRow(target=target, outcome="failed" if errors else "repaired", faults=found.faults, errors=errors)
