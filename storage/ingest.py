"""Ingests: content on its way into the store, on any kind of file system.

An ingest has a ref and a declaration of its content. A ref has one writer at a time. The writer hashes the bytes that it
writes, so that the commit verifies the bytes that become visible. `storage.files` and `storage.uploads` implement ingests.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Protocol, Self

import orjson

from prefect_dist.ocispec import Digest, Hasher, fields
from prefect_dist.ocispec.errors import Corrupt, DistError, InvalidInput

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Status:
    """An ingest: `offset` bytes of `total` are there; total and digest are None where they were not declared."""

    ref: str
    offset: int
    total: int | None
    expected: Digest | None
    started: datetime
    updated: datetime


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Declaration:
    """The declared ref, size and digest of an ingest, and its start time."""

    ref: str
    total: int | None
    expected: Digest | None
    started: datetime

    def agrees(self, other: "Declaration") -> bool:
        """Return True if both declare the same content, so that an ingest can be resumed."""
        return (self.ref, self.total, self.expected) == (other.ref, other.total, other.expected)

    def status(self, offset: int, updated: datetime) -> Status:
        """Return the status of the ingest."""
        return Status(
            ref=self.ref, offset=offset, total=self.total, expected=self.expected, started=self.started, updated=updated
        )

    def to_json(self) -> bytes:
        """Return the stored form of the declaration."""
        expected = None if self.expected is None else str(self.expected)
        return orjson.dumps({"ref": self.ref, "total": self.total, "expected": expected, "started": self.started})

    @classmethod
    def from_json(cls, raw: bytes) -> Self:
        """Return the declaration in `raw`.

        Raises:
            InvalidInput, Unsupported: the record is damaged.
        """
        document = fields.parse_object(raw, at="ingest")
        expected = fields.optional(document, "expected", str, at="ingest")
        return cls(
            ref=fields.require(document, "ref", str, at="ingest"),
            total=fields.optional(document, "total", int, at="ingest"),
            expected=None if expected is None else Digest.parse(expected),
            started=fields.require_time(document, "started", at="ingest"),
        )


class ContentVerifier:
    """Counts and hashes the bytes of a writer, and checks them against the declaration. Not thread-safe."""

    def __init__(self, declared: Declaration) -> None:
        self.declaration = declared
        self._hasher = Hasher(declared.expected.algorithm if declared.expected else "sha256")
        self.offset = 0

    def refuse_excess(self, length: int) -> None:
        """Check that `length` more bytes do not exceed the declared size.

        Raises:
            Corrupt: they do.
        """
        total, end = self.declaration.total, self.offset + length
        if total is not None and end > total:
            raise Corrupt(f"{self.declaration.ref}: expected {total} bytes, got {end} or more")

    def add(self, data: bytes | bytearray | memoryview) -> None:
        """Count and hash bytes that were written."""
        self._hasher.update(data)
        self.offset += len(data)

    def reset(self) -> None:
        """Start over at 0."""
        self._hasher = Hasher(self._hasher.algorithm)
        self.offset = 0

    @property
    def digest(self) -> Digest:
        """Return the digest of the bytes so far."""
        return self._hasher.digest()

    def verify(self, size: int | None, expected: Digest | None) -> Digest:
        """Return the digest of the bytes, if size and digest are as declared and as given here; see `Writer.commit`."""
        ref, declared = self.declaration.ref, self.declaration
        if (wanted := declared.total if size is None else size) is not None and wanted != self.offset:
            raise Corrupt(f"{ref}: expected {wanted} bytes, got {self.offset}")
        if expected is not None and expected.algorithm != self._hasher.algorithm:
            raise InvalidInput(
                f"{ref}: expected {expected}, but it is hashed with {self._hasher.algorithm}; declare the digest"
            )
        digest = self._hasher.digest()
        for named in (declared.expected, expected):
            if named is not None and named != digest:
                raise Corrupt(f"{ref}: expected {named}, got {digest}")
        return digest


class Writer(Protocol):
    """Writes one blob. Leaving the `with` block without a commit keeps what was written. Not for use by several threads."""

    @property
    def declaration(self) -> Declaration:
        """Return the declaration of the content from the beginning of the ingest."""

    @property
    def offset(self) -> int:
        """Return the number of bytes that are written and hashed, the offset of the next ones."""

    @property
    def digest(self) -> Digest:
        """The digest of the bytes that are there."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`.

        Raises:
            Corrupt: more than the declared total; nothing of `data` is taken.
            StoreFull, Denied, Unavailable: the disk; the writer is of no use any more, its ref can be resumed.
        """

    def truncate(self) -> None:
        """Drop what was written and start over at 0."""

    def commit(self, *, size: int | None = None, expected: Digest | None = None) -> Digest:
        """Make the blob visible under its digest, whole and durable, and end the ingest. A blob that exists is success.

        The digest is checked against the declared one and the one given here, the size against that given here or else the
        declared total.

        Raises:
            Corrupt: size or digest are wrong; the ingest stays and can be committed rightly, truncated or aborted.
            InvalidInput: a digest of another algorithm than the declared one (sha256 where none was).
            StoreFull, Denied, Unavailable: the disk; the ingest can be resumed.
        """

    def abort(self) -> None:
        """Drop the ingest."""

    def close(self) -> None:
        """Let the ref go and keep what was written. Harmless after `commit` or `abort`."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None: ...


def close_writer(writer: Writer, error: BaseException | None) -> None:
    """Close a writer at the end of its block. A failing close is only logged if the block has failed already."""
    try:
        writer.close()
    except DistError:
        if error is None:
            raise
        _log.debug("%s: close failed after %r", writer.declaration.ref, error, exc_info=True)


class Ingests(Protocol):
    """All ingests of a store. Thread-safe."""

    def writer(self, ref: str, *, expected: Digest | None = None, total: int | None = None) -> Writer:
        """Begin or resume the ingest `ref`.

        An ingest that was declared otherwise, or whose record is damaged, is started over (containerd #3089).

        Raises:
            InvalidInput: an empty ref.
            AlreadyExists: the expected blob is in the store.
            Busy: another writer has the ref; the message says since when and how far it is, if that is known.
        """

    def status(self, ref: str) -> Status:
        """Return the status of an ingest.

        Raises:
            NotFound: no such ingest is known.
        """

    def active(self) -> Iterator[Status]:
        """All ingests that are known, in no order. One that ends while they are listed is left out (containerd #1231)."""

    def sweep(self, before: datetime, *, dry_run: bool) -> Iterator[str]:
        """Drop the ingests that nobody has touched since `before`, and answer with their refs or else their paths."""

    def close(self) -> None:
        """Give up what cannot outlive this process."""
