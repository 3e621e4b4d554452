"""`manifest.json`, the list of images that `docker save` writes and `docker load` reads. Docker's source is its specification.

The list has no manifests. An image is a config and layers, and the config contains the digests of the uncompressed layers
("diff IDs", image-spec 1.1, config.md). Therefore an import creates a manifest, and an export lists only images of one
platform.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import orjson

from prefect_dist.ocispec import Descriptor, Digest, Hasher, Reference, config, fields, manifest, mediatypes
from prefect_dist.ocispec.errors import Corrupt, InvalidInput
from prefect_dist.storage.archive import layout
from prefect_dist.storage.archive.received import Received, ingest
from prefect_dist.storage.names import Name
from prefect_dist.storage.store import ContentStore

_GZIP = b"\x1f\x8b"
_GZIP_WINDOW = 31  # zlib's value for the gzip format
_PIECE_BYTES = 1024 * 1024  # of an uncompressed layer
_CONFIGS = (mediatypes.OCI_CONFIG, mediatypes.DOCKER_CONFIG)


def docker_list(store: ContentStore, images: Iterable[tuple[Name, Sequence[Descriptor]]]) -> bytes:
    """Return Docker's list (manifest.json) of the images that have exactly one platform."""
    tags: dict[tuple[Descriptor, ...], list[str]] = {}
    for name, descriptors in images:
        found = [parts for descriptor in descriptors if (parts := _image_parts(store, descriptor))]
        if len(found) == 1:
            tags.setdefault(found[0], []).extend(_docker_tags(name.name))
    return orjson.dumps([_item(parts, names) for parts, names in tags.items()])


def build_manifest(store: ContentStore, received: Received, item: fields.Json, *, at: str) -> Descriptor:
    """Create the manifest of a listed image from received content, write it to the store and return its descriptor.

    Raises:
        NotFound: the archive lacks the config or a layer.
        Corrupt: the digest of an uncompressed layer differs from the diff ID in the config.
        InvalidInput: the list or the config has another form.
    """
    configured = received.find(store, fields.require(item, "Config", str, at=at))
    layers = [received.find(store, name) for name in fields.strings(item, "Layers", at=at)]
    diff_ids = _read_diff_ids(store, configured, at=f"{at}.Config")
    if len(layers) != len(diff_ids):
        raise InvalidInput(f"{at}.Layers: expected {len(diff_ids)} layers as in the config, got {len(layers)}")
    document = {
        "schemaVersion": 2,
        "mediaType": mediatypes.OCI_MANIFEST,
        "config": replace(configured, media_type=mediatypes.OCI_CONFIG).to_json(),
        "layers": [_check_layer(store, *pair, at=at).to_json() for pair in zip(layers, diff_ids, strict=True)],
    }
    return _store_manifest(store, received, orjson.dumps(document))


def _image_parts(store: ContentStore, descriptor: Descriptor) -> tuple[Descriptor, ...]:
    """Return the config and layers of an image; an empty tuple for other content, for example an attestation."""
    if descriptor.kind != "manifest":
        return ()
    configured, *layers = manifest.children(store.manifest(descriptor), descriptor.media_type, at=str(descriptor))
    return (configured, *layers) if configured.media_type in _CONFIGS and all(layer.kind == "layer" for layer in layers) else ()


def _docker_tags(name: str) -> list[str]:
    """Return the name in a list if `docker load` accepts it, which requires a tag and no digest; otherwise an empty list."""
    try:
        reference = Reference.parse(name)
    except InvalidInput:
        return []
    return [] if reference.tag is None or reference.digest else [name]


def _item(parts: Sequence[Descriptor], tags: list[str]) -> dict[str, object]:
    first, *layers = [layout.blob_entry(part.digest) for part in parts]
    return {"Config": first, "RepoTags": tags, "Layers": layers}


def _read_diff_ids(store: ContentStore, configured: Descriptor, *, at: str) -> tuple[Digest, ...]:
    if configured.size > manifest.MAX_BYTES:
        raise InvalidInput(f"expected at most {manifest.MAX_BYTES} bytes, got {configured.size}", subject=at)
    return config.diff_ids(store.manifest(configured), at=at)


def _check_layer(store: ContentStore, layer: Descriptor, diff_id: Digest, *, at: str) -> Descriptor:
    """Return the descriptor of a layer with its media type, after comparing its uncompressed digest with the diff ID."""
    packed = store.read(layer.digest, length=len(_GZIP)) == _GZIP
    found = _hash_unpacked(store, layer.digest, diff_id.algorithm) if packed else layer.digest
    if found != diff_id:
        raise Corrupt(f"layer {layer.digest}: expected diff ID {diff_id}, got {found}", subject=at)
    return replace(layer, media_type=mediatypes.OCI_LAYER_GZIP if packed else mediatypes.OCI_LAYER)


def _hash_unpacked(store: ContentStore, layer: Digest, algorithm: str) -> Digest:
    hasher = Hasher(algorithm)
    try:
        for piece in _inflate(store.chunks(layer)):
            hasher.update(piece)
    except zlib.error as exc:
        raise Corrupt(f"layer {layer}: expected gzip, got {exc}") from exc
    return hasher.digest()


def _inflate(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the uncompressed bytes of a sequence of gzip members, in bounded pieces."""
    inflater = zlib.decompressobj(_GZIP_WINDOW)
    for piece in pieces:
        packed = piece
        while packed:
            yield inflater.decompress(packed, _PIECE_BYTES)
            packed = inflater.unconsumed_tail
            if inflater.eof:
                packed, inflater = inflater.unused_data, zlib.decompressobj(_GZIP_WINDOW)
    yield inflater.flush()


def _store_manifest(store: ContentStore, received: Received, raw: bytes) -> Descriptor:
    made = Descriptor(media_type=mediatypes.OCI_MANIFEST, digest=Digest.of(raw), size=len(raw))
    ingest(store, (raw,), ref=received.ref(str(made)), size=made.size, expected=made.digest, lease=received.lease)
    return made
