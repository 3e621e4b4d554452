"""Whether an image is whole: a walk from its root over what the store has."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prefect_dist.ocispec import Descriptor, Platform, config
from prefect_dist.ocispec.attestations import attested
from prefect_dist.ocispec.children import Children, children_reader, filter_platforms, without_missing_attestations
from prefect_dist.ocispec.errors import NotFound, shown
from prefect_dist.ocispec.units import counted
from prefect_dist.storage.names import Name
from prefect_dist.storage.store import ContentStore

_log = logging.getLogger(__name__)
_NAMED = 3  # of many that are missing, so that a message stays one line


@dataclass(frozen=True, slots=True)
class Completeness:
    """The distinct descriptors below and with some roots, level by level. Below a missing manifest nothing is known."""

    present: tuple[Descriptor, ...]
    missing: tuple[Descriptor, ...]

    @property
    def whole(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing

    @property
    def shortage(self) -> str:
        """What is missing, in some words; not all of many."""
        some = ", ".join(map(str, self.missing[:_NAMED]))
        return f"{counted(len(self.missing), 'descriptor')} missing in the store ({some})"


def check(store: ContentStore, *roots: Descriptor, children: Children) -> Completeness:
    """What the store has of the trees that `children` spans below `roots`.

    Each level is looked at as a whole, which on an object store takes little longer than one look.

    Raises:
        Corrupt: a blob has another size than its descriptor, or a manifest's bytes are wrong.
        InvalidInput, Unsupported: a manifest cannot be read.
        NotFound: an index has nothing for the platforms that `children` asks for.
    """
    seen = set[object]()
    present, missing = list[Descriptor](), list[Descriptor]()
    level: Iterable[Descriptor] = roots
    while fresh := {descriptor.content: descriptor for descriptor in level if descriptor.content not in seen}:
        seen |= fresh.keys()
        looked_at = list(zip(fresh.values(), store.each(store.holds, fresh.values()), strict=True))
        held = [descriptor for descriptor, there in looked_at if there]
        present += held
        missing += [descriptor for descriptor, there in looked_at if not there]
        level = [child for below in store.each(children, held) for child in below]
    return Completeness(tuple(present), tuple(missing))


def of_name(store: ContentStore, name: Name) -> Completeness:
    """Return the content of a name that is in the store or missing; content that was not wanted does not count.

    Raises:
        Corrupt, InvalidInput, Unsupported, NotFound: as `check`.
    """
    children = children_reader(store.manifest)
    if name.lacks_attestations:
        children = without_missing_attestations(children, lambda descriptor: not store.holds(descriptor))
    children = filter_platforms(children, name.platforms)
    return check(store, *name.roots, children=children)


def require(store: ContentStore, *roots: Descriptor, children: Children, name: str) -> tuple[Descriptor, ...]:
    """The distinct descriptors below and with some roots, all of which are there; `name` is what errors call them.

    Raises:
        NotFound: something is missing; the message names it.
        Corrupt, InvalidInput, Unsupported: as `check`.
    """
    found = check(store, *roots, children=children)
    if not found.whole:
        raise NotFound(f"{name}: {found.shortage}")
    return found.present


def held_children(store: ContentStore) -> Children:
    """Answers with the children of manifests, of an index those manifests that are in the store.

    An image that was fetched for some platforms lacks the manifests of the others. Other tools call that a sparse index, and
    it is whole in its way; a manifest that is there and lacks a child never is.

    The result raises:
        NotFound: an index none of whose manifests is there.
    """
    children = children_reader(store.manifest)

    def handle(descriptor: Descriptor) -> Sequence[Descriptor]:
        found = children(descriptor)
        if descriptor.kind != "index":
            return found
        held = [child for child in found if not child.is_manifest or store.holds(child)]
        if found and not held:
            raise NotFound(f"{descriptor}: none of its manifests is in the store")
        _log.debug("%s: %d of %d manifests are in the store", descriptor, len(held), len(found))
        return held

    return handle


def held_platforms(store: ContentStore, root: Descriptor) -> tuple[tuple[Platform, ...] | None, bool]:
    """Return the platforms of an index that are in the store, and whether an attestation manifest of theirs is missing.

    The platforms are None if no manifest is missing.
    """
    if root.kind != "index":
        return None, False
    listed = [child for child in children_reader(store.manifest)(root) if child.is_manifest]
    held = {child.digest for child in listed if store.holds(child)}
    if len(held) == len({child.digest for child in listed}):
        return None, False
    images = [child for child in listed if attested(child) is None]
    platforms = dict.fromkeys(child.platform for child in images if child.digest in held and child.platform is not None)
    subjects = {str(digest) for digest in held}
    is_lacking = any(attested(child) in subjects and child.digest not in held for child in listed)
    return tuple(platforms), is_lacking


def refuse_other_platforms(store: ContentStore, root: Descriptor, wanted: Sequence[Platform]) -> None:
    """See that an image without an index is for one of the platforms that are wanted. What is no image has none.

    Raises:
        NotFound: it is for another one, which only its config tells.
        NotFound, Corrupt, InvalidInput: manifest or config cannot be read.
    """
    if root.kind != "manifest":
        return
    configured = children_reader(store.manifest)(root)[0]
    if configured.kind != "config":
        return
    offered = config.platform(store.manifest(configured), at=str(configured))
    if all(wish.rank(offered) is None for wish in wanted):
        raise NotFound(f"{root}: no manifest for {', '.join(map(str, wanted))}; it is for {shown(str(offered))}")
