"""Reads the files of an image layout on a file system of fsspec.

No path leaves the layout: on a local disk, links that lead out of the layout are refused. All content is verified by its
digest, but `index.json` is not, and a link could make a program read another file.
"""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from prefect_dist.ocispec import Descriptor, Digest, fields, manifest
from prefect_dist.ocispec.errors import Corrupt, Denied, InvalidInput, NotFound, Unavailable, Unsupported
from prefect_dist.ocispec.image_layout import MARKER_NAME, VERSION
from prefect_dist.storage.backend import open_backend

# Small enough to be held in memory by each unit, large enough that a busy machine switches threads rarely.
_DISK_PIECE_BYTES = 4 * 1024 * 1024
# Each piece from an object store costs a round trip.
_OBJECT_PIECE_BYTES = 8 * 1024 * 1024


class LayoutFiles(Protocol):
    """Reads the files of one layout. Thread-safe. `at` names the layout in errors."""

    at: str

    def read_document(self, path: str) -> bytes:
        """Return a small file.

        Raises:
            NotFound: the file is missing.
            Unsupported: the file is larger than a manifest may be.
            DistError: the file cannot be read.
        """

    def size(self, digest: Digest) -> int:
        """Return the size of a blob in bytes.

        Raises:
            NotFound: the blob is missing.
            DistError: the blob cannot be read.
        """

    def read(self, descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        """Yield the bytes of a blob from `offset` on, unverified.

        Raises:
            NotFound: the blob is missing.
            Corrupt: the blob has another size.
            DistError: the blob cannot be read.
        """


class StoredFiles:
    """The files of a layout at a path or URL of fsspec. Thread-safe."""

    def __init__(self, location: str, *, at: str) -> None:
        """Open a layout, which may be missing.

        Raises:
            InvalidInput: an unusable location.
            Unsupported: a file system that does not meet the needs of a layout.
        """
        self.at = at
        try:
            self.backend, self.ingests, self.layout = open_backend(location, {})
        except (InvalidInput, Unsupported) as exc:  # the message begins with the word store, for content stores
            raise type(exc)(exc.message.removeprefix(f"store {location}: "), subject=at) from exc
        self.is_local = not self.layout.scheme
        self.aborted = threading.Event()

    def read_document(self, path: str) -> bytes:
        """Return a small file."""
        full = f"{self.layout.root}/{path}"
        self.refuse_outside(full)
        with self.backend.translate_errors(f"{self.at}: {path}"):
            size = self._size_of_file(full)
            raw = b"" if size == 0 else self.backend.fs.cat_file(full, start=0, end=manifest.MAX_BYTES + 1)
        if max(size, len(raw)) > manifest.MAX_BYTES:
            raise Unsupported(
                f"{path}: expected at most {manifest.MAX_BYTES} bytes, got {max(size, len(raw))}", subject=self.at
            )
        return bytes(raw)

    def size(self, digest: Digest) -> int:
        """Return the size of a blob in bytes."""
        path = self.layout.blob(digest)
        self.refuse_outside(path)
        with self.backend.translate_errors(f"{self.at}: blob {digest}"):
            return self._size_of_file(path)

    def read(self, descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        """Yield the bytes of a blob from `offset` on, unverified."""
        found = self.size(descriptor.digest)
        if found != descriptor.size:
            raise Corrupt(f"expected {descriptor.size} bytes, {self.at} has {found}", subject=descriptor)
        path = self.layout.blob(descriptor.digest)
        pieces = self._read_disk(path, offset) if self.is_local else self._read_objects(path, offset, descriptor.size)
        with self.backend.translate_errors(f"{self.at}: blob {descriptor.digest}"):
            for piece in pieces:
                self.refuse_aborted("reading", descriptor)
                offset += len(piece)
                if offset > descriptor.size:
                    raise Corrupt(f"expected {descriptor.size} bytes, {self.at} has more", subject=descriptor)
                yield piece
        if offset < descriptor.size:
            raise Corrupt(f"expected {descriptor.size} bytes, {self.at} has {offset}", subject=descriptor)

    def refuse_aborted(self, doing: str, descriptor: Descriptor) -> None:
        """Raise an error if the transfers of the run are aborted."""
        if self.aborted.is_set():
            raise Unavailable(f"{doing} {self.at} was aborted", subject=descriptor)

    def refuse_outside(self, path: str) -> None:
        """Check that a path of the layout is inside the layout.

        Raises:
            Denied: a link on the path leads out of the layout.
        """
        if not self.is_local:
            return
        root = os.path.realpath(self.layout.root or "/")
        if os.path.commonpath((root, os.path.realpath(path))) != root:
            what = path.removeprefix(f"{self.layout.root}/")
            raise Denied(
                f"{what} is a link that leads out of the layout; replace the link by a copy of its target", subject=self.at
            )

    def abort(self) -> None:
        """Abort the transfers in flight and refuse later ones."""
        self.aborted.set()

    def _size_of_file(self, path: str) -> int:
        """Return the size of a file, and refuse anything else: reading a named pipe would wait forever."""
        info: dict[str, Any] = self.backend.fs.info(path)
        if info["type"] != "file":
            raise InvalidInput(f"expected a file, got {info['type']}", subject=self.layout.format_path(path))
        return int(info["size"])

    @staticmethod
    def _read_disk(path: str, offset: int) -> Iterator[bytes]:
        # One open file: if another process replaces the blob meanwhile, all bytes come from the same file.
        with Path(path).open("rb", buffering=0) as file:
            file.seek(offset)
            while piece := file.read(_DISK_PIECE_BYTES):
                yield piece

    def _read_objects(self, path: str, offset: int, size: int) -> Iterator[bytes]:
        while offset < size:
            piece: bytes = self.backend.fs.cat_file(path, start=offset, end=min(offset + _OBJECT_PIECE_BYTES, size))
            if not piece:
                return
            yield piece
            offset += len(piece)


def require_version(files: LayoutFiles) -> None:
    """Check the marker of a layout. A layout without a marker is accepted, because its index shows what it is.

    Raises:
        InvalidInput: the marker is no JSON document with a version.
        Unsupported: the layout has another version than 1.0.0.
    """
    try:
        raw = files.read_document(MARKER_NAME)
    except NotFound:
        return
    at = f"{files.at}: {MARKER_NAME}"
    version = fields.require(fields.parse_object(raw, at=at), "imageLayoutVersion", str, at=at)
    if version != VERSION:
        raise Unsupported(
            f"expected an image layout of version {VERSION}, its file {MARKER_NAME} has {version!r}", subject=files.at
        )
