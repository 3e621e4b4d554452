"""The files of an image layout on a file system of fsspec: reading, and writing that is safe against crashes and other writers.

No path leaves the layout: on a local disk, links that lead out of the layout are refused. All content is verified by its
digest, but `index.json` is not, and a link could make a program read or overwrite another file.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Protocol

from prefect_dist.ocispec import Descriptor, Digest, manifest
from prefect_dist.ocispec.errors import AlreadyExists, Busy, Corrupt, Denied, InvalidInput, NotFound, Unavailable, Unsupported
from prefect_dist.remotes.remote import Observer, Read
from prefect_dist.storage.backend import open_backend
from prefect_dist.storage.file_info import is_there
from prefect_dist.storage.index import MARKER
from prefect_dist.storage.ingest import Writer
from prefect_dist.storage.statefile import change_file

INDEX = "index.json"
_PIECE_BYTES = 4 * 1024 * 1024
# A second writer of the same content polls the first one.
_PAUSE_S = 0.1


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
        """Open a layout. Nothing is created before the first write.

        Raises:
            InvalidInput: an unusable location.
            Unsupported: a file system that does not meet the needs of a layout.
        """
        self.at = at
        self._backend, self._ingests, self._layout = open_backend(location, {})
        self._is_local = not self._layout.scheme
        self._is_prepared = False
        self._preparing = threading.Lock()
        self._aborted = threading.Event()

    def read_document(self, path: str) -> bytes:
        """Return a small file."""
        full = self._inside(f"{self._layout.root}/{path}")
        with self._backend.translate_errors(f"{self.at}: {path}"):
            size = self._backend.fs.info(full)["size"]
            if size > manifest.MAX_BYTES:
                raise Unsupported(f"{path}: expected at most {manifest.MAX_BYTES} bytes, got {size}", subject=self.at)
            raw: bytes = self._backend.fs.cat_file(full)
        return raw

    def size(self, digest: Digest) -> int:
        """Return the size of a blob in bytes."""
        path = self._inside(self._layout.blob(digest))
        with self._backend.translate_errors(f"{self.at}: blob {digest}"):
            size: int = self._backend.fs.info(path)["size"]
        return size

    def read(self, descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        """Yield the bytes of a blob from `offset` on, unverified."""
        found = self.size(descriptor.digest)
        if found != descriptor.size:
            raise Corrupt(f"expected {descriptor.size} bytes, {self.at} has {found}", subject=descriptor)
        path = self._layout.blob(descriptor.digest)
        while offset < descriptor.size:
            self._check("reading", descriptor)
            with self._backend.translate_errors(f"{self.at}: blob {descriptor.digest}"):
                piece = self._backend.fs.cat_file(path, start=offset, end=min(offset + _PIECE_BYTES, descriptor.size))
            if not piece:
                raise Corrupt(f"expected {descriptor.size} bytes, {self.at} has {offset}", subject=descriptor)
            offset += len(piece)
            yield piece

    def write(self, descriptor: Descriptor, read: Read, *, observer: Observer) -> None:
        """Write a blob, unless the layout has the blob. An interrupted write is resumed.

        Raises:
            Corrupt: `read` yields other content than the descriptor describes.
            DistError: an error of the file system or of `read`.
        """
        self._prepare()
        writer = self._open_writer(descriptor)
        if writer is None:
            return
        with writer:
            for piece in read(writer.offset) if writer.offset < descriptor.size else ():
                self._check("writing to", descriptor)
                writer.write(piece)
                observer(writer.offset, len(piece))
            try:
                with suppress(AlreadyExists):
                    writer.commit()
            except Corrupt:
                writer.truncate()  # any byte may be wrong, so the next attempt starts at 0
                raise

    def _open_writer(self, descriptor: Descriptor) -> Writer | None:
        """Return a writer for a blob, or None if the layout has the blob, perhaps from another writer."""
        while True:
            try:
                return self._ingests.writer(
                    f"{descriptor.kind}-{descriptor.digest}", expected=descriptor.digest, total=descriptor.size
                )
            except AlreadyExists:
                return None
            except Busy:
                self._aborted.wait(_PAUSE_S)
                self._check("writing to", descriptor)

    def _check(self, doing: str, descriptor: Descriptor) -> None:
        """Raise an error if the transfers of the run are aborted."""
        if self._aborted.is_set():
            raise Unavailable(f"{doing} {self.at} was aborted", subject=descriptor)

    def change_index(self, make_content: Callable[[bytes | None], bytes]) -> None:
        """Replace `index.json` by the result of `make_content`, which gets the old content, or None without an index.

        Raises:
            StoreFull, Denied, Unavailable: the file system, or conflicts with other writers for a minute.
            DistError: see `make_content`.
        """
        self._prepare()
        change_file(self._backend, self._inside(self._layout.index), make_content, what=f"{self.at}: {INDEX}")

    def abort(self) -> None:
        """Abort the transfers in flight and refuse later ones."""
        self._aborted.set()

    def close(self) -> None:
        """Discard unfinished uploads that no process could resume."""
        self._ingests.close()

    def _prepare(self) -> None:
        """Create the layout if necessary.

        Raises:
            InvalidInput: the location has a content store, which would overwrite foreign changes of its index.
        """
        with self._preparing:
            if self._is_prepared:
                return
            fs, layout = self._backend.fs, self._layout
            with self._backend.translate_errors(self.at):
                if is_there(fs, layout.index_names) or is_there(fs, layout.names):
                    raise InvalidInput(
                        "the location has a content store of dist, whose index.json follows its names; "
                        "name the image store:NAME, or choose another directory",
                        subject=self.at,
                    )
                for path in (layout.blobs, layout.ingests, f"{layout.blobs}/sha256", f"{layout.blobs}/sha512", layout.index):
                    self._inside(path)
                if not is_there(fs, layout.marker):
                    self._backend.put(layout.marker, MARKER)
            self._is_prepared = True

    def _inside(self, path: str) -> str:
        """Return a path of the layout.

        Raises:
            Denied: a link on the path leads out of the layout.
        """
        if self._is_local:
            root = os.path.realpath(self._layout.root)
            if not os.path.realpath(path).startswith(f"{root}/"):
                what = path[len(self._layout.root) + 1 :]
                raise Denied(
                    f"{what} is a link that leads out of the layout; replace the link by a copy of its target", subject=self.at
                )
        return path


def require_version(files: LayoutFiles) -> None:
    """Check the marker of a layout. A layout without a marker is accepted, because its index shows what it is.

    Raises:
        Unsupported: the layout has another version than 1.0.0.
    """
    try:
        raw = files.read_document("oci-layout")
    except NotFound:
        return
    if b'"1.0.0"' not in raw:
        raise Unsupported(f"expected an image layout of version 1.0.0, its file oci-layout is {raw[:80]!r}", subject=files.at)
