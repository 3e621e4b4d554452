"""The plan of a mirror run: values for the action of each image at each target."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Literal

from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.lock import NO_REFERRERS, Locked
from prefect_dist.mirror.plan_cost import PlanCost
from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.errors import DistError, InvalidInput
from prefect_dist.remotes import Quota
from prefect_dist.transfer.related import Related

Change = Literal["add", "change", "repair", "unchanged", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SyncItem:
    """An image that an entry mirrors to some targets."""

    entry: Entry
    source: Reference
    targets: tuple[Reference, ...]

    @property
    def is_judged_again(self) -> bool:
        """Return whether the gate also judges an image that its targets already have."""
        return self.entry.gate is not None and self.entry.gate.existing

    @property
    def related(self) -> Related:
        """Return the options for the related manifests that are mirrored with the image."""
        entry = self.entry
        return Related(listed=entry.referrers, tagged=entry.digest_tags, filters=entry.referrer_filters)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TargetAction:
    """The action for an image at one target.

    Attributes:
        old: the current root at the target.
        new: the root that the target gets.
        target_referrers: the current referrers at the target that no record lists, with their tags.
        note: the reason for a change that the digests do not show.
        error: the reason why no action is possible.
        backup: the name under which the current image of the target is kept.
    """

    item: SyncItem
    target: Reference
    change: Change
    old: Descriptor | None = None
    new: Descriptor | None = None
    target_referrers: Mapping[Digest, str | None] = field(default_factory=lambda: NO_REFERRERS)
    note: str | None = None
    error: DistError | None = None
    backup: Reference | None = None

    @property
    def is_due(self) -> bool:
        """Return whether the image has to be published at the target."""
        return self.change in ("add", "change", "repair")

    @property
    def is_judged(self) -> bool:
        """Return whether the target is up to date and the gate judges the image again."""
        return self.change == "unchanged" and self.item.is_judged_again


@dataclass(frozen=True, slots=True)
class Load:
    """The number and the bytes of the descriptors that no earlier image of the repository has."""

    count: int
    size: int


NO_LOAD = Load(0, 0)
"""The load of images that are not divided into shards."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlannedImage:
    """One image, with the action for each of its targets.

    Attributes:
        root: the descriptor that the source resolves to, None after a failure.
        content: the complete content of the image at its source.
        sent: the complete content of the image at its targets.
        referrers: the referrers at the source that the survey found.
        load: the load of the image, for the division into shards.
    """

    item: SyncItem
    root: Descriptor | None
    content: tuple[Descriptor, ...]
    sent: tuple[Descriptor, ...]
    actions: tuple[TargetAction, ...]
    referrers: frozenset[Digest] = frozenset()
    load: Load = NO_LOAD

    @property
    def due(self) -> tuple[TargetAction, ...]:
        """Return the actions that publish the image."""
        return tuple(action for action in self.actions if action.is_due)

    @property
    def is_needed(self) -> bool:
        """Return whether the store needs the content of the image: for a target or for the gate."""
        return any(action.is_due or action.is_judged for action in self.actions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unnamed:
    """An image of an entry for which the name of a target is invalid."""

    entry: Entry
    source: Reference
    error: InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class OrphanTag:
    """A tag that the mirror created and that no entry selects any more.

    Attributes:
        since: the time when a run first found the tag unwanted. None if no entry of this run can have created the tag: another
            run with the same lock file may want the tag.
        most: the limit on removals per run for a tag whose grace period is over, None for any other tag.
        is_due: true if the tag is within the limit, provided that each earlier removal succeeds.
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
        """Return why the tag is an orphan, and why the tag stays."""
        if self.since is None:
            return "no entry of this run has this tag"
        more = f"; held back in this run by prune.most ({self.most})" if self.is_held else ""
        if self.is_due:
            more = "; stays if this registry deletes only whole manifests and another tag needs this one: decided at removal"
        return f"orphaned since {self.since:%Y-%m-%d}{more}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a run.

    Attributes:
        problems: the error of each entry whose images are unknown, by the place of the entry in the configuration.
        idle: a line for each entry that selects no image, or no image of some source repositories.
        trusted: the number of unchanged targets for which the run trusts the lock file and sends no request.
        cost: the cost of the images.
        unnamed: the images for which the name of a target is invalid.
        is_dry: true if the run only makes the plan.
    """

    images: tuple[PlannedImage, ...]
    orphans: tuple[OrphanTag, ...] = ()
    problems: Mapping[str, DistError] = field(default_factory=dict)
    idle: tuple[str, ...] = ()
    trusted: int = 0
    cost: PlanCost = field(default_factory=PlanCost)
    unnamed: tuple[Unnamed, ...] = ()
    quotas: Mapping[str, Quota] = field(default_factory=dict)
    is_dry: bool = True

    @cached_property
    def actions(self) -> tuple[TargetAction, ...]:
        """Return the actions for each image, in the order of the configuration."""
        return tuple(action for image in self.images for action in image.actions)

    @cached_property
    def due(self) -> tuple[PlannedImage, ...]:
        """Return the images that have to be published at a target, or judged again."""
        return tuple(image for image in self.images if image.is_needed)

    @property
    def requests(self) -> int:
        """Return the approximate number of requests, with three for each tag to remove."""
        return self.cost.requests + 3 * len(self.to_prune)

    def pulls_from(self, host: str) -> int | None:
        """Return the number of pulls from a registry.

        None unless the run is dry: another run has pulled the manifests before the plan is complete.
        """
        return self.cost.pulls.get(host, 0) if self.is_dry else None

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
