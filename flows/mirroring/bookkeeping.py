"""What a mirror run writes into its lock file: before it changes anything, and once it is known what came of it. No Prefect.

Other runs may have the file, too: what they wrote since this one read it stays.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from flows.mirroring.lock import Locked, Records
from flows.mirroring.plan import Plan, Step
from flows.mirroring.report import MirrorReport
from ocispec import Digest
from tasks.removal import Removed


def intended(plan: Plan, locked: Records) -> Records:
    """The records once those are among them that a run is about to bring: one that is killed leaves no tag that nobody owns."""
    return {**locked, **{step.target: _intention(step, locked) for step in plan.steps if step.is_due}}


def concluded(report: MirrorReport, before: Records, locked: Records) -> Records:
    """The records after a run: of what is at its target, and of what is wanted no longer.

    `before` is what the run began with. What was meant to be brought and was not is as it was then.
    """
    records, now, brought = dict(locked), datetime.now(UTC), report.brought
    for step in report.plan.steps:
        result, known = report.result(step), before.get(step.target)
        if result in ("added", "changed", "same"):
            referrers = {**step.beside, **brought.referrers.get(step.target, {})}
            records[step.target] = _record(step, locked, mirrored=now, referrers=referrers)
        elif step.is_due and locked.get(step.target) == _intention(step, before):
            if known is not None:
                records[step.target] = known
            elif result in ("failed", "vetoed"):
                del records[step.target]
    for extra in report.plan.extras:
        told = report.removed.get(extra.target)
        if locked.get(extra.target) != extra.record:
            continue
        if isinstance(told, Removed) and told.status != "shared":  # removed, or found to be another's
            del records[extra.target]
        else:
            records[extra.target] = replace(extra.record, unwanted=extra.since)
    return records


def _intention(step: Step, locked: Records) -> Locked:
    return _record(step, locked, mirrored=None, referrers={})


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
        rewritten=step.wish.entry.rewrite_index,
        single=step.wish.entry.single,
        referrers={**(known.referrers if known is not None and same else {}), **referrers},
    )
