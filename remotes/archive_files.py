"""The images in an archive as the files of an image layout, without writing any content.

An archive with `index.json` is a layout already. For an archive with only Docker's list, manifests and an `index.json` are made
from the list, as `dist import` makes them.
"""

from collections.abc import Callable, Iterator

from prefect_dist.ocispec import Descriptor, Digest, Hasher, Reference, fields, manifest, mediatypes
from prefect_dist.ocispec.errors import Corrupt, InvalidInput, NotFound, Unsupported
from prefect_dist.ocispec.image_layout import INDEX
from prefect_dist.remotes.archive_file import ArchiveFile, Span
from prefect_dist.remotes.archive_place import ArchivePlace, make_index, rename
from prefect_dist.remotes.layout_files import LayoutFiles
from prefect_dist.storage.archive import layout
from prefect_dist.storage.archive.docker import make_manifest

_REMEDY = "if the archive has only some platforms, select a platform, or use dist import, which accepts missing manifests"


class ArchiveFiles:
    """The files of the image layout in an archive. Thread-safe."""

    def __init__(self, file: ArchiveFile) -> None:
        self.at, self._file = file.at, file

    def read_document(self, path: str) -> bytes:
        """Return a small file of the archive."""
        span = self._file.find(path)
        if span is None and path == INDEX and self._file.find(layout.DOCKER_LIST) is not None:
            raise Unsupported("the archive has only Docker's list of images; name it docker-archive:FILE", subject=self.at)
        if span is None:
            raise NotFound(f"{path} is missing in the archive", subject=self.at)
        return read_whole(self._file, path, span)

    def size(self, digest: Digest) -> int:
        """Return the size of a blob in bytes."""
        return self._find(digest).size

    def read(self, descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        """Yield the bytes of a blob from `offset` on, unverified."""
        span = self._find(descriptor.digest)
        _require_size(self.at, descriptor, span.size)
        return self._file.read(span, offset)

    def _find(self, digest: Digest) -> Span:
        span = self._file.find(layout.blob_entry(digest))
        if span is None:
            raise NotFound(f"blob {digest} is missing in the archive; {_REMEDY}", subject=self.at)
        return span


class DockerFiles:
    """The images in Docker's list of an archive as a layout. Thread-safe, because nothing changes after the construction."""

    def __init__(self, file: ArchiveFile) -> None:
        """Read the list, hash the content of its images, and make their manifests.

        Raises:
            NotFound: the archive lacks the list, or content of an image.
            Corrupt: content does not match the digest in its name or in a config.
            InvalidInput: the list or a config has another form.
            DistError: the archive cannot be read.
        """
        self.at, self._file = file.at, file
        self._content, self._made = _DockerContent(file), dict[Digest, bytes]()
        span = file.find(layout.DOCKER_LIST)
        if span is None:
            raise NotFound(f"not an archive of images, found neither {INDEX} nor {layout.DOCKER_LIST}", subject=self.at)
        raw = read_whole(file, layout.DOCKER_LIST, span)
        entries = list[Descriptor]()
        for at, item in fields.parse_objects(raw, at=f"{self.at}: {layout.DOCKER_LIST}"):
            made = self._make_manifest(item, at)
            names = dict.fromkeys(map(layout.expand_name, fields.strings(item, "RepoTags", at=at)))
            entries += [rename(made, name) for name in names or (None,)]
        self._index = make_index(entries)

    def read_document(self, path: str) -> bytes:
        """Return the index of the images; the archive has no other document."""
        if path != INDEX:
            raise NotFound(f"{path} is missing in the archive", subject=self.at)
        return self._index

    def size(self, digest: Digest) -> int:
        """Return the size of a blob in bytes."""
        return len(self._made[digest]) if digest in self._made else self._find(digest).size

    def read(self, descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        """Yield the bytes of a blob from `offset` on, unverified."""
        _require_size(self.at, descriptor, self.size(descriptor.digest))
        raw = self._made.get(descriptor.digest)
        return self._file.read(self._find(descriptor.digest), offset) if raw is None else iter((raw[offset:],))

    def _make_manifest(self, item: fields.Json, at: str) -> Descriptor:
        raw = make_manifest(self._content, item, at=at)
        made = Descriptor(media_type=mediatypes.OCI_MANIFEST, digest=Digest.of(raw), size=len(raw))
        self._made[made.digest] = raw
        return made

    def _find(self, digest: Digest) -> Span:
        span = self._content.spans.get(digest)
        if span is None:
            raise NotFound(f"blob {digest} is missing in the archive", subject=self.at)
        return span


class _DockerContent:
    """The content of the images in Docker's list, by the names of entries and by digest. Each entry is hashed once."""

    def __init__(self, file: ArchiveFile) -> None:
        self._file = file
        self._found: dict[str, Descriptor] = {}
        self.spans: dict[Digest, Span] = {}

    def find(self, name: str) -> Descriptor:
        """Return the content of an entry, with an unknown media type. Links are followed."""
        name = self._file.follow(name)
        if name not in self._found:
            span = self._file.find(name)
            if span is None:
                raise NotFound(
                    f"{name!r} is missing in the archive, expected by its {layout.DOCKER_LIST}", subject=self._file.at
                )
            self._found[name] = self._hash(name, span)
        return self._found[name]

    def read_document(self, descriptor: Descriptor) -> bytes:
        """Return the bytes of a small file."""
        return b"".join(self.read_pieces(descriptor.digest))

    def read_pieces(self, digest: Digest) -> Iterator[bytes]:
        """Yield the bytes of a file in bounded pieces."""
        return self._file.read(self.spans[digest])

    def _hash(self, name: str, span: Span) -> Descriptor:
        expected = layout.digest_of(name)
        hasher = Hasher("sha256" if expected is None else expected.algorithm)
        for piece in self._file.read(span):
            hasher.update(piece)
        digest = hasher.digest()
        if expected is not None and digest != expected:
            raise Corrupt(f"{name}: expected {expected}, got {digest}; create the archive again", subject=self._file.at)
        self.spans[digest] = span
        return Descriptor(media_type=mediatypes.OCTET_STREAM, digest=digest, size=span.size)


class SelectedFiles:
    """The files of a layout with only the images of one place. Thread-safe.

    `open_files` returns all files. The errors of opening an archive are those of the first use of its files.
    """

    def __init__(self, reference: Reference, open_files: Callable[[ArchivePlace], LayoutFiles]) -> None:
        self.at = reference.locator
        self._reference, self._open_files = reference, open_files

    def read_document(self, path: str) -> bytes:
        """Return a small file; `index.json` lists the images of the place."""
        place = ArchivePlace.parse(self._reference)
        raw = self._open_files(place).read_document(path)
        return place.select(raw, at=self.at) if path == INDEX else raw

    def size(self, digest: Digest) -> int:
        """Return the size of a blob in bytes."""
        return self._open_files(ArchivePlace.parse(self._reference)).size(digest)

    def read(self, descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        """Yield the bytes of a blob from `offset` on, unverified."""
        return self._open_files(ArchivePlace.parse(self._reference)).read(descriptor, offset)


def read_whole(file: ArchiveFile, name: str, span: Span) -> bytes:
    """Return the content of a small entry.

    Raises:
        InvalidInput: the entry is larger than a manifest may be.
    """
    if span.size > manifest.MAX_BYTES:
        raise InvalidInput(f"{name}: expected at most {manifest.MAX_BYTES} bytes, got {span.size}", subject=file.at)
    return b"".join(file.read(span))


def _require_size(at: str, descriptor: Descriptor, found: int) -> None:
    if found != descriptor.size:
        raise Corrupt(f"expected {descriptor.size} bytes, {at} has {found}", subject=descriptor)
