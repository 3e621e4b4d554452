"""Ingests on a disk: files that are appended to, resumed after a crash, and renamed into place.

Each ref has a data file in `ingest/`, named by the SHA-256 of the ref, and next to it a small JSON record with the ref, the
declared size and digest, and the start time. Both files stay after a writer closes or dies. The next writer hashes the existing
data again and appends to the file, so digest and file always cover the same bytes (containerd #1526).

An ingest of at most 1 MiB gets its record only when it is closed unfinished. After a crash, such an ingest starts over.
"""

import contextlib
import logging
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import AlreadyExists, Busy, Corrupt, DistError, InvalidInput, NotFound, Unsupported
from prefect_dist.storage.disk import Disk
from prefect_dist.storage.errors import translate_errors
from prefect_dist.storage.file_info import is_there, modification_time
from prefect_dist.storage.ingest import ContentVerifier, Declaration, Status, close_writer
from prefect_dist.storage.layout import RECORD, Layout
from prefect_dist.storage.locked_file import LockedFile

_log = logging.getLogger(__name__)
_PIECE_BYTES = 4 * 1024 * 1024
# The amount of unwritten data after which the disk starts to write.
_WRITE_BACK_BYTES = 8 * 1024 * 1024
# Content of at most this size arrives in one piece. Its ingest is recorded only if it is closed unfinished: on a disk, the
# record would double the cost of a small blob.
_SMALL_BYTES = 1024 * 1024
# The longest time that gc holds the file of an old ingest on a busy machine.
_GC_S = 0.5


