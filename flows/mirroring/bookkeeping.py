"""What a mirror run writes into its lock file: before it changes anything, and once it is known what came of it. No Prefect."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from flows.mirroring.lock import Locked, Records
from flows.mirroring.plan import Plan, Step
from flows.mirroring.report import MirrorReport
from ocispec import Digest, Reference
from tasks.removal import Removed


def intended(plan: Plan, locked: Records) -> dict[Reference, Locked]:
    """The records of what a run is about to bring, kept before it does: a run that is killed leaves no tag that nobody owns."""
    return {step.target: _record(step, locked, mirrored=None, referrers={}) for step in plan.steps if step.is_due}


def confirmed(report: MirrorReport, locked: Records) -> dict[Reference, Locked]:
    """The records of what is at its target after a run, and of what is wanted no longer."""
    now, brought = datetime.now(UTC), report.brought
    there = [step for step in report.plan.steps if report.result(step) in ("added", "changed", "same")]
    records = {
        step.target: _record(step, locked, mirrored=now, referrers=brought.referrers.get(step.target, {})) for step in there
    }
    gone = dropped(report, locked)
    left = (extra for extra in report.plan.extras if extra.target not in gone)
    records |= {extra.target: replace(extra.record, unwanted=extra.since) for extra in left}
    missed = (step.target for step in report.plan.steps if step.is_due and step.target not in records)
    return records | {target: locked[target] for target in missed if target in locked}  # as it was before `intended`


def dropped(report: MirrorReport, locked: Records) -> frozenset[Reference]:
    """The targets that are not the mirror's: removed, found to be another's, or meant to be made and not made."""
    gone = (target for target, told in report.removed.items() if isinstance(told, Removed) and told.status != "shared")
    unmade = (
        step.target
        for step in report.plan.steps
        if step.is_due and report.result(step) in ("failed", "vetoed") and step.target not in locked
    )
    return frozenset((*gone, *unmade))


def _record(step: Step, locked: Records, *, mirrored: datetime | None, referrers: Mapping[Digest, str | None]) -> Locked:
    """What is known of a step's target; `referrers` are those that came along beside those that were known."""
    if step.new is None:
        raise ValueError(f"{step.target}: a step that failed has no record")
    known = locked.get(step.target)
    same = known is not None and known.digest == step.new.digest
    return Locked(
        source=str(step.wish.source),
        digest=step.new.digest,
        mirrored=known.mirrored if known is not None and same and known.mirrored is not None else mirrored,
        own=step.change == "add" or (known is not None and known.own),
        platforms=step.wish.entry.platforms,
        referrers={**(known.referrers if known is not None and same else {}), **referrers},
    )
