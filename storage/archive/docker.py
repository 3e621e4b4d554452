"""`manifest.json`, the list of images that `docker save` writes and `docker load` reads. Docker's source is its specification.

The list has no manifests. An image is a config and layers, and the config contains the digests of the uncompressed layers
("diff IDs", image-spec 1.1, config.md). Therefore an import creates a manifest, and an export lists only images of one
platform.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import orjson

from prefect_dist.ocispec import Descriptor, Digest, Hasher, Reference, config, fields, manifest, mediatypes
from prefect_dist.ocispec.errors import Corrupt, InvalidInput
from prefect_dist.storage.archive import layout
from prefect_dist.storage.archive.received import Received, ingest
from prefect_dist.storage.store import ContentStore

_GZIP = b"\x1f\x8b"
_GZIP_WINDOW = 31  # zlib's value for the gzip format
_PIECE_BYTES = 1024 * 1024  # of an uncompressed layer
_CONFIGS = (mediatypes.OCI_CONFIG, mediatypes.DOCKER_CONFIG)


class ListedContent(Protocol):
    """The content that Docker's list refers to by the names of entries."""

    def find(self, name: str) -> Descriptor:
        """Return the content of an entry, with an unknown media type. Links are followed.

        Raises:
            NotFound: the archive lacks the entry.
        """

    def read_document(self, descriptor: Descriptor) -> bytes:
        """Return the verified bytes of a small file."""

    def read_pieces(self, digest: Digest) -> Iterator[bytes]:
        """Yield the bytes of a file in bounded pieces."""


def docker_list(read: Callable[[Descriptor], bytes], images: Iterable[tuple[str, Sequence[Descriptor]]]) -> bytes:
    """Return Docker's list (manifest.json) of the images that have exactly one platform.

    `read` returns a manifest. `images` has the name of each image, and the descriptors of its tree.
    """
    tags: dict[tuple[Descriptor, ...], list[str]] = {}
    for name, descriptors in images:
        found = find_platforms(read, descriptors)
        if len(found) == 1:
            tags.setdefault(found[0], []).extend(_docker_tags(name))
    return orjson.dumps([_item(parts, names) for parts, names in tags.items()])


def find_platforms(read: Callable[[Descriptor], bytes], descriptors: Iterable[Descriptor]) -> list[tuple[Descriptor, ...]]:
    """Return the config and layers of each platform of an image. `read` returns a manifest."""
    return [parts for descriptor in descriptors if (parts := _image_parts(read, descriptor))]


def build_manifest(store: ContentStore, received: Received, item: fields.Json, *, at: str) -> Descriptor:
    """Create the manifest of a listed image from received content, write it to the store and return its descriptor.

    Raises:
        NotFound, Corrupt, InvalidInput: see `make_manifest`.
    """
    return _store_manifest(store, received, make_manifest(_ReceivedContent(store, received), item, at=at))


def make_manifest(content: ListedContent, item: fields.Json, *, at: str) -> bytes:
    """Return the manifest of an image in Docker's list. Equal images give equal manifests.

    Raises:
        NotFound: the archive lacks the config or a layer.
        Corrupt: the digest of an uncompressed layer differs from the diff ID in the config.
        InvalidInput: the list or the config has another form.
    """
    configured = content.find(fields.require(item, "Config", str, at=at))
    layers = [content.find(name) for name in fields.strings(item, "Layers", at=at)]
    diff_ids = _read_diff_ids(content, configured, at=f"{at}.Config")
    if len(layers) != len(diff_ids):
        raise InvalidInput(f"{at}.Layers: expected {len(diff_ids)} layers as in the config, got {len(layers)}")
    document = {
        "schemaVersion": 2,
        "mediaType": mediatypes.OCI_MANIFEST,
        "config": replace(configured, media_type=mediatypes.OCI_CONFIG).to_json(),
        "layers": [_check_layer(content, *pair, at=at).to_json() for pair in zip(layers, diff_ids, strict=True)],
    }
    return orjson.dumps(document)


@dataclass(frozen=True, slots=True)
class _ReceivedContent:
    store: ContentStore
    received: Received

    def find(self, name: str) -> Descriptor:
        return self.received.find(self.store, name)

    def read_document(self, descriptor: Descriptor) -> bytes:
        return self.store.manifest(descriptor)

    def read_pieces(self, digest: Digest) -> Iterator[bytes]:
        return self.store.chunks(digest)


def _image_parts(read: Callable[[Descriptor], bytes], descriptor: Descriptor) -> tuple[Descriptor, ...]:
    """Return the config and layers of an image; an empty tuple for other content, for example an attestation."""
    if descriptor.kind != "manifest":
        return ()
    configured, *layers = manifest.children(read(descriptor), descriptor.media_type, at=str(descriptor))
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


def _read_diff_ids(content: ListedContent, configured: Descriptor, *, at: str) -> tuple[Digest, ...]:
    if configured.size > manifest.MAX_BYTES:
        raise InvalidInput(f"expected at most {manifest.MAX_BYTES} bytes, got {configured.size}", subject=at)
    return config.diff_ids(content.read_document(configured), at=at)


def _check_layer(content: ListedContent, layer: Descriptor, diff_id: Digest, *, at: str) -> Descriptor:
    """Return the descriptor of a layer with its media type, after comparing its uncompressed digest with the diff ID."""
    packed = next(content.read_pieces(layer.digest), b"").startswith(_GZIP)
    found = _hash_unpacked(content, layer.digest, diff_id.algorithm) if packed else layer.digest
    if found != diff_id:
        raise Corrupt(f"layer {layer.digest}: expected diff ID {diff_id}, got {found}", subject=at)
    return replace(layer, media_type=mediatypes.OCI_LAYER_GZIP if packed else mediatypes.OCI_LAYER)


def _hash_unpacked(content: ListedContent, layer: Digest, algorithm: str) -> Digest:
    hasher = Hasher(algorithm)
    try:
        for piece in _inflate(content.read_pieces(layer)):
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
