"""An entry of a mirror's configuration: selected images, targets and options."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from prefect_dist.mirror.naming import Naming
from prefect_dist.mirror.selection import Patterns, Selection
from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.ocispec.platform import Platform, Platforms
from prefect_dist.ocispec.reference import find_scheme, is_registry
from prefect_dist.ocispec.referrers import ReferrerFilter, is_fallback_tag
from prefect_dist.ocispec.schemes import STORE
from prefect_dist.transfer.gate import Gate


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune:
    """The conditions for deleting orphaned tags: a grace period of `grace_s`, and at most `most` deleted tags per run."""

    grace_s: float
    most: int

    def is_over(self, since: datetime, *, now: datetime) -> bool:
        """Return True if the grace period of a tag that is orphaned since `since` has passed."""
        return (now - since).total_seconds() >= self.grace_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An entry of `sync`, an image of `seed`, or the source of a push or copy.

    `at` is the place of the entry in the configuration: `file:line: key.path`. `source` is the host of a registry, the locator
    of a repository or the reference of an image, depending on `type`.
    `repositories` filters the repositories of a registry, and `tags` filters the tags of a repository. `platforms` are the
    wanted platforms of an index; None selects every platform. With `rewrite_index`, targets get a new index of these
    platforms; otherwise the index stays unchanged. With `single`, the image for that platform replaces its index. With
    `is_sparse`, the index of a stored source stays unchanged, and only the platforms in the content store are wanted. With
    `trust_lock`, a run sends no request for an immutable tag that the lock file lists. With `referrer_filters`, a run
    mirrors only listed referrers that match one of the filters.
    """

    at: str
    source: str
    type: Literal["registry", "repository", "image"]
    targets: tuple[Naming, ...]
    repositories: Patterns = field(default_factory=Patterns)
    tags: Selection = field(default_factory=Selection)
    platforms: Platforms = None
    rewrite_index: bool = False
    single: Platform | None = None
    is_sparse: bool = False
    trust_lock: bool = False
    referrers: bool = False
    referrer_filters: frozenset[ReferrerFilter] = frozenset()
    digest_tags: bool = False
    backup: Naming | None = None
    gate: Gate | None = None
    prune: Prune | None = None

    def select_tags(self, tags: Sequence[str]) -> list[str]:
        """Return the tags of a repository that the entry selects.

        With `referrers`, the entry selects no fallback tag: each target has its own, which may list further referrers.
        """
        return [tag for tag in self.tags.choose(tags) if not (self.referrers and is_fallback_tag(tag))]

    @property
    def image(self) -> Reference:
        """Image of an entry with the type `image`."""
        return Reference.parse(self.source)

    @property
    def has_stored_source(self) -> bool:
        """True if the source is a name in the content store."""
        return find_scheme(self.source) == STORE

    @property
    def source_host(self) -> str:
        """Host of the source registry."""
        return self._sample.host

    @property
    def target_hosts(self) -> frozenset[str]:
        """Hosts of the target registries and of backups; a host that depends on the name of an image is left out."""
        try:
            targets = self.list_targets(self._sample)
            backups = [self.make_backup_name(self._sample, target) for target in targets]
        except InvalidInput:  # the names of real images may be valid
            return frozenset()
        return frozenset(place.host for place in (*targets, *backups) if place is not None)

    @property
    def target_registries(self) -> frozenset[str]:
        """Hosts of the target registries; without backups, and without hosts that depend on the name of an image."""
        hosts = [{target.host for target in self.list_valid_targets(sample)} for sample in self._samples]
        return frozenset(filter(is_registry, set.intersection(*hosts)))

    @property
    def _sample(self) -> Reference:
        """Example of an image that the entry selects."""
        return self._samples[0]

    @property
    def _samples(self) -> tuple[Reference, ...]:
        """Examples of images that the entry selects, with different names."""
        suffixes = {"registry": ("/name:tag", "/other/name:1"), "repository": (":tag", ":1")}.get(self.type, ())
        return tuple(Reference.parse(f"{self.source}{suffix}") for suffix in suffixes) or (self.image,)

    def list_targets(self, source: Reference) -> tuple[Reference, ...]:
        """Return the distinct targets of an image.

        Raises:
            InvalidInput: the name of a target is invalid.
        """
        targets = self.list_targets_and_errors(source)
        for target in targets:
            if isinstance(target, InvalidInput):
                raise target
        return tuple(target for target in targets if isinstance(target, Reference))

    def list_valid_targets(self, source: Reference) -> tuple[Reference, ...]:
        """Return the distinct targets of an image without the targets whose name is invalid."""
        return tuple(target for target in self.list_targets_and_errors(source) if isinstance(target, Reference))

    def list_targets_and_errors(self, source: Reference) -> tuple[Reference | InvalidInput, ...]:
        """Return the distinct targets of an image, with an error in place of each invalid name."""
        targets = dict[Reference | InvalidInput, None]()
        for naming in self.targets:
            try:
                targets[naming.make_name(source)] = None
            except InvalidInput as exc:
                targets[exc] = None
        return tuple(targets)

    def list_differing_options(self, other: "Entry", tag: str | None) -> list[str]:
        """Return the keys of the options that differ between two entries for an image with this tag.

        The options of pruning and schedules do not count: no run deletes a tag that another entry selects.
        """
        ours, theirs = self.comparable_options(tag), other.comparable_options(tag)
        return [name for name, value in ours.items() if value != theirs[name]]

    def comparable_options(self, tag: str | None) -> dict[str, object]:
        """Return the options that two entries for the same target must share, by key."""
        immutable = self.tags.immutable
        return {
            "platforms": None if self.platforms is None else frozenset(self.platforms),
            "platform": self.single,
            "rewriteIndex": self.rewrite_index,
            "referrers": self.referrers,
            "referrerFilters": self.referrer_filters,
            "digestTags": self.digest_tags,
            "backup": self.backup and self.backup.template.text,
            "gate": self.gate,
            "tags.created": self.tags.created,
            "immutableTags": immutable if tag is None else immutable.holds(tag),
            "trustLock": self.trust_lock,
        }

    def make_backup_name(self, source: Reference, target: Reference) -> Reference | None:
        """Return the name for a backup of the image that a run overwrites at a target; None without `backup`.

        Raises:
            InvalidInput: the name is invalid.
        """
        return None if self.backup is None else self.backup.make_name(source, target)
