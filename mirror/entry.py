"""An entry of a mirror's configuration: the images that it selects, and their targets and options."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from prefect_dist.mirror.naming import Naming
from prefect_dist.mirror.selection import Patterns, Selection
from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.ocispec.platform import Platform, Platforms
from prefect_dist.ocispec.referrers import ReferrerFilter, is_fallback_tag
from prefect_dist.transfer.gate import Gate


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune:
    """When tags that are wanted no longer are removed: `grace_s` after that was seen, at most so many in a run."""

    grace_s: float
    most: int

    def is_over(self, since: datetime, *, now: datetime) -> bool:
        """Return whether the grace period of a tag that is unwanted since then is over."""
        return (now - since).total_seconds() >= self.grace_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An entry. `at` is its place in the configuration: `file:line: key.path`.

    `source` is a registry's host, a repository's locator or an image's reference, as `type` says. `repositories` choose among
    those of a registry, `tags` among those of a repository. `platforms` are those that are wanted of an index; None is all.
    With `rewrite_index` an index of these alone is made, otherwise the index stays as it is. With a `single` platform, an
    index's image for it takes the place of the index. With `trust_lock` no request is sent for tags that never
    change and that the lock file has. With `referrer_filters`, a listed referrer has to meet one of these.
    """

    at: str
    source: str
    type: Literal["registry", "repository", "image"]
    targets: tuple[Naming, ...]
    repositories: Patterns
    tags: Selection
    platforms: Platforms
    rewrite_index: bool
    single: Platform | None
    trust_lock: bool
    referrers: bool
    referrer_filters: frozenset[ReferrerFilter]
    digest_tags: bool
    backup: Naming | None
    gate: Gate | None
    prune: Prune | None

    def chosen(self, tags: Sequence[str]) -> list[str]:
        """Return the tags of a repository that the entry selects.

        Where referrers go along, the indexes that list them are none: each target has its own, where others may be listed, too.
        """
        return [tag for tag in self.tags.choose(tags) if not (self.referrers and is_fallback_tag(tag))]

    @property
    def source_host(self) -> str:
        """Return the source registry."""
        return self._sample.host

    @property
    def target_hosts(self) -> frozenset[str]:
        """Return the target registries, including those of backups, except those that depend on the name of an image."""
        try:
            targets = self.targets_of(self._sample)
            backups = [self.backup_of(self._sample, target) for target in targets]
        except InvalidInput:  # which need not be so for images that there are
            return frozenset()
        return frozenset(place.host for place in (*targets, *backups) if place is not None)

    @property
    def _sample(self) -> Reference:
        """Return an example of an image that the entry selects."""
        more = {"registry": "/name:tag", "repository": ":tag", "image": ""}
        return Reference.parse(f"{self.source}{more[self.type]}")

    def targets_of(self, source: Reference) -> tuple[Reference, ...]:
        """Return the distinct targets of an image.

        Raises:
            InvalidInput: the name of a target is invalid.
        """
        found = self.each_target(source)
        for one in found:
            if isinstance(one, InvalidInput):
                raise one
        return tuple(one for one in found if isinstance(one, Reference))

    def valid_targets(self, source: Reference) -> tuple[Reference, ...]:
        """Return the distinct targets of an image without those whose name is invalid."""
        return tuple(one for one in self.each_target(source) if isinstance(one, Reference))

    def each_target(self, source: Reference) -> tuple[Reference | InvalidInput, ...]:
        """Return the distinct targets of an image, with an error in place of an invalid name."""
        found = dict[Reference | InvalidInput, None]()
        for naming in self.targets:
            try:
                found[naming.of(source)] = None
            except InvalidInput as exc:
                found[exc] = None
        return tuple(found)

    def differing_options(self, other: "Entry", tag: str | None) -> list[str]:
        """Return the options, by their key, that differ between two entries for an image with this tag.

        Pruning and schedules do not count: an image that any entry wants is kept.
        """
        pairs = {
            "platforms": (_platforms(self), _platforms(other)),
            "platform": (self.single, other.single),
            "rewriteIndex": (self.rewrite_index, other.rewrite_index),
            "referrers": (self.referrers, other.referrers),
            "referrerFilters": (self.referrer_filters, other.referrer_filters),
            "digestTags": (self.digest_tags, other.digest_tags),
            "backup": (_text(self.backup), _text(other.backup)),
            "gate": (self.gate, other.gate),
            "tags.created": (self.tags.created, other.tags.created),
            "immutableTags": (_immutable(self, tag), _immutable(other, tag)),
            "trustLock": (self.trust_lock, other.trust_lock),
        }
        return [name for name, (ours, theirs) in pairs.items() if ours != theirs]

    def backup_of(self, source: Reference, target: Reference) -> Reference | None:
        """Return the backup name of the image that a target has before it is overwritten; None if it is not kept.

        Raises:
            InvalidInput: a name comes out that is none.
        """
        return None if self.backup is None else self.backup.of(source, target)


def _platforms(entry: Entry) -> frozenset[Platform] | None:
    return None if entry.platforms is None else frozenset(entry.platforms)


def _immutable(entry: Entry, tag: str | None) -> object:
    """Return whether a tag never changes; for None, the patterns of the tags that never change."""
    return entry.tags.immutable if tag is None else entry.tags.immutable.holds(tag)


def _text(naming: Naming | None) -> str | None:
    return None if naming is None else naming.template.text
