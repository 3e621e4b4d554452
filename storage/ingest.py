"""Ingests: content on its way into the store.

Below `ingest/` each ref has a data file, whose name is the SHA-256 of the ref, and beside it a small record in JSON with the
ref itself, the declared total and digest, and the start. One writer has a ref at a time. What a writer leaves behind, by
closing or by dying, the next one goes on with: the data is hashed anew and written at its end, so that the digest and the
file always cover the same bytes (containerd #1526). Small content is recorded only by closing: after a death it starts over.
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import IO, Any, Self

import orjson

from ocispec import Digest, Hasher, fields
from ocispec.errors import AlreadyExists, Busy, Corrupt, DistError, InvalidInput, NotFound, Unsupported
from storage import times
from storage.backend import Backend
from storage.errors import translated
from storage.layout import Layout

_log = logging.getLogger(__name__)
_PIECE_BYTES = 4 * 1024 * 1024
# How much is written before the disk is told to begin with it.
_WRITE_BACK_BYTES = 8 * 1024 * 1024
# Content of at most this size comes in one piece. Its ingest is recorded only if it is closed unfinished: on a disk a record
# costs as much as all else that is done for a small blob.
_SMALL_BYTES = 1024 * 1024
_RECORD = ".json"


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Status:
    """An ingest: `offset` bytes of `total` are there; total and digest are None where they were not declared."""

    ref: str
    offset: int
    total: int | None
    expected: Digest | None
    started: datetime
    updated: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    ref: str
    total: int | None
    expected: Digest | None
    started: datetime

    def to_json(self) -> bytes:
        expected = None if self.expected is None else str(self.expected)
        return orjson.dumps({"ref": self.ref, "total": self.total, "expected": expected, "started": self.started})

    @classmethod
    def from_json(cls, raw: bytes) -> Self:
        document = fields.parse_object(raw, at="ingest")
        expected = fields.optional(document, "expected", str, at="ingest")
        return cls(
            ref=fields.require(document, "ref", str, at="ingest"),
            total=fields.optional(document, "total", int, at="ingest"),
            expected=None if expected is None else Digest.parse(expected),
            started=times.require(document, "started", at="ingest"),
        )


class Writer:
    """Writes one blob. `offset` bytes are there and hashed; `write` appends; `commit` makes the blob visible.

    Leaving the `with` block without a commit keeps what was written. Not for use by several threads.
    """

    def __init__(self, backend: Backend, layout: Layout, file: IO[bytes], record: _Record, *, recorded: bool) -> None:
        self.ref = record.ref
        self.total = record.total
        self.expected = record.expected
        self._backend, self._layout, self._file = backend, layout, file
        self._record, self._recorded = record, recorded
        self._path = layout.ingest(record.ref)
        self._hasher = Hasher(record.expected.algorithm if record.expected else "sha256")
        self._open = True
        self._inode: int | None = None
        self.offset = 0
        self._written_back = 0
        self._catch_up()
        self._written_back = self.offset  # what was there may well be on the disk

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`.

        Raises:
            Corrupt: more than the declared total; nothing of `data` is taken.
            StoreFull, Denied, Unavailable: the disk; the writer is of no use any more, its ref can be resumed.
        """
        end = self.offset + len(data)
        if self.total is not None and end > self.total:
            raise Corrupt(f"{self.ref}: expected {self.total} bytes, got {end} or more")
        with translated(f"{self.ref}: writing to {self._path}"):
            self._file.write(data)
        self._hasher.update(data)
        self.offset = end
        if end - self._written_back >= _WRITE_BACK_BYTES:
            with translated(f"{self.ref}: writing to {self._path}"):
                self._backend.write_back(self._file, self._written_back, end)
            self._written_back = end

    def truncate(self) -> None:
        """Drop what was written and start over at 0."""
        with translated(f"{self.ref}: truncating {self._path}"):
            self._file.truncate(0)
            self._file.seek(0)
        self._hasher = Hasher(self._hasher.algorithm)
        self.offset = self._written_back = 0

    def commit(self, *, size: int | None = None, expected: Digest | None = None) -> Digest:
        """Make the blob visible under its digest, whole and durable, and end the ingest. A blob that exists is success.

        Size and digest are checked against those given here or else those declared.

        Raises:
            Corrupt: size or digest are wrong; the ingest stays and can be committed rightly, truncated or aborted.
            StoreFull, Denied, Unavailable: the disk; the ingest can be resumed.
        """
        digest = self._checked(self.total if size is None else size, expected or self.expected)
        with translated(f"{self.ref}: committing {digest}"):
            self._backend.publish(self._file, self._path, self._layout.blob(digest))
        self._release_quietly()
        if self._recorded:
            self._tidy()
        return digest

    def abort(self) -> None:
        """Drop the ingest."""
        with translated(f"{self.ref}: removing {self._path}"):
            _drop(self._backend, self._path)
        self._release_quietly()

    def close(self) -> None:
        """Let the ref go and keep what was written. Harmless after `commit` or `abort`."""
        if not self._open:
            return
        self._open = False
        with translated(f"{self.ref}: closing {self._path}"):
            try:
                if not self._recorded:
                    self._keep()
            finally:
                self._backend.release(self._file, self._path)

    def _keep(self) -> None:
        """Leave what a small ingest has for the next writer; if it has nothing, leave nothing."""
        try:
            info = self._backend.fs.info(self._path)
        except FileNotFoundError:
            return
        if info.get("ino") != self._inode:
            return  # a commit failed after its rename, with which the lock went: a new writer has the ref
        if not self.offset and not info["size"]:  # a write that failed half-way counts for size only
            _drop(self._backend, self._path)
            return
        try:
            self._backend.fs.pipe_file(self._path + _RECORD, self._record.to_json())
        except OSError:
            with contextlib.suppress(OSError):  # without a record the data is of no use, least of all on a full disk
                _drop(self._backend, self._path)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.close()
        except DistError:
            if exc is None:
                raise
            _log.debug("%s: close failed after %r", self.ref, exc, exc_info=True)  # the first error says what happened

    def _catch_up(self) -> None:
        fs = self._backend.fs
        with translated(f"{self.ref}: reading {self._path}"):
            info = fs.info(self._path)
            size = info["size"]
            if self._inode is None:
                self._inode = info.get("ino")  # of a disk only
            while self.offset < size:
                data = fs.cat_file(self._path, self.offset, min(self.offset + _PIECE_BYTES, size))
                self._hasher.update(data)
                self.offset += len(data)
        if self.total is not None and self.offset > self.total:
            self.truncate()

    def _checked(self, size: int | None, expected: Digest | None) -> Digest:
        with translated(f"{self.ref}: flushing {self._path}"):
            self._file.flush()
            held = self._backend.fs.info(self._path)["size"]
        if held != self.offset:  # after a write that failed half-way
            raise Corrupt(f"{self.ref}: expected {self.offset} bytes in {self._path}, got {held}; open it again to go on")
        if size is not None and size != self.offset:
            raise Corrupt(f"{self.ref}: expected {size} bytes, got {self.offset}")
        digest = self._digest(expected)
        if expected is not None and digest != expected:
            raise Corrupt(f"{self.ref}: expected {expected}, got {digest}")
        return digest

    def _digest(self, expected: Digest | None) -> Digest:
        """The digest of the file, with the algorithm that is asked for, which need not be the declared one."""
        if expected is not None and expected.algorithm != self._hasher.algorithm:
            self._hasher, self.offset = Hasher(expected.algorithm), 0
            self._catch_up()
        return self._hasher.digest()

    def _tidy(self) -> None:
        """Remove the record of a blob that is safe. It may fail: a record without data says nothing.

        With its data the ingest lost its lock. A new writer may have the ref by now, or have left data: the record is its own.
        """
        try:
            file = self._backend.append(self._path)
            try:
                if self._backend.fs.info(self._path)["size"] == 0:
                    _drop(self._backend, self._path)
            finally:
                self._backend.release(file, self._path)
        except Busy:
            _log.debug("%s: a new writer has it", self.ref)
        except OSError:
            _log.warning("%s: could not remove %s", self.ref, self._path + _RECORD, exc_info=True)

    def _release_quietly(self) -> None:
        """End an ingest that left nothing to keep."""
        if not self._open:
            return  # the lock may be another writer's by now
        self._open = False
        try:
            self._backend.release(self._file, self._path)
        except OSError:
            _log.warning("%s: could not close %s", self.ref, self._path, exc_info=True)


