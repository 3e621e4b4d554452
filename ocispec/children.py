"""The graph of descriptors: the children of a manifest, filters of children, and a walk over the tree below a root.

A `Children` function returns the descriptors directly below a descriptor. A filter wraps a `Children` function and returns a
new one:

    children = filter_platforms(children_reader(store.manifest), platforms)
    for descriptor in walk_tree(children, root): ...

`ocispec.manifest` parses the children of one document; this module combines them into a tree.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from prefect_dist.ocispec import manifest, mediatypes
from prefect_dist.ocispec.descriptor import Descriptor
from prefect_dist.ocispec.errors import NotFound, quote_text
from prefect_dist.ocispec.platform import Platform, best

Children = Callable[[Descriptor], Sequence[Descriptor]]

# An error message lists at most this many platforms of an index.
_LISTED = 20
_ATTESTATION_TYPE, _ATTESTATION_SUBJECT = "vnd.docker.reference.type", "vnd.docker.reference.digest"


def walk_tree(children: Children, *roots: Descriptor) -> Iterator[Descriptor]:
    """Yield the roots and the descriptors below them, each distinct content once.

    The order is depth first. A descriptor comes before its children; siblings and roots keep their order. Content with several
    parents comes at the first place in this order, possibly before some of its parents.

    The walk calls `children` once for each yielded descriptor, when the caller asks for the next descriptor. An error of
    `children` ends the walk.
    """
    seen = set[object]()
    pending = list(reversed(roots))
    while pending:
        descriptor = pending.pop()
        if descriptor.key not in seen:
            seen.add(descriptor.key)
            yield descriptor
            pending.extend(reversed(children(descriptor)))


def children_reader(read: Callable[[Descriptor], bytes]) -> Children:
    """Return a `Children` function for manifests; `read` returns their bytes. Other content has no children.

    The result raises:
        InvalidInput, Unsupported: see `ocispec.manifest.children`; and the errors of `read`.
    """

    def read_children(descriptor: Descriptor) -> Sequence[Descriptor]:
        raw = read(descriptor) if descriptor.is_manifest else b""
        return manifest.children(raw, descriptor.media_type, at=str(descriptor))

    return read_children


def filter_platforms(children: Children, platforms: Iterable[Platform] | None) -> Children:
    """Return a `Children` function that keeps the children for `platforms`, see `select_manifests`. None keeps every child.

    The result raises:
        NotFound: see `select_manifests`.
    """
    if platforms is None:
        return children
    wanted = tuple(platforms)
    return lambda descriptor: select_manifests(wanted, descriptor, children(descriptor))


def select_manifests(
    platforms: Sequence[Platform] | None, descriptor: Descriptor, children: Sequence[Descriptor]
) -> Sequence[Descriptor]:
    """Return the children of an index that match `platforms` best, with the attestation manifests of these children.

    If `platforms` is None, or if the parent is not an index, every child is returned.

    Raises:
        NotFound: no child matches any of `platforms`; the message lists the platforms of the index.
    """
    if platforms is None or descriptor.kind != "index" or not children:
        return children
    chosen = best(platforms, children)
    if not chosen:
        offered = sorted({quote_text(str(child.platform)) for child in children})
        listed = ", ".join(offered[:_LISTED]) + (f" and {len(offered) - _LISTED} more" if len(offered) > _LISTED else "")
        raise NotFound(f"{descriptor}: no manifest for {', '.join(map(str, platforms))}; the index has {listed}")
    keys, digests = {id(child) for child in chosen}, {str(child.digest) for child in chosen}
    return tuple(child for child in children if id(child) in keys or attested_digest(child) in digests)


def attested_digest(descriptor: Descriptor) -> str | None:
    """Return the digest of the manifest described by a BuildKit attestation manifest; None for other content.

    An index lists attestation manifests with the platform unknown/unknown and two annotations (moby/buildkit,
    attestation-storage.md). The annotations only select content; they are no proof of the content.
    """
    platform, annotations = descriptor.platform, dict(descriptor.annotations)
    if platform is None or (platform.os, platform.architecture) != ("unknown", "unknown"):
        return None
    return annotations.get(_ATTESTATION_SUBJECT) if annotations.get(_ATTESTATION_TYPE) == "attestation-manifest" else None


def without_missing_attestations(children: Children, is_missing: Callable[[Descriptor], bool]) -> Children:
    """Return a `Children` function without the attestation manifests for which `is_missing` returns True."""

    def filter_missing(descriptor: Descriptor) -> Sequence[Descriptor]:
        return [child for child in children(descriptor) if attested_digest(child) is None or not is_missing(child)]

    return filter_missing


def is_foreign(descriptor: Descriptor) -> bool:
    """Return True for a non-distributable layer whose descriptor has URLs."""
    return bool(descriptor.urls) and mediatypes.is_foreign(descriptor.media_type)


def without_foreign(children: Children) -> Children:
    """Return a `Children` function without non-distributable layers whose descriptors have URLs."""

    def filter_foreign(descriptor: Descriptor) -> Sequence[Descriptor]:
        return [child for child in children(descriptor) if not is_foreign(child)]

    return filter_foreign
