"""The records of a mirror run in the lock file: intentions before the run changes a target, then results and pending changes.

Several runs may share the file. Records of another run stay, also if written after the current run read the file.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from prefect_dist.mirror.lock import NO_REFERRERS, Locked, Pending, Records
from prefect_dist.mirror.plan import Plan, TargetAction
from prefect_dist.mirror.results import MirrorResults
from prefect_dist.ocispec import Digest, Reference
from prefect_dist.transfer.removal import Removed

# The tag of each referrer, None if the registry lists it.
Referrers = Mapping[Digest, str | None]


def record_intent(plan: Plan, locked: Records) -> Records:
    """Return the records with an intention for each image before publication: a killed run leaves no tag without a record."""
    intentions = {action.target: _intention(action, locked) for action in plan.actions if action.is_due}
    return _wanted_again(plan, {**locked, **intentions})


def record_results(plan: Plan, results: MirrorResults, replaced: Records, locked: Records) -> Records:
    """Return the records after a run: of each up-to-date target, and of orphaned tags.

    `replaced` are the records before the run wrote intentions. A failed target gets the replaced record back. Without a
    replaced record, the intention stays if the registry may have set the tag, so that a later run can prune the tag.
    """
    records, now = dict(locked), datetime.now(UTC)
    for action in plan.actions:
        outcome, known = results.outcome(action), replaced.get(action.target)
        if outcome in ("added", "changed", "unchanged") or action.target in results.referrers:
            referrers = _merge(action.target_referrers, results.referrers.get(action.target, {}))
            record = _record(action, locked, mirrored=now, referrers=referrers)
            is_compared = outcome != "failed" and not results.is_stopped and action.target not in results.interrupted
            record = replace(record, related=action.item.related.options if is_compared else None)
            if record != locked.get(action.target):  # a second instance of an equal record takes memory
                records[action.target] = record
        elif action.is_due and locked.get(action.target) == _intention(action, replaced):
            if known is not None:
                records[action.target] = known
            elif action.target not in results.begun:
                del records[action.target]
    for orphan in plan.orphans:
        removed = results.removed.get(orphan.target)
        if orphan.since is None or locked.get(orphan.target) != orphan.record:
            continue
        if isinstance(removed, Removed) and removed.status != "shared":  # removed, or someone else's tag
            del records[orphan.target]
        else:
            records[orphan.target] = replace(orphan.record, unwanted=orphan.since)
    _follow_moved_tags(records, results.referrers)
    return _with_wanted_referrers(_wanted_again(plan, records), plan)


def note_changes(plan: Plan, now: datetime, pending: Pending) -> Pending:
    """Return the pending changes with the due changes of a plan, which a run found at `now`. Earlier times stay."""
    return {**{action.target: now for action in plan.actions if action.is_due}, **pending}


def settle_changes(plan: Plan, results: MirrorResults, pending: Pending) -> Pending:
    """Return the changes that are still pending after a run.

    A change is no longer pending if the target has the image, if a gate vetoed the image, or if no entry selects the image any
    more. If the images of an entry are unknown, or the run was stopped, changes outside the plan stay pending.
    """
    outcomes = {action.target: results.outcome(action) for action in plan.actions if action.target in pending}
    unknown = "failed" if plan.problems or results.is_stopped else "unchanged"
    return {target: since for target, since in pending.items() if outcomes.get(target, unknown) == "failed"}


def _wanted_again(plan: Plan, records: Records) -> Records:
    """Return all records, with `unwanted` cleared for each tag of the plan, including failed tags."""
    wanted = (action.target for action in plan.actions if action.target in records)
    again = {target: replace(records[target], unwanted=None) for target in wanted if records[target].unwanted is not None}
    return {**records, **again} if again else records


def _follow_moved_tags(records: dict[Reference, Locked], referrers: Mapping[Reference, Referrers]) -> None:
    """Correct the records that have an old digest for a digest tag that the run pushed.

    The record of the digest tag gets the new digest. Records of images lose the old referrer: the next run with the image and
    referrers finds the new referrer.
    """
    tagged = {
        (target.locator, tag): digest
        for target, pushed in referrers.items()
        for digest, tag in pushed.items()
        if tag is not None
    }
    locators = {locator for locator, _ in tagged}
    for target, record in records.items():
        if target.locator not in locators:
            continue
        digest = tagged.get((target.locator, target.tag or ""), record.digest)
        current = {
            one: tag for one, tag in record.referrers.items() if tag is None or tagged.get((target.locator, tag), one) == one
        }
        if digest != record.digest or len(current) != len(record.referrers):
            records[target] = replace(record, digest=digest, referrers=current)


def _with_wanted_referrers(records: Records, plan: Plan) -> Records:
    """Return all records, with `unwanted` cleared for the digest tags of wanted images."""
    orphans = {one.target for one in plan.orphans}
    wanted = {
        f"{target.locator}:{tag}"
        for target, record in records.items()
        if record.unwanted is None and target not in orphans
        for tag in record.referrers.values()
        if tag is not None
    }
    again = {target: replace(record, unwanted=None) for target, record in records.items() if str(target) in wanted}
    return {**records, **again} if again else records


def _merge(known: Referrers, new: Referrers) -> Referrers:
    """Return the known and the new referrers. A tag has only the new digest."""
    if not known and not new:
        return NO_REFERRERS
    tags = set(new.values()) - {None}
    return {**{digest: tag for digest, tag in known.items() if tag not in tags}, **new}


def _intention(action: TargetAction, locked: Records) -> Locked:
    """Return the record of a target before publication, with the digest of the previous publication by the mirror."""
    known = locked.get(action.target)
    record = replace(_record(action, locked, mirrored=None, referrers={}), related=None if known is None else known.related)
    return replace(record, replaces=_replaced_digest(action, known)) if record.mirrored is None else record


def _replaced_digest(action: TargetAction, known: Locked | None) -> Digest | None:
    """Return the current digest at the target, None for a foreign digest and for an unchanged digest."""
    if known is None or action.old is None or action.new is None or action.old.digest == action.new.digest:
        return None
    return action.old.digest if action.old.digest in (known.digest, known.replaces) else None


def _record(action: TargetAction, locked: Records, *, mirrored: datetime | None, referrers: Referrers) -> Locked:
    """Return the record of the target of an action, with the previous referrers and `referrers`."""
    if action.new is None:
        raise ValueError(f"{action.target}: an action that failed has no record")
    known, source = locked.get(action.target), str(action.item.source)
    same = known is not None and known.digest == action.new.digest
    return Locked(
        source=known.source if known is not None and known.source == source else source,  # one instance of equal texts
        digest=action.new.digest,
        mirrored=known.mirrored if known is not None and same and known.mirrored is not None else mirrored,
        own=action.change == "add" or (known is not None and known.own),
        platforms=action.item.entry.platforms,
        rewritten=action.item.entry.rewrite_index,
        single=action.item.entry.single,
        referrers=_merge(known.referrers if known is not None and same else {}, referrers),
    )
