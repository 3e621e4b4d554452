"""The children, subject and media type of manifests (image-spec 1.1, image-index.md and manifest.md; Docker v2 schema 2).

This module parses manifests and never writes them, so unknown fields survive and digests stay correct.
"""

from prefect_dist.ocispec import fields, mediatypes
from prefect_dist.ocispec.descriptor import Descriptor
from prefect_dist.ocispec.errors import InvalidInput, Unsupported, quote_text

# Registries accept up to 4 MiB (distribution-spec 1.1, "Pushing Manifests"); more is refused before it is read.
MAX_BYTES = 4 * 1024 * 1024

# 4 MiB have room for 37,000 entries, each of which becomes a task and takes 40 KB of a run's memory. Prefect's graph view has
# the same limit of nodes, and no known image comes near it.
MAX_CHILDREN = 10_000

# The fields by which the kind of a document is recognised.
_FIELDS: dict[mediatypes.Kind, tuple[str, ...]] = {
    "index": ("manifests",),
    "manifest": ("config", "layers"),
    "artifact": ("blobs",),
}


def children(raw: bytes, media_type: str, *, at: str) -> tuple[Descriptor, ...]:
    """Return the descriptors in a document, in order: the manifests of an index, or the config and then the layers of an image.

    Content with any other media type has no children. `at` names the document in errors.

    Raises:
        InvalidInput: not JSON, a bad field, or a document with the fields of two kinds (CVE-2021-41190).
        Unsupported: schema 1, or more than MAX_CHILDREN entries.
    """
    kind = mediatypes.kind(media_type)
    if kind == "schema1":
        raise _schema1(at)
    if not mediatypes.is_manifest(media_type):
        return ()
    document = fields.parse_object(raw, at=at)
    if kind != _kind_of(document, at=at):
        raise InvalidInput(f"{at}: expected {media_type}, got a document of another type")
    if kind == "index":
        return _list_descriptors(document, "manifests", at=at)
    if kind == "artifact":
        return _list_descriptors(document, "blobs", at=at)
    config = Descriptor.from_json(fields.require(document, "config", dict, at=at), at=f"{at}.config")
    return (config, *_list_descriptors(document, "layers", at=at))


def subject(raw: bytes, media_type: str, *, at: str) -> Descriptor | None:
    """Return the subject of a manifest; None without a subject. A subject is not one of the children.

    Raises:
        InvalidInput: not JSON, or a bad descriptor.
        Unsupported: a digest algorithm other than sha256 and sha512.
    """
    if not mediatypes.is_manifest(media_type):
        return None
    found = fields.optional(fields.parse_object(raw, at=at), "subject", dict, at=at)
    return None if found is None else Descriptor.from_json(found, at=f"{at}.subject")


def media_type_of(raw: bytes, *, at: str) -> str:
    """Return the `mediaType` of a document, or if this field is missing, the OCI type with the fields of the document.

    Raises:
        InvalidInput: not JSON, ambiguous, or not a manifest.
        Unsupported: schema 1.
    """
    document = fields.parse_object(raw, at=at)
    kind = _kind_of(document, at=at)
    claimed = fields.optional(document, "mediaType", str, at=at)
    return claimed or (mediatypes.OCI_INDEX if kind == "index" else mediatypes.OCI_MANIFEST)


def find_media_type(raw: bytes, *, at: str) -> str | None:
    """Return the media type of a manifest without a descriptor, or None for other content.

    A config may have a field `config`, too, so the descriptors of the manifest are checked.
    """
    try:
        found = media_type_of(raw, at=at)
        children(raw, found, at=at)
    except (InvalidInput, Unsupported):
        return None
    return found


def _kind_of(document: fields.Json, *, at: str) -> mediatypes.Kind:
    """Return the kind on which the fields and the `mediaType` of a document agree."""
    if document.get("fsLayers") is not None or document.get("schemaVersion") == 1:
        raise _schema1(at)
    claimed = fields.optional(document, "mediaType", str, at=at)
    fits = {kind for kind, keys in _FIELDS.items() if any(document.get(key) for key in keys)}
    if len(fits) > 1:
        raise InvalidInput(
            f"{at}: has the fields of both {' and '.join(sorted(fits))}; refused, since tools would disagree about it"
        )
    kind = _kind_from_fields(document, at=at) if claimed is None else mediatypes.kind(claimed)
    if kind == "schema1":
        raise _schema1(at)
    if kind not in _FIELDS:
        raise InvalidInput(f"{at}.mediaType: expected the type of a manifest, got {quote_text(str(claimed))}")
    if fits - {kind}:
        raise InvalidInput(f"{at}: expected the fields of {claimed or kind}, got the fields of another type")
    return kind


def _kind_from_fields(document: fields.Json, *, at: str) -> mediatypes.Kind:
    if "manifests" in document:
        return "index"
    if "config" in document or "layers" in document:
        return "manifest"
    raise InvalidInput(f"{at}: expected a manifest, got an object with neither manifests nor config")


def _list_descriptors(document: fields.Json, key: str, *, at: str) -> tuple[Descriptor, ...]:
    count = len(fields.optional(document, key, list, at=at) or ())
    if count > MAX_CHILDREN:
        raise Unsupported(f"{at}.{key}: expected at most {MAX_CHILDREN} entries, got {count}")
    return tuple(Descriptor.from_json(item, at=path) for path, item in fields.objects(document, key, at=at))


def _schema1(at: str) -> Unsupported:
    return Unsupported(f"{at}: image manifest version 2, schema 1 is obsolete and refused; rebuild or re-push the image")
