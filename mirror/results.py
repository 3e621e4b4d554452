"""The results of a mirror run, and the rows and counts of the report."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

from prefect_dist.mirror.plan import OrphanTag, Plan, TargetAction
from prefect_dist.mirror.report import OrphanRow, ReportBuilder, RunError, RunReport, TargetOutcome, TargetRow
from prefect_dist.ocispec import Digest, Reference
from prefect_dist.ocispec.errors import DistError
from prefect_dist.transfer.removal import Removed
from prefect_dist.transfer.stats import TransferStats

_DONE: Mapping[str, TargetOutcome] = {"add": "added", "change": "changed", "repair": "repaired"}
# A mirror run repairs no target.
_COUNTED = tuple(outcome for outcome in get_args(TargetOutcome) if outcome != "repaired")


@dataclass(frozen=True, slots=True, kw_only=True)
class GateVeto:
    """The reason for a veto of a gate."""

    gate: str
    reason: str

    def __str__(self) -> str:
        return f"vetoed by {self.gate}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorResults:
    """The results of a mirror run for its targets and for orphaned tags.

    Attributes:
        failures: the errors of targets without the planned image, or without the new referrers.
        vetoes: the vetoes of gates, by target.
        referrers: the referrers of the image at each published target, with tags.
        begun: the targets where a publication failed and the registry may have set the tag.
        removed: the results for the orphaned tags that the run tried to remove.
        interrupted: the targets of shards that were stopped although the run was not cancelled.
        is_stopped: true if the run was cancelled.
    """

    failures: Mapping[Reference, tuple[DistError, ...]] = field(default_factory=dict)
    vetoes: Mapping[Reference, GateVeto] = field(default_factory=dict)
    referrers: Mapping[Reference, Mapping[Digest, str | None]] = field(default_factory=dict)
    begun: frozenset[Reference] = frozenset()
    removed: Mapping[Reference, Removed | DistError] = field(default_factory=dict)
    interrupted: frozenset[Reference] = frozenset()
    is_stopped: bool = False

    def outcome(self, action: TargetAction) -> TargetOutcome:
        """Return the outcome of an action that the run carried out."""
        if action.change == "failed" or action.target in self.failures:
            return "failed"
        if action.target in self.vetoes:
            return "vetoed"
        return _DONE.get(action.change, "unchanged")


def plan_rows(plan: Plan) -> list[TargetRow | OrphanRow]:
    """Return the rows of a plan before the run, or of a dry run."""
    return [*_target_rows(plan, None), *(_planned_orphan(orphan) for orphan in plan.orphans)]


def build_mirror_report(
    builder: ReportBuilder,
    plan: Plan,
    results: MirrorResults | None,
    *,
    stats: TransferStats,
    errors: Sequence[RunError] = (),
    configuration: str | None,
) -> RunReport:
    """Return the report of a mirror, seed, copy or push. A dry run has no `results`. `errors` concern no target."""
    targets = _target_rows(plan, results)
    removed: Mapping[Reference, Removed | DistError] = {} if results is None else results.removed
    orphans = [_orphan_row(one, removed[one.target]) if one.target in removed else _planned_orphan(one) for one in plan.orphans]
    unresolved = [RunError(object=place, error=error) for place, error in plan.problems.items()]
    vetoed = [f"{row.source} to {row.target}: {row.note}" for row in targets if row.outcome == "vetoed"]
    kept = [f"{one.target}: not removed: {one.note}" for one in orphans if one.outcome in ("gone", "changed", "shared")]
    return builder.build(
        (*targets, *orphans),
        {**_count_targets(plan, targets), **_count_orphans(orphans), **_count_content(plan, stats)},
        errors=(*unresolved, *errors),
        notes=(*plan.idle, *vetoed, *kept),
        is_vetoed=bool(vetoed),
        configuration=configuration,
        plan=plan,
        is_dry=results is None,
    )


def _target_rows(plan: Plan, results: MirrorResults | None) -> list[TargetRow]:
    unnamed = [TargetRow(source=one.source, target=None, outcome="failed", errors=(one.error,)) for one in plan.unnamed]
    return [*(_target_row(action, results) for action in plan.actions), *unnamed]


def _target_row(action: TargetAction, results: MirrorResults | None) -> TargetRow:
    """Return the row for an action; without `results` the action is only planned."""
    veto = None if results is None else results.vetoes.get(action.target)
    errors = () if results is None else results.failures.get(action.target, ())
    note = action.note
    if veto is not None:
        note = f"{veto}; the target keeps the image that was mirrored before" if action.is_judged else str(veto)
    planned: TargetOutcome = "failed" if action.error is not None else "planned" if action.is_due else "unchanged"
    return TargetRow(
        source=action.item.source,
        target=action.target,
        action=action.change if action.is_due else None,
        outcome=planned if results is None else results.outcome(action),
        old=action.old,
        new=action.new,
        note=note,
        errors=errors if action.error is None else (action.error,),
    )


def _planned_orphan(orphan: OrphanTag) -> OrphanRow:
    return OrphanRow(
        source=orphan.record.source,
        target=orphan.target,
        digest=orphan.record.digest,
        since=orphan.since,
        outcome="unowned" if orphan.since is None else "planned" if orphan.is_due else "held" if orphan.is_held else "kept",
        note=orphan.note,
    )


def _orphan_row(orphan: OrphanTag, result: Removed | DistError) -> OrphanRow:
    row = _planned_orphan(orphan)
    if isinstance(result, DistError):
        return replace(row, outcome="failed", note=None, errors=(result,))
    return replace(row, outcome=result.status, note=result.why)


def _count_targets(plan: Plan, targets: Sequence[TargetRow]) -> dict[str, int]:
    found = Counter(row.outcome for row in targets)
    counts = {str(outcome): found[outcome] for outcome in _COUNTED}
    return {**counts, "unchanged": counts["unchanged"] + plan.trusted, "unresolved": len(plan.problems)}


def _count_orphans(orphans: Sequence[OrphanRow]) -> dict[str, int]:
    """Return the numbers of removed tags, of failed removals, and of further orphaned tags."""
    found = Counter(row.outcome for row in orphans)
    return {
        "removed": found["removed"],
        "not_removed": sum(found[outcome] for outcome in ("gone", "changed", "shared", "failed")),
        "orphaned": sum(found[outcome] for outcome in ("kept", "held", "planned")),
        "held": found["held"],
        "unowned": found["unowned"],
    }


def _count_content(plan: Plan, stats: TransferStats) -> dict[str, int]:
    """Return the transferred bytes, and the numbers and bytes of existing and mounted blobs."""
    return {
        "fetched_bytes": stats.received,
        "sent_bytes": stats.sent,
        # Manifests are in the store because the plan was made with them.
        "stored": plan.cost.stored,
        "stored_bytes": plan.cost.stored_bytes,
        "mounted": stats.mounted,
        "mounted_bytes": stats.mounted_bytes,
        "existed": stats.existed,
        "existed_bytes": stats.existed_bytes,
    }
