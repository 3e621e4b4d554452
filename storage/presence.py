"""The presence of images in a store: the present and the missing descriptors below a root."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prefect_dist.ocispec import Descriptor, Digest, Platform, config
from prefect_dist.ocispec.children import (
    Children,
    attested_digest,
    children_reader,
    filter_platforms,
    without_missing_attestations,
)
from prefect_dist.ocispec.errors import NotFound, quote_text
from prefect_dist.ocispec.units import format_count
from prefect_dist.storage.names import Name
from prefect_dist.storage.store import ContentStore

_log = logging.getLogger(__name__)
_LISTED = 3  # missing descriptors in a message, which stays one line


@dataclass(frozen=True, slots=True)
class Presence:
    """The distinct descriptors of some trees, present and missing, level by level. A missing manifest has no known children."""

    present: tuple[Descriptor, ...]
    missing: tuple[Descriptor, ...]

    @property
    def is_complete(self) -> bool:
        """True if nothing is missing."""
        return not self.missing

    @property
    def shortage(self) -> str:
        """The number of missing descriptors and the first missing descriptors, as one line."""
        some = ", ".join(map(str, self.missing[:_LISTED]))
        return f"{format_count(len(self.missing), 'descriptor')} missing in the store ({some})"


def check(store: ContentStore, *roots: Descriptor, children: Children) -> Presence:
    """Return the presence of the content below `roots`. `children` selects the children of each descriptor.

    The descriptors of a level are looked up concurrently. On an object store, a level takes little longer than one look-up,
    while `walk_tree` would look up one descriptor after another.

    Raises:
        Corrupt: a blob has another size than its descriptor, or the bytes of a manifest do not match its digest.
        InvalidInput, Unsupported: a manifest cannot be parsed.
        NotFound: an index has no manifest for the platforms selected by `children`.
    """
    seen = set[object]()
    present, missing = list[Descriptor](), list[Descriptor]()
    level: Iterable[Descriptor] = roots
    while fresh := {descriptor.key: descriptor for descriptor in level if descriptor.key not in seen}:
        seen |= fresh.keys()
        looked_at = list(zip(fresh.values(), store.each(store.holds, fresh.values()), strict=True))
        held = [descriptor for descriptor, there in looked_at if there]
        present += held
        missing += [descriptor for descriptor, there in looked_at if not there]
        level = [child for below in store.each(children, held) for child in below]
    return Presence(tuple(present), tuple(missing))


def check_name(store: ContentStore, name: Name) -> Presence:
    """Return the presence of the content of a name. Manifests of unwanted platforms do not count as missing.

    Raises:
        Corrupt, InvalidInput, Unsupported, NotFound: see `check`.
    """
    children = children_reader(store.manifest)
    if name.lacks_attestations:
        children = without_missing_attestations(children, lambda descriptor: not store.holds(descriptor))
    children = filter_platforms(children, name.platforms)
    return check(store, *name.roots, children=children)


def reachable_digests(store: ContentStore, roots: Iterable[Descriptor]) -> set[Digest]:
    """Return the digests of the roots and of the content below them. The children of a missing manifest are unknown.

    Raises:
        Corrupt, InvalidInput, Unsupported: a manifest cannot be read, so its children would wrongly seem unneeded.
    """
    found = check(store, *roots, children=children_reader(store.manifest))
    return {descriptor.digest for descriptor in (*found.present, *found.missing)}


def require(store: ContentStore, *roots: Descriptor, children: Children, name: str) -> tuple[Descriptor, ...]:
    """Return the distinct descriptors of some trees after checking that each is present. `name` starts the message of errors.

    Raises:
        NotFound: content is missing; the message lists the missing descriptors.
        Corrupt, InvalidInput, Unsupported: see `check`.
    """
    found = check(store, *roots, children=children)
    if not found.is_complete:
        raise NotFound(f"{found.shortage}", subject=name)
    return found.present


def present_children(store: ContentStore) -> Children:
    """Return a `Children` function that keeps only the present manifests of an index.

    An image that was fetched for some platforms lacks the manifests of other platforms. Such a sparse index counts as complete.
    A present manifest with a missing child does not.

    The result raises:
        NotFound: no manifest of an index is present.
    """
    children = children_reader(store.manifest)

    def read_present(descriptor: Descriptor) -> Sequence[Descriptor]:
        found = children(descriptor)
        if descriptor.kind != "index":
            return found
        held = [child for child in found if not child.is_manifest or store.holds(child)]
        if found and not held:
            raise NotFound("none of its manifests is in the store", subject=descriptor)
        _log.debug("%s: %d of %d manifests are in the store", descriptor, len(held), len(found))
        return held

    return read_present


def present_platforms(store: ContentStore, root: Descriptor) -> tuple[tuple[Platform, ...] | None, bool]:
    """Return the platforms of an index that are present, and True if an attestation manifest of these platforms is missing.

    The platforms are None if no manifest is missing.
    """
    if root.kind != "index":
        return None, False
    listed = [child for child in children_reader(store.manifest)(root) if child.is_manifest]
    held = {child.digest for child in listed if store.holds(child)}
    if len(held) == len({child.digest for child in listed}):
        return None, False
    images = [child for child in listed if attested_digest(child) is None]
    platforms = dict.fromkeys(child.platform for child in images if child.digest in held and child.platform is not None)
    subjects = {str(digest) for digest in held}
    is_lacking = any(attested_digest(child) in subjects and child.digest not in held for child in listed)
    return tuple(platforms), is_lacking


def require_platform(store: ContentStore, root: Descriptor, wanted: Sequence[Platform]) -> None:
    """Check by its config that a single-platform image is for a wanted platform. Indexes and artifacts pass.

    Raises:
        NotFound: the image is for another platform, or the manifest or config is missing.
        Corrupt, InvalidInput: the manifest or config cannot be read.
    """
    if root.kind != "manifest":
        return
    configured = children_reader(store.manifest)(root)[0]
    if configured.kind != "config":
        return
    offered = config.platform(store.manifest(configured), at=str(configured))
    if all(wish.rank(offered) is None for wish in wanted):
        raise NotFound(
            f"no manifest for {', '.join(map(str, wanted))}; the image is for {quote_text(str(offered))}", subject=root
        )
