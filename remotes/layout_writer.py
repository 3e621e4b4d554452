"""Writes the files of an image layout: safe against crashes, and against other processes that write to the layout.

Content is written to `ingest/` and becomes visible at its path whole, verified and durable. On an object store, an upload that
is completed takes the place of `ingest/`. `index.json` is changed under a lock (`index.json.lock`), on an object store by
conditional writes. The lock file stays: its removal would let two processes hold different locks.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

from prefect_dist.ocispec import Descriptor, fields
from prefect_dist.ocispec.errors import AlreadyExists, Busy, Corrupt, Denied, DistError, InvalidInput, NotFound, quote_text
from prefect_dist.ocispec.image_layout import INDEX, MARKER, MARKER_NAME, serialize_index
from prefect_dist.remotes.layout_files import StoredFiles, require_version
from prefect_dist.remotes.remote import Observer, Read
from prefect_dist.storage.file_info import is_there
from prefect_dist.storage.index import SEAL
from prefect_dist.storage.ingest import Writer
from prefect_dist.storage.layout import TEMPORARY
from prefect_dist.storage.statefile import change_file

# A second writer of the same content polls the first one.
_PAUSE_S = 0.1
# The age after which unfinished content of an interrupted run is removed.
_LEFTOVER_AGE = timedelta(hours=24)
# Entries of a directory in which a layout may begin: its own, and those of a new file system. Names that start with a dot, too.
_ALLOWED = frozenset({"blobs", "ingest", f"{INDEX}.lock", "lost+found"})


class LayoutWriter:
    """Writes to one layout. Thread-safe. `files` reads the layout."""

    def __init__(self, files: StoredFiles) -> None:
        """Nothing is created before the first write."""
        self.files = files
        self._is_checked = self._is_prepared = False
        self._preparing = threading.Lock()

    def has(self, descriptor: Descriptor) -> bool:
        """Return True if the layout has the content of a descriptor.

        Raises:
            Corrupt: the layout has content of another size under this digest.
            DistError: the layout cannot be read.
        """
        try:
            size = self.files.size(descriptor.digest)
        except NotFound:
            return False
        if size != descriptor.size:
            remedy = "remove this file from the layout"
            raise Corrupt(f"expected {descriptor.size} bytes, {self.files.at} has {size}; {remedy}", subject=descriptor)
        return True

    def write(self, descriptor: Descriptor, read: Read, *, observer: Observer) -> None:
        """Write a blob, unless the layout has the blob. An interrupted write is resumed.

        Raises:
            Corrupt: `read` yields other content than the descriptor describes, or the layout has content of another size.
            DistError: an error of the file system or of `read`.
        """
        self._prepare()
        self.files.refuse_outside(self.files.layout.blob(descriptor.digest))
        writer = self._open_writer(descriptor)
        if writer is None:
            return
        with writer:
            for piece in read(writer.offset) if writer.offset < descriptor.size else ():
                self.files.refuse_aborted("writing to", descriptor)
                writer.write(piece)
                observer(writer.offset, len(piece))
            try:
                with suppress(AlreadyExists):
                    writer.commit()
            except Corrupt:
                writer.truncate()  # any byte may be wrong, so the next attempt starts at 0
                raise

    def check_place(self) -> None:
        """Check that writing to the location can begin. Nothing is created.

        Raises:
            InvalidInput: the location has a content store or other files.
            Unsupported: the layout has another version.
            Denied: a directory is not writable, or a link on a path of the layout leads out of the layout.
        """
        with self._preparing:
            if not self._is_checked:
                self._check_place()
                self._is_checked = True

    def change_index(self, make_content: Callable[[bytes | None], bytes]) -> None:
        """Replace `index.json` by the result of `make_content`, which gets the old content, or None without an index.

        Raises:
            StoreFull, Denied, Unavailable: the file system, or conflicts with other writers for a minute.
            DistError: see `make_content`.
        """
        self._prepare()
        self._change_index(make_content)

    def close(self) -> None:
        """Discard uploads that no process could resume, and remove the leftovers of runs that were interrupted long ago."""
        self.files.ingests.close()
        if not (self._is_prepared and self.files.is_local):
            return
        with suppress(DistError, OSError):  # leftovers waste space, and are otherwise harmless
            before = datetime.now(UTC) - _LEFTOVER_AGE
            for _ in self.files.ingests.sweep(before, dry_run=False):
                pass
            Path(self.files.layout.ingests).rmdir()

    def _open_writer(self, descriptor: Descriptor) -> Writer | None:
        """Return a writer for a blob, or None if the layout has the blob, perhaps from another writer."""
        ref = f"{descriptor.kind}-{descriptor.digest}"
        while True:
            try:
                return self.files.ingests.writer(ref, expected=descriptor.digest, total=descriptor.size)
            except AlreadyExists:
                if self.has(descriptor):
                    return None
            except Busy:
                self.files.aborted.wait(_PAUSE_S)
            self.files.refuse_aborted("writing to", descriptor)

    def _change_index(self, make_content: Callable[[bytes | None], bytes]) -> None:
        path = self.files.layout.index
        self.files.refuse_outside(path)
        change_file(self.files.backend, path, make_content, what=f"{self.files.at}: {INDEX}")

    def _prepare(self) -> None:
        """Create the layout if necessary. Its index comes before its marker, so each layout with a marker is complete.

        Raises:
            InvalidInput: the location has a content store or other files.
            Unsupported: the layout has another version.
            Denied: a directory is not writable, or a link on a path of the layout leads out of the layout.
        """
        with self._preparing:
            if self._is_prepared:
                return
            has_index, has_marker = self._check_place()
            if not has_index:
                self._change_index(lambda old: serialize_index([]) if old is None else old)
            if not has_marker:
                with self.files.backend.translate_errors(f"{self.files.at}: {MARKER_NAME}"):
                    self.files.backend.put(self.files.layout.marker, MARKER)
            self._is_checked = self._is_prepared = True

    def _check_place(self) -> tuple[bool, bool]:
        """Check that the location has a layout, or that a layout may begin there. Return whether index and marker exist."""
        layout = self.files.layout
        with self.files.backend.translate_errors(self.files.at):
            index, has_marker = self._read(INDEX), self._read(MARKER_NAME) is not None
            self._refuse_store(index)
            if index is None and not has_marker:
                self._refuse_nesting()
                self._refuse_other_files()
            for path in (layout.ingests, f"{layout.blobs}/sha256", f"{layout.blobs}/sha512"):
                self.files.refuse_outside(path)
            self._refuse_special_ingests()
            if self.files.is_local:
                self._require_access()
        require_version(self.files)
        return index is not None, has_marker

    def _require_access(self) -> None:
        """Check that the nearest existing directory of the location permits new files."""
        root = Path(self.files.layout.root or "/")
        nearest = next(path for path in (root, *root.parents) if path.exists())
        if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
            problem = "is not writable; change its permissions" if nearest.is_dir() else "is no directory"
            raise Denied(f"{nearest} {problem}, or choose another directory", subject=self.files.at)

    def _read(self, name: str) -> bytes | None:
        try:
            return self.files.read_document(name)
        except NotFound:
            return None

    def _refuse_store(self, index: bytes | None) -> None:
        """Refuse a content store, which would overwrite foreign changes of its index."""
        fs, layout, at = self.files.backend.fs, self.files.layout, f"{self.files.at}: {INDEX}"
        is_sealed = index is not None and SEAL in dict(fields.pairs(fields.parse_object(index, at=at), "annotations", at=at))
        if is_sealed or is_there(fs, layout.index_names) or is_there(fs, layout.names):
            raise InvalidInput(
                "the location has a content store of dist, whose index.json follows its names; "
                "name the image store:NAME, or choose another directory",
                subject=self.files.at,
            )

    def _refuse_other_files(self) -> None:
        """Refuse a directory with other files, whose name is probably a mistake."""
        names = sorted(entry["name"].rpartition("/")[2] for entry in self._list(self.files.layout.root))
        others = [name for name in names if name not in _ALLOWED and name[:1] not in ("", ".")]
        if others := [name for name in others if not name.endswith(TEMPORARY)]:
            raise InvalidInput(
                f"expected an image layout or an empty directory, it has other files, such as {quote_text(others[0])}; "
                "choose another directory",
                subject=self.files.at,
            )

    def _refuse_nesting(self) -> None:
        """Refuse a directory inside `blobs/` or `ingest/` of another layout, as a repository `app/ingest` could name it."""
        path = PurePosixPath(self.files.layout.root)
        for directory in (path, *path.parents):
            marker = directory.with_name(MARKER_NAME) if directory.name in ("blobs", "ingest") else None
            if marker is not None and is_there(self.files.backend.fs, str(marker)):
                raise InvalidInput(
                    f"the location is inside the directory {directory.name} of another layout; choose another directory",
                    subject=self.files.at,
                )

    def _refuse_special_ingests(self) -> None:
        """Refuse links and named pipes in `ingest/`: writing to them would change other files, or wait forever."""
        for entry in self._list(self.files.layout.ingests) if self.files.is_local else ():
            if entry["type"] != "file":
                name = quote_text(entry["name"].rpartition("/")[2])
                raise Denied(f"ingest/{name} is a link or no file; remove the directory ingest", subject=self.files.at)

    def _list(self, path: str) -> list[dict[str, Any]]:
        try:
            entries: list[dict[str, Any]] = self.files.backend.fs.ls(path, detail=True)
        except FileNotFoundError:
            return []
        return entries
