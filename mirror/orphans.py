"""Finds orphaned tags, which the mirror created and no entry selects any more, and decides about their removal."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from prefect_dist.mirror.claims import EntryIndex
from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.lock import Records
from prefect_dist.mirror.plan import OrphanTag, Plan, PlannedImage
from prefect_dist.ocispec import Digest, Reference
from prefect_dist.ocispec.referrers import cosign_tags, is_fallback_tag

# A message names at most this many repositories.
_MOST_NAMED = 4
# The referrers of targets, each with its tag, or None if the registry lists the referrer.
PushedReferrers = Mapping[Reference, Mapping[Digest, str | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphans:
    """The orphaned tags, and a note for each entry whose source repositories were emptied, by the place of the entry."""

    tags: tuple[OrphanTag, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)


def find_orphans(
    images: Iterable[PlannedImage],
    trusted: Iterable[Reference],
    entries: Sequence[Entry],
    locked: Records,
    *,
    held: Collection[str] = (),
    selected: Collection[tuple[str, str]] = (),
) -> Orphans:
    """Return the orphaned tags, the longest unwanted first.

    The entries want the targets of `images`, the `trusted` targets, and the digest tags of both. Fallback tags of referrers are
    no orphans: a target may list further referrers under a fallback tag. A tag that no entry can have created stays, because
    the entries of another run may share the lock file.

    `held` has the places of entries with tags that stay. `selected` has pairs of the place of an entry and the locator of a
    source repository with a selected tag. The tags of a repository without a selected tag stay: the source may be emptied.

    The limit on removals applies to the run: a tag is due if fewer tags are due before the tag than the entry allows, counted
    over the tags of any entries.
    """
    now, wanted, index = datetime.now(UTC), _WantedTargets(images, trusted, locked), EntryIndex(entries)
    unwanted = [
        (target, record)
        for target, record in locked.items()
        if record.own and not is_fallback_tag(target.tag or "") and not wanted.has(target)
    ]
    retention, tags, due = _Retention(held, selected), list[OrphanTag](), 0
    for target, record in sorted(unwanted, key=lambda item: (item[1].unwanted or now, str(item[0]))):
        source = Reference.parse(record.source)
        origins, since = list(index.find_all(target, source)), record.unwanted or now
        if not origins:
            tags.append(OrphanTag(target=target, record=record, since=None, most=None, is_due=False))
        elif not retention.keeps(origins, source):
            prune = origins[0].prune
            most = prune.most if prune is not None and prune.is_over(since, now=now) else None
            is_due = most is not None and due < most
            due += is_due
            tags.append(OrphanTag(target=target, record=record, since=since, most=most, is_due=is_due))
    return Orphans(tags=tuple(tags), notes=retention.notes)


def exclude_pushed(plan: Plan, referrers: PushedReferrers) -> Plan:
    """Return the plan without the orphaned tags under which the run pushed `referrers`."""
    tags = {f"{target.locator}:{tag}" for target, pushed in referrers.items() for tag in pushed.values()}
    return replace(plan, orphans=tuple(orphan for orphan in plan.orphans if str(orphan.target) not in tags))


def collect_known_tags(plan: Plan, locked: Records, referrers: PushedReferrers) -> dict[str, frozenset[str]]:
    """Return the tags of the plan, of the lock file and of pushed `referrers`, by repository. Some tags may not exist."""
    found = defaultdict[str, set[str | None]](set)
    backups = (action.backup for action in plan.actions if action.backup is not None)
    for target in (*locked, *(action.target for action in plan.actions), *backups):
        found[target.locator].add(target.tag)
    related = [*referrers.items(), *((action.target, action.target_referrers) for action in plan.actions)]
    related += ((target, record.referrers) for target, record in locked.items())
    for target, tags in related:
        found[target.locator].update(tags.values())
    return {locator: frozenset(tag for tag in tags if tag is not None) for locator, tags in found.items()}


class _WantedTargets:
    """The targets that a run wants: the targets of images, and the digest tags of referrers."""

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
        return target in self._targets or str(target) in self._digest_tags

    def _add_digest_tags(self, image: PlannedImage) -> None:
        """Add each digest tag that the manifests of an image can have."""
        known = {one.digest for one in (*image.content, *image.sent) if one.is_manifest}
        for action in image.actions:
            digests = known | image.referrers | ({action.new.digest} if action.new is not None else set())
            self._digest_tags.update(f"{action.target.locator}:{tag}" for digest in digests for tag in cosign_tags(digest))


class _Retention:
    """Keeps unwanted tags of emptied source repositories, and collects these repositories."""

    def __init__(self, held: Collection[str], selected: Collection[tuple[str, str]]) -> None:
        self._held, self._selected = held, selected
        self._emptied: dict[str, tuple[Entry, set[str]]] = {}

    def keeps(self, origins: Sequence[Entry], source: Reference) -> bool:
        """Return whether an unwanted tag is kept. `origins` are the entries that can have mirrored the tag from `source`."""
        if any(entry.at in self._held for entry in origins):
            return True
        if any((entry.at, source.locator) in self._selected for entry in origins):
            return False
        takers = [one for one in origins if one.type == "registry" and one.repositories.holds(source.repository)]
        for entry in takers[:1]:
            self._emptied.setdefault(entry.at, (entry, set()))[1].add(source.locator)
        return bool(takers)

    @property
    def notes(self) -> dict[str, str]:
        """Return a line for each entry with emptied source repositories, by the place of the entry."""
        return {at: f"{at}: {_describe_emptied(entry, found)}" for at, (entry, found) in self._emptied.items()}


def _describe_emptied(entry: Entry, locators: Collection[str]) -> str:
    shown = sorted(locators)[:_MOST_NAMED]
    more = f" and {len(locators) - len(shown)} more" if len(locators) > len(shown) else ""
    note = f"no tag of {', '.join(shown)}{more} is selected any more"
    if entry.prune is None:
        return note
    return f"{note}, so their tags at the target are not pruned; to prune them, exclude the repositories with repos.deny"
