"""Removing a tag that a mirror made, and nothing else. No Prefect here.

Registries that remove no tags remove manifests, with every tag of theirs. That is done only where no other tag stands for the
same: it is looked for among all tags of the repository.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Literal

from ocispec import Descriptor, Digest, Reference
from remotes import Registries


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Removed:
    """What became of a tag: `removed`, `gone` before, `changed` by others since, or `shared` with tags that stay; and `why`."""

    status: Literal["removed", "gone", "changed", "shared"]
    why: str | None = None


def remove(
    target: Reference,
    digest: Digest,
    *,
    doomed: Container[Reference],
    registries: Registries,
    standing: Callable[[Reference], Descriptor | None],
) -> Removed:
    """Remove a tag if it still stands for `digest`. `standing` says what a tag stands for now; those that are `doomed` may go.

    Raises:
        Unsupported: the registry removes nothing.
        DistError: what the registry says.
    """
    there = standing(target)
    if there is None:
        return Removed(status="gone", why="is there no longer")
    if there.digest != digest:
        return Removed(status="changed", why=f"stands for {there.digest}, which this mirror did not bring there")
    pusher = registries.pusher(target)
    if target.tag is not None and pusher.untag(target.tag):
        return Removed(status="removed")
    for tag in registries.itself(target).tags():
        other = Reference.parse(f"{target.locator}:{tag}")
        if other != target and other not in doomed and (found := standing(other)) is not None and found.digest == digest:
            return Removed(status="shared", why=f"shares {digest} with {other}, and the registry removes whole manifests only")
    pusher.delete(digest)
    return Removed(status="removed")
