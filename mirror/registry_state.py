"""The state of each target registry at the end of a run of a configuration, for metrics."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime

from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.lock import Pending
from prefect_dist.mirror.plan import Plan
from prefect_dist.mirror.report import AuditRow, OrphanRow, RegistryState, RunReport, TargetRow
from prefect_dist.ocispec.reference import is_registry


def summarize_mirror(
    report: RunReport, plan: Plan, entries: Sequence[Entry], pending: Pending | None
) -> tuple[RegistryState, ...]:
    """Return the states of the target registries of a mirror run.

    `pending` are the pending changes at the end of the run; None if no file has them.
    """
    rows = report.select(TargetRow)
    failed = Counter(row.target.host for row in rows if row.target is not None and row.outcome == "failed")
    unresolved = [entry for entry in entries if entry.at in plan.problems]
    failed.update(host for entry in (*unresolved, *(one.entry for one in plan.unnamed)) for host in entry.target_registries)
    vetoed = Counter(row.target.host for row in rows if row.target is not None and row.outcome == "vetoed")
    kept = {row.target.host for row in report.select(OrphanRow) if row.outcome == "failed"}
    lags = None if pending is None else _find_lags(pending)
    return _make_states(report, entries, failed=failed, vetoed=vetoed, kept=kept, lags=lags)


def summarize_check(report: RunReport, entries: Sequence[Entry]) -> tuple[RegistryState, ...]:
    """Return the states of the target registries of a check. A check compares with the lock file and knows no changes."""
    failed = Counter(row.target.host for row in report.select(AuditRow) if row.outcome != "repaired")
    return _make_states(report, entries, failed=failed, vetoed=Counter(), kept=(), lags=None)


def _make_states(
    report: RunReport,
    entries: Iterable[Entry],
    *,
    failed: Counter[str],
    vetoed: Counter[str],
    kept: Collection[str],
    lags: Mapping[str, float] | None,
) -> tuple[RegistryState, ...]:
    """Return the states of the target registries of the entries, and of the registries with a failure, a veto or a lag.

    Layouts, archives and places of plug-ins have no state: a run may have thousands of them. `kept` are the registries where
    the removal of a tag failed.
    """
    is_cut_short = report.stopped is not None or any(one.object is None for one in report.errors)
    hosts = {host for entry in entries for host in entry.target_registries}
    hosts |= set(filter(is_registry, {*failed, *vetoed, *kept, *(lags or ())}))
    return tuple(
        RegistryState(
            host=host,
            failed=failed[host],
            pending=failed[host] + vetoed[host],
            is_success=not is_cut_short and not failed[host] and host not in kept,
            lag_s=None if lags is None else lags.get(host, 0.0),
        )
        for host in sorted(hosts)
    )


def _find_lags(pending: Pending) -> dict[str, float]:
    """Return the age of the oldest pending change at each registry with pending changes, in seconds."""
    now, oldest = datetime.now(UTC), dict[str, datetime]()
    for target, since in pending.items():
        oldest[target.host] = min(since, oldest.get(target.host, since))
    return {host: max(0.0, (now - since).total_seconds()) for host, since in oldest.items()}
