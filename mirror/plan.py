"""The plan of a mirror run: the action for each image at each target, and the cost of all of them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

from prefect_dist.mirror.claims import Claims
from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.entry_index import EntryIndex
from prefect_dist.mirror.lock import Locked, Records
from prefect_dist.mirror.retention import Retention
from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.errors import DistError, InvalidInput
from prefect_dist.ocispec.referrers import cosign_tags, is_fallback_tag
from prefect_dist.ocispec.units import format_count, size
from prefect_dist.remotes import Quota
from prefect_dist.transfer.related import Related
from prefect_dist.transfer.survey import ImageInfo, ImageQuery, QueryResult

Change = Literal["add", "change", "repair", "same", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SyncItem:
    """An image that an entry wants at some targets."""

    entry: Entry
    source: Reference
    targets: tuple[Reference, ...]

    def query(self, locked: Records) -> ImageQuery:
        """Return the query that a survey answers about the image."""
        return ImageQuery(
            source=self.source,
            targets=self.targets,
            platforms=self.entry.platforms,
            rewritten=self.entry.rewrite_index,
            single=self.entry.single,
            related=self.related,
            verified=frozenset(digest for target in self.targets for digest in _recorded_referrers(locked.get(target))),
            unrecorded=frozenset(target for target in self.targets if target not in locked),
            dated=self.entry.tags.created is not None,
            whole=self.is_judged_again,
            force=any(self.is_wider(locked.get(target)) for target in self.targets),
            settled=self._settled_for_survey(locked),
        )

    @property
    def is_judged_again(self) -> bool:
        """Return whether the gate judges the image even if it is at its targets."""
        return self.entry.gate is not None and self.entry.gate.existing

    def settled_digest(self, locked: Records) -> Digest | None:
        """Return the digest of an immutable tag that was mirrored to all targets, from this source and with these options."""
        tag, immutable = self.source.tag, self.entry.tags.immutable
        if tag is None or not immutable.holds(tag):
            return None
        records = [locked.get(target) for target in self.targets]
        digests = {record.digest if record is not None and self._has_same_options(record) else None for record in records}
        return digests.pop() if len(digests) == 1 else None

    def _settled_for_survey(self, locked: Records) -> Digest | None:
        """Return the settled digest for a survey; None if it has to read a rewritten index, which the source does not have."""
        needs_root = bool(self.related) or self.entry.tags.created is not None or self.is_judged_again
        return None if self.entry.rewrite_index and needs_root else self.settled_digest(locked)

    def _has_same_options(self, record: Locked) -> bool:
        """Return whether a target has, by its record, what this entry would mirror if the source is unchanged."""
        entry = self.entry
        is_same = (record.source, record.single, record.rewritten) == (str(self.source), entry.single, entry.rewrite_index)
        if record.mirrored is None or record.unwanted is not None or not is_same:
            return False
        return record.platforms == entry.platforms if entry.rewrite_index else not self.is_wider(record)

    def is_wider(self, record: Locked | None) -> bool:
        """Return whether more platforms of an unchanged index are wanted than a target has."""
        if record is None or record.platforms is None or self.entry.rewrite_index:
            return False
        return self.entry.platforms is None or not set(self.entry.platforms) <= set(record.platforms)

    @property
    def related(self) -> Related:
        """Return the options for the related manifests that are mirrored with the image."""
        entry = self.entry
        return Related(listed=entry.referrers, tagged=entry.digest_tags, filters=entry.referrer_filters)


def _recorded_referrers(record: Locked | None) -> Iterable[Digest]:
    return () if record is None else record.referrers.keys()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TargetAction:
    """The action for an image at one target.

    Attributes:
        old: the root that the target has now.
        new: the root that the target gets.
        target_referrers: the referrers that the target has now and that no record lists, with their tags.
        note: the reason for a change that the digests do not show, or for a failure.
        backup: the name under which the image that the target has now is kept.
    """

    item: SyncItem
    target: Reference
    change: Change
    old: Descriptor | None = None
    new: Descriptor | None = None
    target_referrers: Mapping[Digest, str | None] = field(default_factory=dict)
    note: str | None = None
    backup: Reference | None = None

    @property
    def is_due(self) -> bool:
        """Return whether the image has to be published at the target."""
        return self.change in ("add", "change", "repair")

    @property
    def is_judged(self) -> bool:
        """Return whether the target is up to date and the gate judges the image again."""
        return self.change == "same" and self.item.is_judged_again

    def without_names(self, message: str) -> str:
        """Return a message without the names of source and target, for a table that has them in other columns."""
        return message.removeprefix(f"{self.item.source} to {self.target}: ")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlannedImage:
    """One image, with the action for each of its targets.

    Attributes:
        root: the descriptor that the source resolves to, None if that failed.
        content: all content of the image at its source.
        sent: all content of the image at its targets.
        referrers: the referrers that were found at the source before the plan was made.
    """

    item: SyncItem
    root: Descriptor | None
    content: tuple[Descriptor, ...]
    sent: tuple[Descriptor, ...]
    actions: tuple[TargetAction, ...]
    referrers: frozenset[Digest] = frozenset()

    @property
    def due(self) -> tuple[TargetAction, ...]:
        """Return the actions that publish the image."""
        return tuple(action for action in self.actions if action.is_due)

    @property
    def is_needed(self) -> bool:
        """Return whether its content is needed in the store: for a target, or for its gate."""
        return any(action.is_due or action.is_judged for action in self.actions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unnamed:
    """An image of an entry for which the name of a target is invalid."""

    entry: Entry
    source: Reference
    error: InvalidInput

    def __str__(self) -> str:
        return f"{self.source}: {self.error}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OrphanTag:
    """A tag that the mirror created and that no entry wants any more.

    `since` is the time when a run first found that. It is None if no entry of this run can have created the tag. Another run
    with the same lock file may want it. `most` is the limit on removals per run of a tag whose grace period is over, None for
    any other tag. `is_due` says that the tag is within this limit, if each removal before it succeeds.
    """

    target: Reference
    record: Locked
    since: datetime | None
    most: int | None
    is_due: bool

    @property
    def is_held(self) -> bool:
        """Return whether only the limit keeps the tag in this run."""
        return self.most is not None and not self.is_due

    @property
    def note(self) -> str:
        """Return why the tag is an orphan, and why it stays."""
        if self.since is None:
            return "no entry of this run has this tag"
        more = f"; held back in this run by prune.most ({self.most})" if self.is_held else ""
        if self.is_due:
            more = "; stays if this registry deletes only whole manifests and another tag needs this one: decided at removal"
        return f"no longer wanted since {self.since:%Y-%m-%d}{more}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a run.

    Attributes:
        problems: the errors of entries whose images are not known, by the place of the entry in the configuration.
        idle: a line for each entry that selects no image, or none of some source repositories.
        settled: the number of targets that the lock file answers for without a request.
        missing: the digests that the store lacks.
        unnamed: the images for which the name of a target is invalid.
        is_dry: true if the run only makes the plan.
    """

    images: tuple[PlannedImage, ...]
    orphans: tuple[OrphanTag, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)
    idle: tuple[str, ...] = ()
    settled: int = 0
    missing: frozenset[Digest] = frozenset()
    unnamed: tuple[Unnamed, ...] = ()
    quotas: Mapping[str, Quota] = field(default_factory=dict)
    is_dry: bool = True

    @cached_property
    def actions(self) -> tuple[TargetAction, ...]:
        """Return all actions, in the order of the configuration."""
        return tuple(action for image in self.images for action in image.actions)

    @cached_property
    def due(self) -> tuple[PlannedImage, ...]:
        """Return the images that have to be published at a target, or judged again."""
        return tuple(image for image in self.images if image.is_needed)

    @property
    def errors(self) -> list[str]:
        """Return one line for each entry and each action that cannot be carried out."""
        failed = (action.note for action in self.actions if action.change == "failed" and action.note)
        return list(dict.fromkeys((*self.problems.values(), *map(str, self.unnamed), *failed)))

    def count(self, change: Change) -> int:
        """Return the number of actions of a kind. Settled targets count as `same`."""
        more = {"same": self.settled, "failed": len(self.unnamed)}
        return sum(action.change == change for action in self.actions) + more.get(change, 0)

    @property
    def to_prune(self) -> tuple[OrphanTag, ...]:
        """Return the tags that this run is going to remove, the longest unwanted first."""
        return tuple(orphan for orphan in self.orphans if orphan.is_due)

    @property
    def unowned_orphans(self) -> tuple[OrphanTag, ...]:
        """Return the tags that no entry of this run can have created."""
        return tuple(orphan for orphan in self.orphans if orphan.since is None)

    @property
    def held_orphans(self) -> tuple[OrphanTag, ...]:
        """Return the tags that only the limit per run keeps."""
        return tuple(orphan for orphan in self.orphans if orphan.is_held)

    def without_pushed(self, referrers: Mapping[Reference, Mapping[Digest, str | None]]) -> "Plan":
        """Return the plan without the orphan tags that are among the `referrers` which the run pushed, by target."""
        tags = {f"{target.locator}:{tag}" for target, pushed in referrers.items() for tag in pushed.values()}
        return replace(self, orphans=tuple(orphan for orphan in self.orphans if str(orphan.target) not in tags))

    def known_tags(
        self, locked: Records, referrers: Mapping[Reference, Mapping[Digest, str | None]]
    ) -> dict[str, frozenset[str]]:
        """Return the tags that the run wants or that the lock file has, with backups and digest tags, by repository.

        `referrers` are those that the run pushed, by target. Not every tag exists.
        """
        found = defaultdict[str, set[str | None]](set)
        backups = (action.backup for action in self.actions if action.backup is not None)
        for target in (*locked, *(action.target for action in self.actions), *backups):
            found[target.locator].add(target.tag)
        related = [*referrers.items(), *((action.target, action.target_referrers) for action in self.actions)]
        related += ((target, record.referrers) for target, record in locked.items())
        for target, tags in related:
            found[target.locator].update(tags.values())
        return {locator: frozenset(tag for tag in tags if tag is not None) for locator, tags in found.items()}

    @cached_property
    def to_fetch(self) -> dict[Digest, Descriptor]:
        """Return the distinct content that has to be fetched."""
        wanted = (descriptor for image in self.due for descriptor in image.content)
        return {descriptor.digest: descriptor for descriptor in wanted if descriptor.digest in self.missing}

    @cached_property
    def to_send(self) -> dict[tuple[str, Digest], Descriptor]:
        """Return the distinct content per target registry, which may have some of it."""
        return {
            (action.target.host, descriptor.digest): descriptor
            for image in self.due
            for action in image.due
            for descriptor in image.sent
        }

    @cached_property
    def requests(self) -> int:
        """Return about how many requests the run takes.

        These are one for each fetched descriptor and pushed manifest, one before each tag is set, three for each pushed blob
        and for each tag to remove.
        A target may have a blob already, or mount it, which takes fewer.
        """
        published = sum(descriptor.is_manifest for image in self.due for _ in image.due for descriptor in image.sent)
        published += sum(len(image.due) for image in self.due)
        blobs = {
            (action.target, d.digest) for image in self.due for action in image.due for d in image.sent if not d.is_manifest
        }
        sent = sum(not descriptor.is_manifest for descriptor in self.to_send.values())
        return len(self.to_fetch) + published + len(blobs) + 2 * sent + 3 * len(self.to_prune)

    def pulls_needed(self, host: str) -> int | None:
        """Return the number of pulls from a registry, as Docker Hub counts them: one per image, and per platform of an index.

        None for the plan of a run that is not dry: it has pulled the manifests before the plan was made.
        """
        if not self.is_dry:
            return None
        pulled = ((image, one) for image in self.due for one in image.content if one.is_manifest and one.kind != "index")
        sources = {one.digest: image.item.source.host for image, one in pulled}
        return sum(sources.get(digest) == host for digest in self.to_fetch)

    def summary(self) -> str:
        """Return one line with the counts."""
        parts = [f"{self.count('add')} to add, {self.count('change')} to change, {self.count('same')} same"]
        parts += [f"{failed} cannot be told"] if (failed := self.count("failed") + len(self.problems)) else []
        orphans, unowned = len(self.orphans) - len(self.unowned_orphans), len(self.unowned_orphans)
        parts += [f"{orphans} extra, {len(self.to_prune)} to remove"] if orphans else []
        parts += [f"{unowned} of no entry"] if unowned else []
        parts += [f"{len(self.held_orphans)} held back by prune.most"] if self.held_orphans else []
        fetched, sent = _bytes(self.to_fetch.values()), _bytes(self.to_send.values())
        moved = f"{size(fetched)} to fetch, at most {size(sent)} to send, about {format_count(self.requests, 'request')}"
        moved += ", beside referrers" if any(image.item.related for image in self.due) else ""
        return f"{', '.join(parts)}; {moved}" + "".join(f"; {self._quota(host)}" for host in self.quotas)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON output of the command line."""
        return {
            "images": [*map(_action_json, self.actions), *map(_unnamed_json, self.unnamed)],
            "extra": [
                {
                    "target": str(orphan.target),
                    "digest": str(orphan.record.digest),
                    "since": orphan.since and orphan.since.isoformat(),
                    "remove": orphan.is_due,
                    "held": orphan.is_held,
                }
                for orphan in self.orphans
            ],
            "settled": self.settled,
            "problems": list(self.problems.values()),
            "fetch": {"objects": len(self.to_fetch), "bytes": _bytes(self.to_fetch.values())},
            "send": {"objects": len(self.to_send), "bytes": _bytes(self.to_send.values())},
            "requests": self.requests,
            "quotas": {
                host: {"needed": self.pulls_needed(host), "remaining": quota.remaining, "limit": quota.limit}
                for host, quota in self.quotas.items()
            },
        }

    def table(self) -> list[dict[str, str | int]]:
        """Return one row per failed action, due action and orphan tag, in this order. Unchanged targets are only counted."""
        actions = sorted(
            (action for action in self.actions if action.change != "same"), key=lambda action: action.change != "failed"
        )
        return [*map(_unnamed_row, self.unnamed), *map(_row, actions), *map(_orphan_row, self.orphans)]

    def _quota(self, host: str) -> str:
        quota, needed = self.quotas[host], self.pulls_needed(host)
        if needed is None:
            return f"{host}: still allows {format_count(quota.remaining, 'pull')}"
        short = "; too few" if needed > quota.remaining else ""
        return f"{host}: {needed} of the {format_count(quota.remaining, 'pull')} that it still allows{short}"


def list_sync_items(entry: Entry, sources: Iterable[Reference]) -> tuple[list[SyncItem], list[Unnamed]]:
    """Return the images that an entry selected, with their targets; and those for which the name of a target is invalid."""
    wanted, unnamed = list[SyncItem](), list[Unnamed]()
    for source in sources:
        found = entry.each_target(source)
        unnamed += [Unnamed(entry=entry, source=source, error=one) for one in found if isinstance(one, InvalidInput)]
        if targets := tuple(one for one in found if isinstance(one, Reference)):
            wanted.append(SyncItem(entry=entry, source=source, targets=targets))
    return wanted, unnamed


def distinct(
    wanted: Sequence[SyncItem], claims: Claims, seen: set[tuple[Reference, Reference]]
) -> tuple[list[SyncItem], list[PlannedImage]]:
    """Return the items without repeated ones; and images that fail at targets which contradicting items claim.

    `claims` has the claims of these items and of all others that are known. `seen` has the pairs of source and target of
    earlier items; the pairs of these items are added.
    """
    conflicts = claims.conflicts()
    kept, images = list[SyncItem](), list[PlannedImage]()
    for item in wanted:
        new = tuple(target for target in item.targets if (item.source, target) not in seen)
        seen.update((item.source, target) for target in new)
        if clear := tuple(target for target in new if target not in conflicts):
            kept.append(item if clear == item.targets else replace(item, targets=clear))
        if refused := tuple(target for target in new if target in conflicts):
            actions = tuple(_failed_action(item, target, conflicts[target]) for target in refused)
            images.append(PlannedImage(item=replace(item, targets=refused), root=None, content=(), sent=(), actions=actions))
    return kept, images


def is_trusted(item: SyncItem, locked: Records) -> bool:
    """Return whether an image is settled and the configuration trusts the lock file, so that no request is needed.

    It is not if other referrers or digest tags are wanted than those that were compared last.
    """
    if not item.entry.trust_lock or item.is_judged_again or item.settled_digest(locked) is None:
        return False
    options = item.related.options
    return not options or all(record.related == options for record in (locked[target] for target in item.targets))


def plan_image(item: SyncItem, found: QueryResult, locked: Records) -> PlannedImage | None:
    """Return the plan for an image from the result of its survey; None if the entry does not want images of its date."""
    image, window = found.image, item.entry.tags.created
    if isinstance(image, DistError):
        return fail_image(item, image)
    if window is not None and not window.holds(image.created, now=datetime.now(UTC)):
        return None
    standing = zip(item.targets, found.standing, strict=True)
    actions = tuple(_target_action(item, target, image, there, locked.get(target)) for target, there in standing)
    return PlannedImage(
        item=item, root=image.root, content=image.content, sent=image.sent, actions=actions, referrers=image.referrers
    )


def fail_image(item: SyncItem, error: DistError) -> PlannedImage:
    """Return the plan for an image that fails at all targets."""
    return PlannedImage(
        item=item, root=None, content=(), sent=(), actions=tuple(_failed_action(item, target, error) for target in item.targets)
    )


def find_orphans(
    images: Iterable[PlannedImage],
    trusted: Iterable[Reference],
    entries: Sequence[Entry],
    locked: Records,
    *,
    retention: Retention | None = None,
) -> tuple[OrphanTag, ...]:
    """Return the tags that the mirror created and that no entry wants any more, the longest unwanted first.

    The entries want the targets of `images`, the `trusted` targets, and the digest tags that belong to these. Fallback tags of
    referrers are no orphans either: a target may list referrers of its own there. Tags that `retention` keeps are no orphans.
    A tag that no entry can have created stays: other entries may share the lock file.

    The limit is one for the run: a tag is due if fewer tags than its entry allows are due before it, whichever entries these
    are from.
    """
    now, wanted, index = datetime.now(UTC), _Wanted(images, trusted, locked), EntryIndex(entries)
    made = ((target, record) for target, record in locked.items() if record.own and not is_fallback_tag(target.tag or ""))
    unwanted = [(target, record) for target, record in made if not wanted.has(target)]
    retention = retention or Retention()
    found, due = list[OrphanTag](), 0
    for target, record in sorted(unwanted, key=lambda item: (item[1].unwanted or now, str(item[0]))):
        made_by, since = list(index.all(target, record)), record.unwanted or now
        if not made_by:
            found.append(OrphanTag(target=target, record=record, since=None, most=None, is_due=False))
            continue
        if retention.keeps(made_by, Reference.parse(record.source)):
            continue
        prune = made_by[0].prune
        most = prune.most if prune is not None and prune.is_over(since, now=now) else None
        is_due = most is not None and due < most
        due += is_due
        found.append(OrphanTag(target=target, record=record, since=since, most=most, is_due=is_due))
    return tuple(found)


class _Wanted:
    """The targets that a run wants: those of its images, and the digest tags of their referrers."""

    def __init__(self, images: Iterable[PlannedImage], trusted: Iterable[Reference], locked: Records) -> None:
        self._targets, self._digest_tags = set(trusted), set[str]()
        for image in images:
            self._targets.update(action.target for action in image.actions)
            if image.item.related.tagged:
                self._add_digest_tags(image)
        for target in self._targets:
            if (record := locked.get(target)) is not None:
                self._digest_tags.update(f"{target.locator}:{tag}" for tag in record.referrers.values() if tag is not None)

    def has(self, target: Reference) -> bool:
        """Return whether the run wants a target."""
        return target in self._targets or str(target) in self._digest_tags

    def _add_digest_tags(self, image: PlannedImage) -> None:
        """Add all digest tags that the manifests of an image can have."""
        known = {one.digest for one in (*image.content, *image.sent) if one.is_manifest}
        for action in image.actions:
            digests = known | image.referrers | ({action.new.digest} if action.new is not None else set())
            self._digest_tags.update(f"{action.target.locator}:{tag}" for digest in digests for tag in cosign_tags(digest))


def with_backup(action: TargetAction) -> TargetAction:
    """Return the action with the name of its backup, if the entry wants one; a failed action if that name is invalid."""
    is_overwritten = action.change == "repair" or (action.change == "change" and action.old != action.new)
    if not is_overwritten:
        return action
    try:
        return replace(action, backup=action.item.entry.backup_of(action.item.source, action.target))
    except InvalidInput as exc:
        return _failed_action(action.item, action.target, exc)


def _target_action(
    item: SyncItem, target: Reference, image: ImageInfo, there: Descriptor | DistError | None, record: Locked | None
) -> TargetAction:
    if isinstance(there, DistError):
        return _failed_action(item, target, there)
    if there is None:
        return TargetAction(item=item, target=target, change="add", new=image.target_root)
    target_referrers = image.target_referrers.get(target, {})
    note = _reason_to_change(item, image, there, record, target_referrers)
    if note is None:
        return TargetAction(
            item=item, target=target, change="same", old=there, new=image.target_root, target_referrers=target_referrers
        )
    return with_backup(
        TargetAction(item=item, target=target, change="change", old=there, new=image.target_root, note=note or None)
    )


def _reason_to_change(
    item: SyncItem, image: ImageInfo, there: Descriptor, record: Locked | None, target_referrers: Mapping[Digest, str | None]
) -> str | None:
    """Return why a target has to be changed, empty if its digest shows that, or None if it need not be."""
    if there.digest != image.target_root.digest:
        return ""
    if item.is_wider(record):
        return "for more platforms than before"
    new = len(image.referrers.difference(target_referrers if record is None else record.referrers))
    return f"{format_count(new, 'referrer')} not known to be there" if new else None


def _failed_action(item: SyncItem, target: Reference, error: object) -> TargetAction:
    message = str(error).removeprefix(f"{target}: ")
    return TargetAction(item=item, target=target, change="failed", note=f"{item.source} to {target}: {message}")


def _bytes(descriptors: Iterable[Descriptor]) -> int:
    return sum(descriptor.size for descriptor in descriptors)


def _digest(descriptor: Descriptor | None) -> str | None:
    return None if descriptor is None else str(descriptor.digest)


def _action_json(action: TargetAction) -> dict[str, Any]:
    return {
        "source": str(action.item.source),
        "target": str(action.target),
        "change": action.change,
        "old": _digest(action.old),
        "new": _digest(action.new),
        "note": action.note,
    }


def _unnamed_json(unnamed: Unnamed) -> dict[str, Any]:
    source, note = str(unnamed.source), str(unnamed.error)
    return {"source": source, "target": None, "change": "failed", "old": None, "new": None, "note": note}


def _row(action: TargetAction) -> dict[str, str | int]:
    return {
        "image": str(action.item.source),
        "target": str(action.target),
        "change": action.change,
        "from": action.old.digest.short if action.old else "",
        "to": action.new.digest.short if action.new else "",
        "note": action.without_names(action.note or ""),
    }


def _unnamed_row(unnamed: Unnamed) -> dict[str, str | int]:
    note = str(unnamed.error)
    return {"image": str(unnamed.source), "target": "", "change": "failed", "from": "", "to": "", "note": note}


def _orphan_row(orphan: OrphanTag) -> dict[str, str | int]:
    return {
        "image": orphan.record.source,
        "target": str(orphan.target),
        "change": "remove" if orphan.is_due else "extra" if orphan.since is not None else "not owned",
        "from": orphan.record.digest.short,
        "to": "",
        "note": orphan.note,
    }
