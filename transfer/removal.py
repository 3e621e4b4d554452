"""Removes tags that a mirror created and that no entry wants any more.

Some registries delete a tag by name. Other registries delete only manifests, and with a manifest every tag of it. There, a
manifest is deleted only if no remaining tag of the repository needs the manifest (`transfer.tag_graph`).

Some registries accept a deletion and do not carry it out. A tag is reported as removed only after a check that the tag does not
resolve to the digest any more.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.errors import Unavailable
from prefect_dist.remotes import Target
from prefect_dist.transfer.listing import resolve_target
from prefect_dist.transfer.session import Session
from prefect_dist.transfer.survey import Reader
from prefect_dist.transfer.tag_graph import TagGraph, TagSource

_ONLY_MANIFESTS = "this registry deletes only whole manifests, not tags"


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class UnwantedTag:
    """A tag to remove: the published digest, and the referrers that the mirror copied with the image.

    `replaces` is the digest before, if the publication of `digest` may have failed.
    """

    target: Reference
    digest: Digest
    replaces: Digest | None = None
    referrers: frozenset[Digest] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Removed:
    """The outcome for one tag: `removed`, `gone` before, `changed` by another client, or `shared` with other tags; `why`."""

    status: Literal["removed", "gone", "changed", "shared"]
    why: str | None = None


class _Removers(dict[str, "_Remover"]):
    """The removers of a run, by repository."""


def remove_tag(
    session: Session, target: Reference, unwanted: Iterable[UnwantedTag], *, known: Iterable[str] = (), workers: int
) -> Removed:
    """Remove one of the `unwanted` tags of a repository, where `known` tags may exist, too; see `_Remover.remove`.

    Tags of one repository are removed one at a time.
    """
    removers = session.memo(_Removers)
    if target.locator not in removers:
        source = session.remotes.open_origin(target)
        removers[target.locator] = _Remover(
            target,
            source=source,
            pusher=session.remotes.open_target(target),
            resolve=partial(resolve_target, session),
            read=Reader(session, source, target, keep=False).read,
            workers=workers,
        )
    remover = removers[target.locator]
    remover.allow(unwanted)
    remover.add_known(known)
    return remover.remove(str(target.tag))


class _Remover:
    """Removes tags of one repository. `resolve` returns the descriptor of a tag, or None if the tag does not exist.

    Not thread-safe.
    """

    def __init__(
        self,
        repository: Reference,
        *,
        source: TagSource,
        pusher: Target,
        resolve: Callable[[Reference], Descriptor | None],
        read: Callable[[Descriptor], bytes],
        workers: int,
    ) -> None:
        self._unwanted: dict[str, UnwantedTag] = {}
        self._pusher, self._resolve = pusher, resolve
        self._outcomes: dict[str, Removed] = {}
        self._can_delete_tags = True
        self._accepted: set[str] = set()  # tags whose deletion the registry accepted
        self._graph = TagGraph(repository, source, resolve=resolve, read=read, workers=workers)

    def allow(self, unwanted: Iterable[UnwantedTag]) -> None:
        """Allow the removal of some tags. A manifest is deleted only if every tag of it is allowed."""
        for one in unwanted:
            tag = str(one.target.tag)
            if tag not in self._unwanted:
                self._unwanted[tag] = one
                self._graph.allow(tag, one.digest, one.referrers)

    def add_known(self, tags: Iterable[str]) -> None:
        """Add tags that the mirror knows. Their content stays, also if the registry does not list the tags."""
        self._graph.add_known(tags)

    def remove(self, tag: str) -> Removed:
        """Remove an allowed tag if the tag resolves to the published digest.

        Raises:
            Unsupported: the registry deletes neither tags nor manifests.
            Conflict: the registry deletes only manifests, and its list of tags lacks an existing tag.
            Unavailable: the tag still resolves to the digest after the registry accepted the deletion.
            DistError: the tag, or content of other tags, cannot be read or deleted.
        """
        if tag not in self._outcomes:
            self._outcomes[tag] = self._remove(tag)
            if self._outcomes[tag].status == "shared":
                self._graph.disallow(tag)  # the report states that the tag is kept
        return self._outcomes[tag]

    def _remove(self, tag: str) -> Removed:
        obstacle = self._obstacle(tag)
        if obstacle is not None:
            return obstacle
        if self._can_delete_tags:
            if self._pusher.delete_tag(tag):
                self._accepted.add(tag)
                self._check_deleted(tag)
                return Removed(status="removed")
            self._can_delete_tags = False
        return self._remove_manifest(tag)

    def _remove_manifest(self, tag: str) -> Removed:
        """Delete the manifest of a tag, after the other unwanted tags with a need for the manifest.

        Any other tag keeps the manifest, also a cosign tag with at least one referrer to keep.
        """
        one = self._unwanted[tag]
        self._graph.load()
        while (holder := self._graph.holder_of(one.digest)) is not None:
            if holder not in self._unwanted or self.remove(holder).status not in ("removed", "gone"):
                return _keep_shared(one, holder)
            self._graph.load()
        sharing = [other for other in self._graph.tags_of(one.digest) if other != tag]
        if (wanted := next((other for other in sharing if other not in self._unwanted), None)) is not None:
            return _keep_shared(one, wanted)
        if any(self._obstacle(other) is not None for other in sharing):
            return self._remove_manifest(tag)  # a tag moved meanwhile, and may need this manifest indirectly
        if (obstacle := self._obstacle(tag)) is not None:  # checked last: the next request deletes
            return obstacle
        self._pusher.delete(one.digest)
        self._accepted.update((tag, *sharing))
        self._check_deleted(tag)
        for other in sharing:
            self._check_deleted(other)
            self._outcomes[other] = Removed(status="removed", why=f"removed with {one.target}, which had the same manifest")
        return Removed(status="removed")

    def _check_deleted(self, tag: str) -> None:
        """Raise an error if a tag still resolves to the digest after the target accepted the deletion."""
        one = self._unwanted[tag]
        found = self._resolve(one.target)
        self._graph.set_tag(tag, found)
        if found is not None and found.digest == one.digest:
            raise Unavailable(f"still resolves to {one.digest} after the target accepted the deletion", subject=one.target)

    def _obstacle(self, tag: str) -> Removed | None:
        """Return the reason why a tag must not be removed, or None."""
        one = self._unwanted[tag]
        found = self._resolve(one.target)
        if found is not None and one.replaces is not None:  # the first look decides which of both digests was published
            digest = found.digest if found.digest == one.replaces else one.digest
            one = self._unwanted[tag] = replace(one, digest=digest, replaces=None)
            self._graph.allow(tag, one.digest, one.referrers)
        self._graph.set_tag(tag, found)
        if found is None and tag in self._accepted:
            return Removed(status="removed")
        if found is None:
            return Removed(status="gone", why="the tag does not exist any more")
        if found.digest != one.digest:
            why = f"it resolves to {found.digest} now, not to {one.digest} as this mirror left it; it is someone else's tag"
            return Removed(status="changed", why=why)
        return None


def _keep_shared(unwanted: UnwantedTag, holder: str) -> Removed:
    """Return the outcome for a tag with a manifest that another tag, `holder`, needs."""
    needed_by = f"{unwanted.target.locator}:{holder}"
    return Removed(status="shared", why=f"{needed_by} needs {unwanted.digest}, and {_ONLY_MANIFESTS}")
