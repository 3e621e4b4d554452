"""The records that a mirror run writes into its lock file: before it changes a target, and when the results are known.

Other runs may share the file: the records that they wrote after this run read it stay.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from prefect_dist.mirror.lock import Locked, Records
from prefect_dist.mirror.plan import Plan, TargetAction
from prefect_dist.mirror.results import MirrorResults
from prefect_dist.ocispec import Digest, Reference
from prefect_dist.transfer.removal import Removed

# The tag of each referrer, None if the registry lists it.
Referrers = Mapping[Digest, str | None]


def record_intent(plan: Plan, locked: Records) -> Records:
    """Return the records plus those of all images that are about to be published: a killed run leaves no tag without one."""
    intentions = {action.target: _intention(action, locked) for action in plan.actions if action.is_due}
    return _wanted_again(plan, {**locked, **intentions})


def record_results(plan: Plan, results: MirrorResults, replaced: Records, locked: Records) -> Records:
    """Return the records after a run: of each target that has its image, and of orphaned tags.

    `replaced` are the records that the run replaced by its intentions. A target that did not get its image gets this record
    back. If there was no record, the intention stays if the tag may have been set, so that a later run can prune the tag.
    """
    records, now = dict(locked), datetime.now(UTC)
    for action in plan.actions:
        outcome, known = results.outcome(action), replaced.get(action.target)
        if outcome in ("added", "changed", "unchanged") or action.target in results.referrers:
            referrers = _merge(action.target_referrers, results.referrers.get(action.target, {}))
            record = _record(action, locked, mirrored=now, referrers=referrers)
            is_compared = outcome != "failed" and not results.is_stopped
            records[action.target] = replace(record, related=action.item.related.options if is_compared else None)
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


def _wanted_again(plan: Plan, records: Records) -> Records:
    """Return the records with `unwanted` removed from each tag that this run wants, even if it fails."""
    wanted = {action.target for action in plan.actions if action.target in records}
    return {**records, **{target: replace(records[target], unwanted=None) for target in wanted}}


def _follow_moved_tags(records: dict[Reference, Locked], referrers: Mapping[Reference, Referrers]) -> None:
    """Correct the records in which a digest tag that this run pushed has another digest.

    The own record of such a tag gets the new digest. From records of images the old referrer is dropped: the next run that
    wants the image with its referrers finds the new one.
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
    """Return the records without the times since when digest tags were unwanted that are referrers of wanted images."""
    orphans = {one.target for one in plan.orphans}
    wanted = {
        f"{target.locator}:{tag}"
        for target, record in records.items()
        if record.unwanted is None and target not in orphans
        for tag in record.referrers.values()
        if tag is not None
    }
    again = {target: replace(record, unwanted=None) for target, record in records.items() if str(target) in wanted}
    return {**records, **again}


def _merge(known: Referrers, new: Referrers) -> dict[Digest, str | None]:
    """Return the known referrers and the new ones. A tag has only its new digest."""
    tags = set(new.values()) - {None}
    return {**{digest: tag for digest, tag in known.items() if tag not in tags}, **new}


def _intention(action: TargetAction, locked: Records) -> Locked:
    """Return the record of a target before the image is published; it keeps the digest that the mirror published before."""
    known = locked.get(action.target)
    record = replace(_record(action, locked, mirrored=None, referrers={}), related=None if known is None else known.related)
    return replace(record, replaces=_replaced_digest(action, known)) if record.mirrored is None else record


def _replaced_digest(action: TargetAction, known: Locked | None) -> Digest | None:
    """Return the digest that the target has, None if this mirror did not publish it or it stays."""
    if known is None or action.old is None or action.new is None or action.old.digest == action.new.digest:
        return None
    return action.old.digest if action.old.digest in (known.digest, known.replaces) else None


def _record(action: TargetAction, locked: Records, *, mirrored: datetime | None, referrers: Referrers) -> Locked:
    """Return the record of the target of an action. `referrers` are added to those of the record before."""
    if action.new is None:
        raise ValueError(f"{action.target}: an action that failed has no record")
    known = locked.get(action.target)
    same = known is not None and known.digest == action.new.digest
    return Locked(
        source=str(action.item.source),
        digest=action.new.digest,
        mirrored=known.mirrored if known is not None and same and known.mirrored is not None else mirrored,
        own=action.change == "add" or (known is not None and known.own),
        platforms=action.item.entry.platforms,
        rewritten=action.item.entry.rewrite_index,
        single=action.item.entry.single,
        referrers=_merge(known.referrers if known is not None and same else {}, referrers),
    )
