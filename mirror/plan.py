"""What a mirror run is going to do: each image at each of its targets, and what that costs."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

from prefect_dist.mirror.claims import Claims
from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.entry_index import Origins
from prefect_dist.mirror.lock import Locked, Records
from prefect_dist.mirror.retention import Retention
from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.errors import DistError, InvalidInput
from prefect_dist.ocispec.referrers import cosign_tags, is_listing
from prefect_dist.ocispec.units import format_count, size
from prefect_dist.remotes import Quota
from prefect_dist.transfer.related import Related
from prefect_dist.transfer.survey import Ask, Found, Known

Change = Literal["add", "change", "repair", "same", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wish:
    """An image that an entry wants at some targets."""

    entry: Entry
    source: Reference
    targets: tuple[Reference, ...]

    def ask(self, locked: Records) -> Ask:
        """Return the question that a survey has to answer about the image."""
        return Ask(
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
            anew=any(self.is_wider(locked.get(target)) for target in self.targets),
            settled=self._settled(locked),
        )

    @property
    def is_judged_again(self) -> bool:
        """Return whether the gate judges the image even if it is at its targets."""
        return self.entry.gate is not None and self.entry.gate.existing

    def settled(self, locked: Records) -> Digest | None:
        """Return the digest of an immutable tag that was mirrored to all targets, from this source and with these options."""
        tag, immutable = self.source.tag, self.entry.tags.immutable
        if tag is None or not immutable.holds(tag):
            return None
        records = [locked.get(target) for target in self.targets]
        digests = {record.digest if record is not None and self._made(record) else None for record in records}
        return digests.pop() if len(digests) == 1 else None

    def _settled(self, locked: Records) -> Digest | None:
        """Return the same for a survey. A rewritten index is not at the source, so nothing can be read from its digest."""
        needs_root = bool(self.related) or self.entry.tags.created is not None or self.is_judged_again
        return None if self.entry.rewrite_index and needs_root else self.settled(locked)

    def _made(self, record: Locked) -> bool:
        """Return whether a target has, by its record, what this entry would mirror if the source is unchanged."""
        entry = self.entry
        is_same = (record.source, record.single, record.rewritten) == (str(self.source), entry.single, entry.rewrite_index)
        if record.mirrored is None or record.unwanted is not None or not is_same:
            return False
        return record.platforms == entry.platforms if entry.rewrite_index else not self.is_wider(record)

    def is_wider(self, record: Locked | None) -> bool:
        """Whether of an index, which stays as it is, more is wanted than was brought to a target."""
        if record is None or record.platforms is None or self.entry.rewrite_index:
            return False
        return self.entry.platforms is None or not set(self.entry.platforms) <= set(record.platforms)

    @property
    def related(self) -> Related:
        """The related manifests that are mirrored with the image."""
        entry = self.entry
        return Related(listed=entry.referrers, tagged=entry.digest_tags, filters=entry.referrer_filters)


def _recorded_referrers(record: Locked | None) -> Iterable[Digest]:
    return () if record is None else record.referrers.keys()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """An image at one target: what is to be done, and what is there now, `beside` it what is about it and nobody recorded.

    `note` is the reason for a change that the digests do not show, or for a failure. `backup` is the name under which the image
    that is at the target now is kept.
    """

    wish: Wish
    target: Reference
    change: Change
    old: Descriptor | None = None
    new: Descriptor | None = None
    beside: Mapping[Digest, str | None] = field(default_factory=dict)
    note: str | None = None
    backup: Reference | None = None

    @property
    def is_due(self) -> bool:
        """Whether it has to be brought there."""
        return self.change in ("add", "change", "repair")

    @property
    def is_judged(self) -> bool:
        """Whether nothing has to be brought to the target, but the gate is asked about the image that is there."""
        return self.change == "same" and self.wish.is_judged_again

    def without_names(self, told: str) -> str:
        """What is told of it, for who has read what goes where already."""
        return told.removeprefix(f"{self.wish.source} to {self.target}: ")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Image:
    """One image, and what is to be done with it where.

    `root` is what it stands for at its source, None where that could not be told; `content` is what that consists of, `sent`
    what is to be at its targets. `referrers` are those that were found at the source before the plan was made.
    """

    wish: Wish
    root: Descriptor | None
    content: tuple[Descriptor, ...]
    sent: tuple[Descriptor, ...]
    steps: tuple[Step, ...]
    referrers: frozenset[Digest] = frozenset()

    @property
    def due(self) -> tuple[Step, ...]:
        """Where it has to be brought."""
        return tuple(step for step in self.steps if step.is_due)

    @property
    def is_needed(self) -> bool:
        """Whether its content is needed in the store: to bring it to a target, or for its gate."""
        return any(step.is_due or step.is_judged for step in self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unnamed:
    """An image of an entry for which the name of a target is invalid."""

    entry: Entry
    source: Reference
    error: InvalidInput

    def __str__(self) -> str:
        return f"{self.source}: {self.error}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """A tag that the mirror created and that no entry wants any more, `since` when.

    `since` is None if no entry of this run can have created the tag. Another run with the same lock file may want it.
    `most` is the limit on removals per run of a tag whose grace period is over, None for any other tag. `is_due` says that the
    tag is within this limit, if each removal before it succeeds.
    """

    target: Reference
    record: Locked
    since: datetime | None
    most: int | None
    is_due: bool

    @property
    def is_held(self) -> bool:
        """Whether only the limit keeps the tag in this run."""
        return self.most is not None and not self.is_due

    @property
    def note(self) -> str:
        """Return the reason why it is extra, and why it stays."""
        if self.since is None:
            return "no entry of this run has this tag"
        more = f"; held back in this run by prune.most ({self.most})" if self.is_held else ""
        if self.is_due:
            more = "; stays if this registry deletes only whole manifests and another tag needs this one: decided at removal"
        return f"no longer wanted since {self.since:%Y-%m-%d}{more}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run is going to do. `problems` say of which entries nothing can be told, and why, by where they stand.

    `idle` has a line for each entry of which nothing is chosen, or nothing of some source repositories. `settled` counts steps
    that the lock file answers without a request. `missing` is what the store lacks. `unnamed` are images for which the name of
    a target is invalid.
    """

    images: tuple[Image, ...]
    extras: tuple[Extra, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)
    idle: tuple[str, ...] = ()
    settled: int = 0
    missing: frozenset[Digest] = frozenset()
    unnamed: tuple[Unnamed, ...] = ()
    quotas: Mapping[str, Quota] = field(default_factory=dict)
    is_dry: bool = True

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """All of them, in the order of the configuration."""
        return tuple(step for image in self.images for step in image.steps)

    @cached_property
    def due(self) -> tuple[Image, ...]:
        """The images that have to be brought to a target, or judged where they are."""
        return tuple(image for image in self.images if image.is_needed)

    @property
    def errors(self) -> list[str]:
        """What cannot be done, a line each."""
        failed = (step.note for step in self.steps if step.change == "failed" and step.note)
        return list(dict.fromkeys((*self.problems.values(), *map(str, self.unnamed), *failed)))

    def count(self, change: Change) -> int:
        """How many steps are of a kind, those that need no question among the same ones."""
        more = {"same": self.settled, "failed": len(self.unnamed)}
        return sum(step.change == change for step in self.steps) + more.get(change, 0)

    @property
    def pruned(self) -> tuple[Extra, ...]:
        """The tags that this run is going to remove, the longest unwanted first."""
        return tuple(extra for extra in self.extras if extra.is_due)

    @property
    def unowned(self) -> tuple[Extra, ...]:
        """The tags that no entry of this run can have created."""
        return tuple(extra for extra in self.extras if extra.since is None)

    @property
    def held(self) -> tuple[Extra, ...]:
        """The tags that only the limit per run keeps."""
        return tuple(extra for extra in self.extras if extra.is_held)

    def keeping(self, referrers: Mapping[Reference, Mapping[Digest, str | None]]) -> "Plan":
        """Return the plan without those extra tags that are among the `referrers` which the run pushed, by target."""
        tags = {f"{target.locator}:{tag}" for target, pushed in referrers.items() for tag in pushed.values()}
        return replace(self, extras=tuple(extra for extra in self.extras if str(extra.target) not in tags))

    def known_tags(
        self, locked: Records, referrers: Mapping[Reference, Mapping[Digest, str | None]]
    ) -> dict[str, frozenset[str]]:
        """Return the tags that the run wants or that the lock file has, with backups and digest tags, by repository.

        `referrers` are those that the run pushed, by target. Not every tag exists.
        """
        found = defaultdict[str, set[str | None]](set)
        backups = (step.backup for step in self.steps if step.backup is not None)
        for target in (*locked, *(step.target for step in self.steps), *backups):
            found[target.locator].add(target.tag)
        related = [*referrers.items(), *((step.target, step.beside) for step in self.steps)]
        related += ((target, record.referrers) for target, record in locked.items())
        for target, tags in related:
            found[target.locator].update(tags.values())
        return {locator: frozenset(tag for tag in tags if tag is not None) for locator, tags in found.items()}

    @cached_property
    def to_fetch(self) -> dict[Digest, Descriptor]:
        """The distinct content that has to be fetched."""
        wanted = (descriptor for image in self.due for descriptor in image.content)
        return {descriptor.digest: descriptor for descriptor in wanted if descriptor.digest in self.missing}

    @cached_property
    def to_send(self) -> dict[tuple[str, Digest], Descriptor]:
        """The distinct content per target registry, of which that may have some."""
        return {
            (step.target.host, descriptor.digest): descriptor
            for image in self.due
            for step in image.due
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
        blobs = {(step.target, d.digest) for image in self.due for step in image.due for d in image.sent if not d.is_manifest}
        sent = sum(not descriptor.is_manifest for descriptor in self.to_send.values())
        return len(self.to_fetch) + published + len(blobs) + 2 * sent + 3 * len(self.pruned)

    def needed(self, host: str) -> int | None:
        """Return the number of pulls from a registry, as Docker Hub counts them: one per image, and per platform of an index.

        None for the plan of a run that is not dry: it has pulled the manifests before the plan was made.
        """
        if not self.is_dry:
            return None
        pulled = ((image, one) for image in self.due for one in image.content if one.is_manifest and one.kind != "index")
        sources = {one.digest: image.wish.source.host for image, one in pulled}
        return sum(sources.get(digest) == host for digest in self.to_fetch)

    def summary(self) -> str:
        """One line that counts."""
        parts = [f"{self.count('add')} to add, {self.count('change')} to change, {self.count('same')} same"]
        parts += [f"{failed} cannot be told"] if (failed := self.count("failed") + len(self.problems)) else []
        extra, unowned = len(self.extras) - len(self.unowned), len(self.unowned)
        parts += [f"{extra} extra, {len(self.pruned)} to remove"] if extra else []
        parts += [f"{unowned} of no entry"] if unowned else []
        parts += [f"{len(self.held)} held back by prune.most"] if self.held else []
        fetched, sent = _bytes(self.to_fetch.values()), _bytes(self.to_send.values())
        moved = f"{size(fetched)} to fetch, at most {size(sent)} to send, about {format_count(self.requests, 'request')}"
        moved += ", beside referrers" if any(image.wish.related for image in self.due) else ""
        return f"{', '.join(parts)}; {moved}" + "".join(f"; {self._quota(host)}" for host in self.quotas)

    def to_json(self) -> dict[str, Any]:
        """The command line's JSON output."""
        return {
            "images": [*map(_step_json, self.steps), *map(_unnamed_json, self.unnamed)],
            "extra": [
                {
                    "target": str(extra.target),
                    "digest": str(extra.record.digest),
                    "since": extra.since and extra.since.isoformat(),
                    "remove": extra.is_due,
                    "held": extra.is_held,
                }
                for extra in self.extras
            ],
            "settled": self.settled,
            "problems": list(self.problems.values()),
            "fetch": {"objects": len(self.to_fetch), "bytes": _bytes(self.to_fetch.values())},
            "send": {"objects": len(self.to_send), "bytes": _bytes(self.to_send.values())},
            "requests": self.requests,
            "quotas": {
                host: {"needed": self.needed(host), "remaining": quota.remaining, "limit": quota.limit}
                for host, quota in self.quotas.items()
            },
        }

    def table(self) -> list[dict[str, str | int]]:
        """One row per step that failed or is due, in this order, and per tag that is extra; what stays is only counted."""
        steps = sorted((step for step in self.steps if step.change != "same"), key=lambda step: step.change != "failed")
        return [*map(_unnamed_row, self.unnamed), *map(_row, steps), *map(_extra_row, self.extras)]

    def _quota(self, host: str) -> str:
        quota, needed = self.quotas[host], self.needed(host)
        if needed is None:
            return f"{host}: still allows {format_count(quota.remaining, 'pull')}"
        short = "; too few" if needed > quota.remaining else ""
        return f"{host}: {needed} of the {format_count(quota.remaining, 'pull')} that it still allows{short}"


def wishes(entry: Entry, sources: Iterable[Reference]) -> tuple[list[Wish], list[Unnamed]]:
    """The images that an entry selected, with their targets; and those for which the name of a target is invalid."""
    wanted, unnamed = list[Wish](), list[Unnamed]()
    for source in sources:
        found = entry.each_target(source)
        unnamed += [Unnamed(entry=entry, source=source, error=one) for one in found if isinstance(one, InvalidInput)]
        if targets := tuple(one for one in found if isinstance(one, Reference)):
            wanted.append(Wish(entry=entry, source=source, targets=targets))
    return wanted, unnamed


def distinct(wanted: Sequence[Wish], claims: Claims, seen: set[tuple[Reference, Reference]]) -> tuple[list[Wish], list[Image]]:
    """Wishes without repeated ones; and images that fail at targets which are claimed by contradicting wishes.

    `claims` has the claims of these wishes and of all others that are known. `seen` has the pairs of source and target of
    wishes before these, to which the pairs of these are added.
    """
    conflicts = claims.conflicts()
    kept, images = list[Wish](), list[Image]()
    for wish in wanted:
        new = tuple(target for target in wish.targets if (wish.source, target) not in seen)
        seen.update((wish.source, target) for target in new)
        if clear := tuple(target for target in new if target not in conflicts):
            kept.append(wish if clear == wish.targets else replace(wish, targets=clear))
        if refused := tuple(target for target in new if target in conflicts):
            steps = tuple(_failed(wish, target, conflicts[target]) for target in refused)
            images.append(Image(wish=replace(wish, targets=refused), root=None, content=(), sent=(), steps=steps))
    return kept, images


def is_trusted(wish: Wish, locked: Records) -> bool:
    """Return whether an image is settled and the configuration trusts the lock file, so that no request is needed.

    It is not if other referrers or digest tags are wanted than those that were compared last.
    """
    if not wish.entry.trust_lock or wish.is_judged_again or wish.settled(locked) is None:
        return False
    options = wish.related.options
    return not options or all(record.related == options for record in (locked[target] for target in wish.targets))


def decided(wish: Wish, found: Found, locked: Records) -> Image | None:
    """What is to be done with an image, by what was found out about it; None where it was made at another time than wanted."""
    image, window = found.image, wish.entry.tags.created
    if isinstance(image, DistError):
        return failed(wish, image)
    if window is not None and not window.holds(image.created, now=datetime.now(UTC)):
        return None
    standing = zip(wish.targets, found.standing, strict=True)
    steps = tuple(_step(wish, target, image, there, locked.get(target)) for target, there in standing)
    return Image(wish=wish, root=image.root, content=image.content, sent=image.sent, steps=steps, referrers=image.referrers)


def failed(wish: Wish, error: DistError) -> Image:
    """Return the image of a wish that fails at all targets."""
    return Image(
        wish=wish, root=None, content=(), sent=(), steps=tuple(_failed(wish, target, error) for target in wish.targets)
    )


def extras(
    images: Iterable[Image],
    trusted: Iterable[Reference],
    entries: Sequence[Entry],
    locked: Records,
    *,
    retention: Retention | None = None,
) -> tuple[Extra, ...]:
    """Return the tags that the mirror created and that no entry wants any more, the longest unwanted first.

    The entries want the targets of `images`, the `trusted` targets, and the digest tags that belong to these. Fallback tags of
    referrers are not extra either: a target may list referrers of its own there. Tags that `retention` keeps are not extra.
    A tag that no entry can have created stays: other entries may share the lock file.

    The limit is one for the run: a tag is due if fewer tags than its entry allows are due before it, whichever entries these
    are from.
    """
    now, wanted, origins = datetime.now(UTC), _Wanted(images, trusted, locked), Origins(entries)
    made = ((target, record) for target, record in locked.items() if record.own and not is_listing(target.tag or ""))
    unwanted = [(target, record) for target, record in made if not wanted.has(target)]
    retention = retention or Retention()
    found, due = list[Extra](), 0
    for target, record in sorted(unwanted, key=lambda item: (item[1].unwanted or now, str(item[0]))):
        made_by, since = list(origins.each(target, record)), record.unwanted or now
        if not made_by:
            found.append(Extra(target=target, record=record, since=None, most=None, is_due=False))
            continue
        if retention.keeps(made_by, Reference.parse(record.source)):
            continue
        prune = made_by[0].prune
        most = prune.most if prune is not None and prune.is_over(since, now=now) else None
        is_due = most is not None and due < most
        due += is_due
        found.append(Extra(target=target, record=record, since=since, most=most, is_due=is_due))
    return tuple(found)


class _Wanted:
    """The targets that a run wants: those of its images, and the digest tags of their referrers."""

    def __init__(self, images: Iterable[Image], trusted: Iterable[Reference], locked: Records) -> None:
        self._targets, self._digest_tags = set(trusted), set[str]()
        for image in images:
            self._targets.update(step.target for step in image.steps)
            if image.wish.related.tagged:
                self._add_digest_tags(image)
        for target in self._targets:
            if (record := locked.get(target)) is not None:
                self._digest_tags.update(f"{target.locator}:{tag}" for tag in record.referrers.values() if tag is not None)

    def has(self, target: Reference) -> bool:
        """Return whether the run wants a target."""
        return target in self._targets or str(target) in self._digest_tags

    def _add_digest_tags(self, image: Image) -> None:
        """Add all digest tags that the manifests of an image can have."""
        known = {one.digest for one in (*image.content, *image.sent) if one.is_manifest}
        for step in image.steps:
            digests = known | image.referrers | ({step.new.digest} if step.new is not None else set())
            self._digest_tags.update(f"{step.target.locator}:{tag}" for digest in digests for tag in cosign_tags(digest))


def with_backup(step: Step) -> Step:
    """The step with the name of its backup, if there is to be one; a failed step if that name is invalid."""
    is_overwritten = step.change == "repair" or (step.change == "change" and step.old != step.new)
    if not is_overwritten:
        return step
    try:
        return replace(step, backup=step.wish.entry.backup_of(step.wish.source, step.target))
    except InvalidInput as exc:
        return _failed(step.wish, step.target, exc)


def _step(wish: Wish, target: Reference, image: Known, there: Descriptor | DistError | None, record: Locked | None) -> Step:
    if isinstance(there, DistError):
        return _failed(wish, target, there)
    if there is None:
        return Step(wish=wish, target=target, change="add", new=image.goal)
    beside = image.beside.get(target, {})
    note = _reason_to_change(wish, image, there, record, beside)
    if note is None:
        return Step(wish=wish, target=target, change="same", old=there, new=image.goal, beside=beside)
    return with_backup(Step(wish=wish, target=target, change="change", old=there, new=image.goal, note=note or None))


def _reason_to_change(
    wish: Wish, image: Known, there: Descriptor, record: Locked | None, beside: Mapping[Digest, str | None]
) -> str | None:
    """Return why a target has to be changed, empty if its digest shows that, or None if it need not be."""
    if there.digest != image.goal.digest:
        return ""
    if wish.is_wider(record):
        return "for more platforms than before"
    new = len(image.referrers.difference(beside if record is None else record.referrers))
    return f"{format_count(new, 'referrer')} not known to be there" if new else None


def _failed(wish: Wish, target: Reference, error: object) -> Step:
    told = str(error).removeprefix(f"{target}: ")
    return Step(wish=wish, target=target, change="failed", note=f"{wish.source} to {target}: {told}")


def _bytes(descriptors: Iterable[Descriptor]) -> int:
    return sum(descriptor.size for descriptor in descriptors)


def _digest(descriptor: Descriptor | None) -> str | None:
    return None if descriptor is None else str(descriptor.digest)


def _step_json(step: Step) -> dict[str, Any]:
    return {
        "source": str(step.wish.source),
        "target": str(step.target),
        "change": step.change,
        "old": _digest(step.old),
        "new": _digest(step.new),
        "note": step.note,
    }


def _unnamed_json(unnamed: Unnamed) -> dict[str, Any]:
    source, note = str(unnamed.source), str(unnamed.error)
    return {"source": source, "target": None, "change": "failed", "old": None, "new": None, "note": note}


def _row(step: Step) -> dict[str, str | int]:
    return {
        "image": str(step.wish.source),
        "target": str(step.target),
        "change": step.change,
        "from": step.old.digest.short if step.old else "",
        "to": step.new.digest.short if step.new else "",
        "note": step.without_names(step.note or ""),
    }


def _unnamed_row(unnamed: Unnamed) -> dict[str, str | int]:
    note = str(unnamed.error)
    return {"image": str(unnamed.source), "target": "", "change": "failed", "from": "", "to": "", "note": note}


def _extra_row(extra: Extra) -> dict[str, str | int]:
    return {
        "image": extra.record.source,
        "target": str(extra.target),
        "change": "remove" if extra.is_due else "extra" if extra.since is not None else "not owned",
        "from": extra.record.digest.short,
        "to": "",
        "note": extra.note,
    }
