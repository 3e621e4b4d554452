"""Reduces an index to some platforms. No other code of this program creates a document with a new digest.

A sparse index, in which some manifests are missing, keeps its digest and signatures. Some registries reject a sparse index and
need a rewritten index.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from prefect_dist.ocispec import fields, manifest
from prefect_dist.ocispec.children import attested_digest, select_manifests
from prefect_dist.ocispec.descriptor import Descriptor
from prefect_dist.ocispec.digest import Digest
from prefect_dist.ocispec.errors import NotFound, Unsupported
from prefect_dist.ocispec.platform import Platform

# Known images nest indexes at most three deep.
_MAX_DEPTH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class FilteredIndex:
    """The result of a filter.

    `root` is the root of the filtered tree. `indexes` are its rewritten indexes with their bytes in `data`, inner indexes
    first.
    """

    root: Descriptor
    indexes: tuple[Descriptor, ...] = ()


def filter_index(
    root: Descriptor,
    platforms: Sequence[Platform],
    read: Callable[[Descriptor], bytes],
    *,
    is_missing: Callable[[Descriptor], bool] | None = None,
    depth: int = 0,
) -> FilteredIndex:
    """Return the tree below `root` reduced to `platforms`. An index that needs no change is not rewritten.

    The rewritten index keeps its other fields in their order, so equal input gives equal bytes. Attestation manifests for which
    `is_missing` returns True are left out.

    Raises:
        NotFound: an index has no manifest for any of `platforms`.
        InvalidInput, Unsupported: an index cannot be parsed, or indexes are nested too deeply.
        DistError: see `read`.
    """
    if root.kind != "index":
        return FilteredIndex(root=root)
    if depth > _MAX_DEPTH:
        raise Unsupported(f"{root}: expected at most {_MAX_DEPTH} nested indexes, found more")
    raw, at = read(root), str(root)
    children = manifest.children(raw, root.media_type, at=at)
    document = fields.parse_object(raw, at=at)
    wanted = select_manifests(platforms, root, children)
    chosen = {one.key for one in wanted if is_missing is None or attested_digest(one) is None or not is_missing(one)}
    entries, indexes = list[dict[str, Any]](), list[Descriptor]()
    for child, (_, entry) in zip(children, fields.objects(document, "manifests", at=at), strict=True):
        if child.key in chosen:
            below = filter_index(child, platforms, read, is_missing=is_missing, depth=depth + 1)
            entries.append(dict(entry) if below.root is child else _replace_content(entry, below.root))
            indexes += below.indexes
    if len(entries) == len(children) and not indexes:
        return FilteredIndex(root=root)
    written = orjson.dumps({**document, "manifests": entries})
    new = replace(root, digest=Digest.of(written, algorithm=root.digest.algorithm), size=len(written), data=written)
    return FilteredIndex(root=new, indexes=(*indexes, new))


def select_image(root: Descriptor, platform: Platform, read: Callable[[Descriptor], bytes]) -> Descriptor:
    """Return the image for a platform in an index or in a nested index. Return `root` unchanged if it is not an index.

    Raises:
        NotFound: the index has no image for the platform.
        InvalidInput, Unsupported: an index cannot be parsed, or indexes are nested too deeply.
        DistError: see `read`.
    """
    for _ in range(_MAX_DEPTH):
        if root.kind != "index":
            return root
        children = manifest.children(read(root), root.media_type, at=str(root))
        if not children:
            raise NotFound(f"{root}: no manifest for {platform}; the index is empty")
        chosen = select_manifests((platform,), root, children)
        root = next((one for one in chosen if attested_digest(one) is None), chosen[0])
    raise Unsupported(f"{root}: expected at most {_MAX_DEPTH} nested indexes, found more")


def _replace_content(old: fields.Json, root: Descriptor) -> dict[str, Any]:
    """Return an entry of an index with the digest and size of its rewritten manifest."""
    kept = {key: value for key, value in old.items() if key != "data"}
    return {**kept, "digest": str(root.digest), "size": root.size}
