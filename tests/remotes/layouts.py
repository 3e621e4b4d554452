"""Image layouts for tests, written without the tested package, and remotes that read and write them."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.remotes import Registries, Source, Target
from prefect_dist.remotes.layout_remote import LayoutRemote
from prefect_dist.remotes.remotes import OpenContext
from tests.images import BuiltImage
from tests.remotes.asking import SETTINGS, anonymous

REF_NAME = "org.opencontainers.image.ref.name"
MARKER = '{"imageLayoutVersion":"1.0.0"}'


def write_blobs(directory: Path, *images: BuiltImage) -> None:
    """Write the content of images."""
    for image in images:
        for digest, data in (image.blobs | {manifest.digest: manifest.raw for manifest in image.manifests}).items():
            algorithm, _, encoded = digest.partition(":")
            (directory / "blobs" / algorithm).mkdir(parents=True, exist_ok=True)
            (directory / "blobs" / algorithm / encoded).write_bytes(data)


def write_layout(directory: Path, named: Mapping[str, BuiltImage], *unnamed: BuiltImage) -> Path:
    """Write a layout with images by name, and images without a name."""
    write_blobs(directory, *named.values(), *unnamed)
    (directory / "oci-layout").write_text(MARKER)
    entries = [entry(image, {REF_NAME: name}) for name, image in named.items()]
    write_index(directory, *entries, *(entry(image) for image in unnamed))
    return directory


def write_index(directory: Path, *entries: Mapping[str, Any], **more: Any) -> None:
    """Write the index of a layout."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries, **more}))


def entry(image: BuiltImage, annotations: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """Return the entry of an image in an index."""
    digest, media_type, size = image.root
    annotated = {"annotations": dict(annotations)} if annotations else {}
    return {"mediaType": media_type, "digest": digest, "size": size, **annotated, **more}


def read_index(directory: Path) -> dict[str, Any]:
    """Return the index of a layout."""
    document: dict[str, Any] = json.loads((directory / "index.json").read_bytes())
    return document


def names_in(directory: Path) -> dict[str | None, str]:
    """Return the digest of each name in the index of a layout."""
    return {one.get("annotations", {}).get(REF_NAME): one["digest"] for one in read_index(directory)["manifests"]}


def blob_file(directory: Path, digest: str | Digest) -> Path:
    """Return the path of a blob."""
    return directory / "blobs" / str(digest).replace(":", "/")


def root_of(image: BuiltImage) -> Descriptor:
    """Return the descriptor of the root of an image."""
    digest, media_type, size = image.root
    return Descriptor(media_type=media_type, digest=Digest.parse(digest), size=size)


def blob(data: bytes, *, algorithm: str = "sha256") -> Descriptor:
    """Return the descriptor of a layer with these bytes."""
    media_type = "application/vnd.oci.image.layer.v1.tar"
    return Descriptor(media_type=media_type, digest=Digest.of(data, algorithm=algorithm), size=len(data))


def layout(place: object, tail: str = "") -> Reference:
    """Return the reference of a layout; `tail` is ":tag", "@digest" or both."""
    return Reference.parse(f"oci:{place}{tail}")


@contextmanager
def open_layouts() -> Iterator[LayoutRemote]:
    """Open the remote of all layouts, without credentials."""
    with Registries(SETTINGS, credentials=anonymous) as registries:
        remote = LayoutRemote(OpenContext(registries=registries, open_store=_no_store))
        try:
            yield remote
        finally:
            remote.close()


def fetch(source: Source, descriptor: Descriptor, *, offset: int = 0) -> bytes:
    """Return the bytes of a descriptor from `offset` on."""
    return b"".join(source.fetch(descriptor, offset=offset))


def _no_store() -> Any:
    raise AssertionError("a layout needs no content store")


def upload(target: Target, data: bytes, described: Descriptor | None = None) -> list[int]:
    """Upload a blob, and return the offsets from which its content was read."""
    asked = list[int]()

    def read(offset: int) -> Iterator[bytes]:
        asked.append(offset)
        yield data[offset:]

    target.upload(described or blob(data), read, observer=lambda _offset, _gained: None)
    return asked


def publish(target: Target, image: BuiltImage, tag: str) -> None:
    """Write an image as a run does: blobs, then manifests, children before parents, the tag last."""
    for digest, data in image.blobs.items():
        described = Descriptor(media_type="application/octet-stream", digest=Digest.parse(digest), size=len(data))
        if not target.has(described):
            upload(target, data, described)
    for one in image.manifests:
        described = Descriptor(media_type=one.media_type, digest=Digest.parse(one.digest), size=len(one.raw))
        target.put(one.raw, described, tag=tag if one.digest == image.root.digest else None)


def files_in(directory: Path) -> set[str]:
    """Return the relative paths of all files and empty directories."""
    paths = directory.rglob("*")
    return {str(path.relative_to(directory)) for path in paths if not path.is_dir() or not any(path.iterdir())}
