"""Archives for tests: streams that cannot seek, hand-made tar files, and helpers to fill and inspect stores."""

import io
import json
import tarfile
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.storage import ContentStore, open_store
from prefect_dist.storage.archive import Imported, export_images, import_images
from tests import images
from tests.storage.conformance import ingest

MARKER = b'{"imageLayoutVersion":"1.0.0"}'
Entry = tuple[str | tarfile.TarInfo, bytes]


class Stream(io.BytesIO):
    """A stream that cannot seek, like standard input or output."""

    def seek(self, *_: object) -> int:
        raise io.UnsupportedOperation("seek")

    def tell(self) -> int:
        raise io.UnsupportedOperation("tell")

    def seekable(self) -> bool:
        return False


class Breaking(Stream):
    """A stream that raises an error after `after` bytes have been read."""

    def __init__(self, data: bytes, *, after: int, error: BaseException) -> None:
        super().__init__(data[:after])
        self._error = error

    def read(self, size: int | None = -1, /) -> bytes:
        if data := super().read(size):
            return data
        raise self._error


def memory_store() -> ContentStore:
    """Return a new, empty store in memory."""
    return open_store(f"memory://{uuid.uuid4().hex}")


def descriptor(image: images.BuiltImage) -> Descriptor:
    digest, media_type, size = image.root
    return Descriptor(media_type=media_type, digest=Digest.parse(digest), size=size)


def put(store: ContentStore, image: images.BuiltImage, name: str, *, without: Sequence[str] = ()) -> Descriptor:
    """Record an image under a name. Its blobs are written except those that are left out."""
    content = image.blobs | {manifest.digest: manifest.raw for manifest in image.manifests}
    held = {str(info.digest) for info in store.walk()}
    for digest in content.keys() - held - set(without):
        ingest(store, content[digest])
    store.names.put(name, descriptor(image), source="tests")
    return descriptor(image)


def export_to_bytes(store: ContentStore, *names: str) -> bytes:
    stream = Stream()
    export_images(store, names, stream)
    return stream.getvalue()


def import_archive(store: ContentStore, data: bytes, *, name: str | None = None) -> tuple[Imported, ...]:
    return import_images(store, Stream(data), source="a.tar", name=name)


def tar_of(entries: Sequence[Entry], *, mode: str = "w") -> bytes:
    """Return a tar archive of files and of entries with hand-made headers."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload] # the mode is a parameter
        for entry, data in entries:
            header = tarfile.TarInfo(entry) if isinstance(entry, str) else entry
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return file.getvalue()


def link(name: str, target: str, *, kind: bytes = tarfile.SYMTYPE) -> Entry:
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, target
    return header, b""


def entries_of(data: bytes) -> dict[str, bytes]:
    """Return the files in a tar archive by name, in order."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = [(member.name, tar.extractfile(member)) for member in tar]
        return {name: file.read() for name, file in members if file is not None}


def layout(image: images.BuiltImage, *, annotations: Mapping[str, str]) -> list[Entry]:
    """Return the entries of an image layout with one image, in the order of skopeo: blobs first."""
    content = image.blobs | {manifest.digest: manifest.raw for manifest in image.manifests}
    digest, media_type, size = image.root
    entry = {"mediaType": media_type, "digest": digest, "size": size, "annotations": dict(annotations)}
    files: list[Entry] = [(f"blobs/{digest.replace(':', '/')}", data) for digest, data in content.items()]
    return [*files, ("index.json", document({"schemaVersion": 2, "manifests": [entry]})), ("oci-layout", MARKER)]


def document(value: Any) -> bytes:
    return json.dumps(value).encode()


def content(store: ContentStore) -> dict[str, bytes]:
    """Return every blob of a store, verified."""
    return {str(info.digest): b"".join(store.chunks(info.digest)) for info in store.walk()}


def names(store: ContentStore) -> dict[str, Descriptor]:
    return {name.name: name.descriptor for name in store.names}