class Ingests:
    """All ingests of a store. Thread-safe."""

    def __init__(self, backend: Backend, layout: Layout) -> None:
        self._backend, self._layout = backend, layout

    def writer(self, ref: str, *, expected: Digest | None = None, total: int | None = None) -> Writer:
        """Begin or resume the ingest `ref`.

        An ingest that was declared otherwise, or whose record is damaged, is started over (containerd #3089).

        Raises:
            InvalidInput: an empty ref.
            AlreadyExists: the expected blob is in the store.
            Busy: another writer has the ref; the message says since when and how far it is.
        """
        if not ref:
            raise InvalidInput("ingest: the ref is empty")
        self._refuse_existing(ref, expected)
        path = self._layout.ingest(ref)
        with translated(f"{ref}: opening {path}"):
            try:
                file = self._backend.append(path)
            except Busy:
                raise Busy(self._describe_busy(ref)) from None
        try:
            return self._begin(file, path, _Record(ref=ref, total=total, expected=expected, started=datetime.now(UTC)))
        except BaseException:
            self._backend.release(file, path)
            raise

    def status(self, ref: str) -> Status:
        """How far an ingest is.

        Raises:
            NotFound: no such ingest is recorded; one of at most 1 MiB is not while its writer is at work.
        """
        path = self._layout.ingest(ref)
        with translated(f"ingest {ref}"):
            return self._status(path, self._backend.fs.info(path))

    def active(self) -> Iterator[Status]:
        """All recorded ingests, in no order. One that ends while they are listed is left out (containerd #1231)."""
        try:
            with translated("ingests"):
                entries = self._backend.fs.ls(self._layout.ingests, detail=True)
        except NotFound:
            return
        for entry in entries:
            if not self._layout.is_ingest(entry["name"]):
                continue
            try:
                with translated(f"ingest {entry['name']}"):
                    status = self._status(entry["name"], entry)
            except (NotFound, InvalidInput, Unsupported):
                _log.debug("ingest %s ended or is damaged", entry["name"])
                continue
            yield status

    def _begin(self, file: IO[bytes], path: str, wanted: _Record) -> Writer:
        with translated(f"{wanted.ref}: opening {path}"):
            try:  # once more: its writer may have ended before we got the lock
                self._refuse_existing(wanted.ref, wanted.expected)
            except AlreadyExists:
                _drop(self._backend, path)
                raise
            found, recorded = self._found(path)
        if found is not None and (found.ref, found.total, found.expected) == (wanted.ref, wanted.total, wanted.expected):
            return Writer(self._backend, self._layout, file, found, recorded=True)
        recorded = recorded or wanted.total is None or wanted.total > _SMALL_BYTES
        with translated(f"{wanted.ref}: opening {path}"):
            file.truncate(0)
            file.seek(0)
            if recorded:
                self._backend.fs.pipe_file(path + _RECORD, wanted.to_json())
        return Writer(self._backend, self._layout, file, wanted, recorded=recorded)

    def _found(self, path: str) -> tuple[_Record | None, bool]:
        """The record of an ingest, None if it is damaged or absent, and whether there is one."""
        try:
            raw = self._backend.fs.cat_file(path + _RECORD)
        except FileNotFoundError:
            return None, False
        try:
            return _Record.from_json(raw), True
        except (InvalidInput, Unsupported):
            return None, True

    def _refuse_existing(self, ref: str, expected: Digest | None) -> None:
        if expected is not None and self._backend.fs.exists(self._layout.blob(expected)):
            raise AlreadyExists(f"{ref}: {expected} is in the store")

    def _status(self, path: str, entry: dict[str, Any]) -> Status:
        record = _Record.from_json(self._backend.fs.cat_file(path + _RECORD))
        return Status(
            ref=record.ref,
            offset=entry["size"],
            total=record.total,
            expected=record.expected,
            started=record.started,
            updated=self._backend.fs.modified(path),
        )

    def _describe_busy(self, ref: str) -> str:
        try:
            status = self.status(ref)
        except DistError:
            return f"{ref}: another writer has it"
        return f"{ref}: another writer has it since {status.started:%Y-%m-%d %H:%M:%S} UTC and is at byte {status.offset}"


def _drop(backend: Backend, path: str) -> None:
    """Remove an ingest whose lock the caller holds; the data last, for without it the lock is free."""
    with contextlib.suppress(FileNotFoundError):
        backend.fs.rm_file(path + _RECORD)
    backend.fs.rm_file(path)
