"""Plans an image: the query about the image, and the action for each target by the result of the query.

The action depends on the registries, and on the records of earlier runs in the lock file.
"""

from dataclasses import replace
from datetime import UTC, datetime

from prefect_dist.mirror.lock import Locked, Records
from prefect_dist.mirror.plan import PlannedImage, SyncItem, TargetAction
from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.errors import DistError, InvalidInput
from prefect_dist.ocispec.units import format_count
from prefect_dist.transfer.survey import NO_REFERRER, ImageInfo, ImageQuery, QueryResult


def is_trusted(item: SyncItem, locked: Records) -> bool:
    """Return whether the lock file makes a request for an image needless: the image is settled and the entry has `trustLock`.

    The image is not trusted if the options for referrers or digest tags changed since the last comparison.
    """
    if not item.entry.trust_lock or item.is_judged_again or _settled_digest(item, locked) is None:
        return False
    options = item.related.options
    return not options or all(locked[target].related == options for target in item.targets)


def make_query(item: SyncItem, locked: Records) -> ImageQuery:
    """Return the query about an image for a survey."""
    entry, records = item.entry, {target: locked.get(target) for target in item.targets}
    is_dated = entry.tags.created is not None
    # A survey that needs the root of a rewritten index has to resolve the source, which has another index.
    needs_root = entry.rewrite_index and (bool(item.related) or is_dated or item.is_judged_again)
    return ImageQuery(
        source=item.source,
        targets=item.targets,
        platforms=entry.platforms,
        rewritten=entry.rewrite_index,
        single=entry.single,
        related=item.related,
        verified=frozenset(digest for record in records.values() if record is not None for digest in record.referrers)
        or NO_REFERRER,
        unrecorded=tuple(target for target, record in records.items() if record is None),
        dated=is_dated,
        whole=item.is_judged_again,
        force=any(_needs_more_platforms(item, record) for record in records.values()),
        settled=None if needs_root else _settled_digest(item, locked),
    )


def plan_image(item: SyncItem, found: QueryResult, locked: Records) -> PlannedImage | None:
    """Return the plan for an image by the result of its query; None if the entry excludes the date of the image."""
    image, window = found.image, item.entry.tags.created
    if isinstance(image, DistError):
        return fail_image(item, image)
    if window is not None and not window.holds(image.created, now=datetime.now(UTC)):
        return None
    standing = zip(item.targets, found.standing, strict=True)
    actions = tuple(_plan_action(item, target, image, there, locked.get(target)) for target, there in standing)
    return PlannedImage(
        item=item, root=image.root, content=image.content, sent=image.sent, actions=actions, referrers=image.referrers
    )


def fail_image(item: SyncItem, error: DistError) -> PlannedImage:
    """Return the plan for an image that fails at each target."""
    actions = tuple(_fail_action(item, target, error) for target in item.targets)
    return PlannedImage(item=item, root=None, content=(), sent=(), actions=actions)


def with_backup(action: TargetAction) -> TargetAction:
    """Return the action with the name of the backup, if the entry has backups; a failed action for an invalid name."""
    is_overwritten = action.change == "repair" or (action.change == "change" and action.old != action.new)
    if not is_overwritten:
        return action
    try:
        return replace(action, backup=action.item.entry.make_backup_name(action.item.source, action.target))
    except InvalidInput as exc:
        return _fail_action(action.item, action.target, exc)


def _plan_action(
    item: SyncItem, target: Reference, image: ImageInfo, there: Descriptor | DistError | None, record: Locked | None
) -> TargetAction:
    if isinstance(there, DistError):
        return _fail_action(item, target, there)
    if target.pinned_digest() not in (None, image.target_root.digest):
        return _fail_action(
            item,
            target,
            InvalidInput(
                f"the image has the digest {image.target_root.digest}; correct or remove the digest of the target",
                subject=target,
            ),
        )
    if there is None:
        return TargetAction(item=item, target=target, change="add", new=image.target_root)
    known = image.target_referrers.get(target, {})
    note = _reason_to_change(item, target, image, there, record)
    if note is None:
        same = image.target_root if there == image.target_root else there  # one instance of equal descriptors takes less memory
        return TargetAction(
            item=item, target=target, change="unchanged", old=same, new=image.target_root, target_referrers=known
        )
    return with_backup(
        TargetAction(item=item, target=target, change="change", old=there, new=image.target_root, note=note or None)
    )


def _reason_to_change(
    item: SyncItem, target: Reference, image: ImageInfo, there: Descriptor, record: Locked | None
) -> str | None:
    """Return the reason to change a target: empty for another digest, None if the target is up to date."""
    if there.digest != image.target_root.digest:
        return ""
    if target in image.incomplete:
        return "to complete the index at the target"
    if _needs_more_platforms(item, record):
        return "for more platforms than before"
    known = image.target_referrers.get(target, {})
    new = len(image.referrers.difference(known if record is None else record.referrers))
    return f"{format_count(new, 'referrer')} not known to be there" if new else None


def _fail_action(item: SyncItem, target: Reference, error: DistError) -> TargetAction:
    return TargetAction(item=item, target=target, change="failed", error=error.with_traceback(None))


def _settled_digest(item: SyncItem, locked: Records) -> Digest | None:
    """Return the digest of an immutable tag that each target has from the same source, with the same options."""
    tag, immutable = item.source.tag, item.entry.tags.immutable
    if tag is None or not immutable.holds(tag):
        return None
    records = [locked.get(target) for target in item.targets]
    digests = {record.digest if record is not None and _is_up_to_date(item, record) else None for record in records}
    return digests.pop() if len(digests) == 1 else None


def _is_up_to_date(item: SyncItem, record: Locked) -> bool:
    """Return whether a target has, by its record, the image of an unchanged source with the options of the entry."""
    entry = item.entry
    is_same = (record.source, record.single, record.rewritten) == (str(item.source), entry.single, entry.rewrite_index)
    if record.mirrored is None or record.unwanted is not None or not is_same:
        return False
    return record.platforms == entry.platforms if entry.rewrite_index else not _needs_more_platforms(item, record)


def _needs_more_platforms(item: SyncItem, record: Locked | None) -> bool:
    """Return whether the entry selects more platforms of an unchanged index than the target has."""
    if record is None or record.platforms is None or item.entry.rewrite_index:
        return False
    return item.entry.platforms is None or not set(item.entry.platforms) <= set(record.platforms)