class FileWriter:
    """Appends to the data file of an ingest; see `storage.ingest.Writer`."""

    def __init__(
        self, disk: Disk, layout: Layout, held: LockedFile, declared: Declaration, *, there: int, recorded: bool
    ) -> None:
        self.declaration = declared
        self._disk, self._layout, self._held, self._recorded = disk, layout, held, recorded
        self._path = held.path
        self._verifier = ContentVerifier(declared)
        self._open = True
        self._hash_existing(there)
        self._written_back = self.offset  # data of an earlier writer has probably reached the disk

    @property
    def offset(self) -> int:
        """The number of bytes that are written and hashed."""
        return self._verifier.offset

    @property
    def digest(self) -> Digest:
        """The digest of the bytes so far."""
        return self._verifier.digest

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`."""
        self._verifier.refuse_excess(len(data))
        with translate_errors(f"{self.declaration.ref}: writing to {self._path}"):
            self._held.write(data)
            self._verifier.add(data)
            if self.offset - self._written_back >= _WRITE_BACK_BYTES:
                self._disk.write_back(self._held, self._written_back, self.offset)
                self._written_back = self.offset

    def truncate(self) -> None:
        """Drop the data and start over at offset 0."""
        with translate_errors(f"{self.declaration.ref}: truncating {self._path}"):
            self._held.truncate()
        self._verifier.reset()
        self._written_back = 0

    def commit(self, *, size: int | None = None, expected: Digest | None = None) -> Digest:
        """Make the blob durable, then visible; see `storage.ingest.Writer`."""
        digest = self._verifier.verify(size, expected)
        with translate_errors(f"{self.declaration.ref}: committing {digest}"):
            self._refuse_half_written(self._disk.fsync(self._held))
            self._disk.publish(self._held, self._layout.blob(digest))
        self._release_quietly()
        if self._recorded:
            self._remove_record()
        return digest

    def abort(self) -> None:
        """Drop the ingest."""
        with translate_errors(f"{self.declaration.ref}: removing {self._path}"):
            _drop(self._disk, self._path)
        self._release_quietly()

    def close(self) -> None:
        """Release the ref and keep the data."""
        if not self._open:
            return
        self._open = False
        with translate_errors(f"{self.declaration.ref}: closing {self._path}"):
            try:
                if not self._recorded:
                    self._record_unfinished()
            finally:
                self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        close_writer(self, exc)

    def _record_unfinished(self) -> None:
        """Write the record of a small ingest, so that the next writer can resume it. Drop an ingest without data."""
        size = self._held.size()
        if size is None:
            return  # the file was dropped, or renamed by a commit that failed afterwards: the ref may have a new writer
        if size == 0:
            _drop(self._disk, self._path)
            return
        try:
            self._disk.fs.pipe_file(self._path + RECORD, self.declaration.to_json())
        except OSError:
            with contextlib.suppress(OSError):  # data without a record is useless and may fill the disk
                _drop(self._disk, self._path)
            raise

    def _hash_existing(self, there: int) -> None:
        """Hash the data of an earlier writer, or drop the data if it exceeds the declared size."""
        with translate_errors(f"{self.declaration.ref}: reading {self._path}"):
            if self.declaration.total is not None and there > self.declaration.total:
                self.truncate()
                return
            while self.offset < there:
                self._verifier.add(self._read(min(self.offset + _PIECE_BYTES, there)))

    def _read(self, end: int) -> bytes:
        data: bytes = self._disk.fs.cat_file(self._path, start=self.offset, end=end)
        return data

    def _refuse_half_written(self, size: int) -> None:
        if size != self.offset:  # an earlier write failed half-way
            expected = f"{self.offset} bytes in {self._path}, got {size}"
            raise Corrupt(f"expected {expected}; open the ingest again to resume it", subject=self.declaration.ref)

    def _remove_record(self) -> None:
        """Remove the record of a committed ingest. A failure is only logged, since a record without data is harmless.

        The commit renamed the data file and thereby released the lock. If a new writer holds the ref by now, or has left data,
        the record belongs to that writer and stays.
        """
        try:
            with contextlib.closing(self._disk.append(self._path)) as held:
                if not held.found:
                    _drop(self._disk, self._path)
        except Busy:
            _log.debug("%s: a new writer holds the ref, its record stays", self.declaration.ref)
        except OSError:
            _log.warning("%s: could not remove %s", self.declaration.ref, self._path + RECORD, exc_info=True)

    def _release_quietly(self) -> None:
        """Release the lock of an ingest that has ended. A failure is only logged."""
        if not self._open:
            return
        self._open = False
        try:
            self._held.close()
        except OSError:
            _log.warning("%s: could not close %s", self.declaration.ref, self._path, exc_info=True)


class FileIngests:
    """The ingests of a store on a disk; see `storage.ingest.Ingests`."""

    def __init__(self, disk: Disk, layout: Layout) -> None:
        self._disk, self._layout = disk, layout

    def writer(self, ref: str, *, expected: Digest | None = None, total: int | None = None) -> FileWriter:
        """Begin the ingest `ref`, or resume the ingest of any process."""
        wanted = Declaration.begin(ref, total=total, expected=expected)
        self._refuse_existing(ref, expected)
        path = self._path(ref)
        with translate_errors(f"{ref}: opening {path}"):
            try:
                held = self._lock(path)
            except Busy:
                raise self._busy_error(ref) from None
        try:
            return self._begin(held, wanted)
        except BaseException:
            held.close()
            raise

    def status(self, ref: str) -> Status:
        """Return the status of an ingest. An ingest of at most 1 MiB has no status while its writer is open."""
        path = self._path(ref)
        with translate_errors(f"ingest {ref}"):
            return self._status(path, self._disk.fs.info(path))

    def active(self) -> Iterator[Status]:
        """Yield the status of each recorded ingest."""
        for entry in self._entries():
            if not self._layout.is_ingest(entry["name"]):
                continue
            try:
                with translate_errors(f"ingest {entry['name']}"):
                    status = self._status(entry["name"], entry)
            except (NotFound, InvalidInput, Unsupported):
                _log.debug("ingest %s has ended, or its record is damaged", entry["name"])
                continue
            yield status

    def sweep(self, before: datetime, *, dry_run: bool) -> Iterator[str]:
        """Drop ingests that were not written to since `before`: data with or without a record, and records without data.

        Nothing is dropped if the directory of ingests is a link.
        """
        if self._disk.has_link(self._layout.ingests):
            return
        for path, touched in self._touch_times().items():
            with translate_errors(f"ingest {path}"):
                if touched < before and (dry_run or self._drop_unless_busy(path)):
                    yield path

    def close(self) -> None:
        """Do nothing: ingests on a disk outlive this process."""

    def _path(self, ref: str) -> str:
        """Return the data file of an ingest. If locks are not shared between machines, each machine has its own data file."""
        return self._layout.ingest(ref if self._disk.has_locks else f"{ref} on {socket.gethostname()}")

    def _entries(self) -> list[dict[str, Any]]:
        try:
            with translate_errors("ingests"):
                entries: list[dict[str, Any]] = self._disk.fs.ls(self._layout.ingests, detail=True)
        except NotFound:
            return []
        return entries

    def _touch_times(self) -> dict[str, datetime]:
        """Return the time of the last write to each ingest, by path."""
        found: dict[str, datetime] = {}
        for entry in self._entries():
            path = entry["name"].removesuffix(RECORD)
            if self._layout.is_ingest(path):
                found[path] = max(modification_time(entry), found.get(path, modification_time(entry)))
        return found

    def _lock(self, path: str) -> LockedFile:
        """Open and lock the file of an ingest. Wait a moment for a lock: gc locks each old ingest that it removes."""
        deadline = time.monotonic() + _GC_S
        while True:
            try:
                return self._disk.append(path)
            except Busy:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_GC_S / 20)

    def _drop_unless_busy(self, path: str) -> bool:
        """Remove an ingest, and return False if a writer holds its lock. The removal follows no link, which may be new."""
        try:
            with contextlib.closing(self._disk.append(path)):
                self._disk.remove([path + RECORD, path])  # the data last, since its removal frees the lock
        except Busy:
            return False
        return True

    def _begin(self, held: LockedFile, wanted: Declaration) -> FileWriter:
        with translate_errors(f"{wanted.ref}: opening {held.path}"):
            try:  # again: another writer may have committed the blob before this writer got the lock
                self._refuse_existing(wanted.ref, wanted.expected)
            except AlreadyExists:
                _drop(self._disk, held.path)
                raise
            found, recorded = self._read_record(held.path)
        if found is not None and found.agrees(wanted):
            return FileWriter(self._disk, self._layout, held, found, there=held.found, recorded=True)
        recorded = recorded or wanted.total is None or wanted.total > _SMALL_BYTES
        with translate_errors(f"{wanted.ref}: opening {held.path}"):
            if held.found:
                held.truncate()
            if recorded:
                self._disk.fs.pipe_file(held.path + RECORD, wanted.to_json())
        return FileWriter(self._disk, self._layout, held, wanted, there=0, recorded=recorded)

    def _read_record(self, path: str) -> tuple[Declaration | None, bool]:
        """Return the record of an ingest, None if it is damaged or missing, and True if the record exists."""
        try:
            raw = self._disk.fs.cat_file(path + RECORD)
        except FileNotFoundError:
            return None, False
        try:
            return Declaration.from_json(raw), True
        except (InvalidInput, Unsupported):
            return None, True

    def _refuse_existing(self, ref: str, expected: Digest | None) -> None:
        if expected is not None and is_there(self._disk.fs, self._layout.blob(expected)):
            with contextlib.suppress(OSError):  # optional: protects the blob from gc; fails on files of other users
                self._disk.touch(self._layout.blob(expected))
            raise AlreadyExists(f"{expected} is in the store", subject=ref)

    def _status(self, path: str, entry: dict[str, Any]) -> Status:
        declared = Declaration.from_json(self._disk.fs.cat_file(path + RECORD))
        return declared.status(entry["size"], modification_time(entry))

    def _busy_error(self, ref: str) -> Busy:
        try:
            return self.status(ref).busy_error()
        except DistError:
            return Busy("another writer is active; wait until it ends", subject=ref)


def _drop(disk: Disk, path: str) -> None:
    """Remove an ingest whose lock the caller holds. The data file is removed last, since its removal frees the lock."""
    with contextlib.suppress(FileNotFoundError):
        disk.fs.rm_file(path + RECORD)
    disk.fs.rm_file(path)
