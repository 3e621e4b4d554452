"""An entry of a mirror's configuration: what it takes from where, and what it makes of it where. No Prefect here."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from flows.mirroring.naming import Naming
from flows.mirroring.selection import Patterns, Selection
from ocispec import Reference
from ocispec.errors import InvalidInput
from ocispec.platform import Platform, Platforms
from ocispec.referrers import is_listing
from tasks.gate import Gate


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune:
    """When tags that are wanted no longer are removed: `grace_s` after that was seen, at most so many in a run."""

    grace_s: float
    most: int

    def is_over(self, since: datetime, *, now: datetime) -> bool:
        """Whether what is unwanted since then may go."""
        return (now - since).total_seconds() >= self.grace_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is mirrored. `at` is where the configuration says so: `file:line: key.path`.

    `source` is a registry's host, a repository's locator or an image's reference, as `type` says. `repositories` choose among
    those of a registry, `tags` among those of a repository. `platforms` are those that are wanted of an index; None is all.
    With `rewrite_index` an index of these alone is made, otherwise the index stays as it is. With a `single` platform, an
    index's image for it takes the place of the index.
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
    referrers: bool
    digest_tags: bool
    backup: Naming | None
    gate: Gate | None
    prune: Prune | None

    def chosen(self, tags: Sequence[str]) -> list[str]:
        """The tags of a repository whose images are wanted.

        Where referrers go along, the indexes that list them are none: each target has its own, where others may be listed, too.
        """
        return [tag for tag in self.tags.choose(tags) if not (self.referrers and is_listing(tag))]

    @property
    def source_host(self) -> str:
        """The registry that it takes from."""
        return self._sample.host

    @property
    def target_hosts(self) -> frozenset[str]:
        """The registries that it brings images to, backups among them; one that depends on an image's name is not told."""
        try:
            targets = self.targets_of(self._sample)
            backups = [self.backup_of(self._sample, target) for target in targets]
        except InvalidInput:  # which need not be so for images that there are
            return frozenset()
        return frozenset(place.host for place in (*targets, *backups) if place is not None)

    @property
    def _sample(self) -> Reference:
        """An image such as it takes."""
        more = {"registry": "/name:tag", "repository": ":tag", "image": ""}
        return Reference.parse(f"{self.source}{more[self.type]}")

    def targets_of(self, source: Reference) -> tuple[Reference, ...]:
        """Where an image goes, each once.

        Raises:
            InvalidInput: a name comes out that is none.
        """
        return tuple(dict.fromkeys(naming.of(source) for naming in self.targets))

    def backup_of(self, source: Reference, target: Reference) -> Reference | None:
        """What is to be called what a target stands for, before that is overwritten; None keeps nothing of it.

        Raises:
            InvalidInput: a name comes out that is none.
        """
        return None if self.backup is None else self.backup.of(source, target)
