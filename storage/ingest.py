"""Ingests: content on its way into the store, on any kind of file system.

An ingest has a ref, which is a name that the caller chooses, and a declaration of its content. A ref has at most one writer at
a time. The writer hashes the written bytes, so a commit verifies exactly the bytes that become visible. `storage.files` and
`storage.uploads` implement ingests.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Protocol, Self

import orjson

from prefect_dist.ocispec import Descriptor, Digest, Hasher, fields
from prefect_dist.ocispec.errors import Busy, Corrupt, DistError, InvalidInput

_log = logging.getLogger(__name__)


def make_ref(descriptor: Descriptor) -> str:
    """Return the ref for an ingest of a descriptor. The ref depends only on the content, so all processes share the ingest."""
    return f"{descriptor.kind}-{descriptor.digest}"


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Status:
    """The progress of an ingest: `offset` of `total` bytes are written. `total` and `expected` are None if undeclared."""

    ref: str
    offset: int
    total: int | None
    expected: Digest | None
    started: datetime
    updated: datetime

    def busy_error(self) -> Busy:
        """Return the error for a second writer of the ref."""
        since = f"since {self.started:%Y-%m-%d %H:%M:%S} UTC and is at byte {self.offset}"
        return Busy(f"another writer has been active {since}", subject=self.ref)


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Declaration:
    """The ref, declared size and digest of an ingest, and its start time."""

    ref: str
    total: int | None
    expected: Digest | None
    started: datetime

    @classmethod
    def begin(cls, ref: str, *, total: int | None, expected: Digest | None) -> Self:
        """Return the declaration of an ingest that begins now.

        Raises:
            InvalidInput: an empty ref.
        """
        if not ref:
            raise InvalidInput("ingest: expected a ref, got an empty string")
        return cls(ref=ref, total=total, expected=expected, started=datetime.now(UTC))

    def agrees(self, other: "Declaration") -> bool:
        """Return True if both declarations have the same content, so that a writer can resume the ingest."""
        return (self.ref, self.total, self.expected) == (other.ref, other.total, other.expected)

    def status(self, offset: int, updated: datetime) -> Status:
        """Return the status of this ingest."""
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
    """Counts and hashes the bytes of a writer and compares them with the declaration. Not thread-safe."""

    def __init__(self, declared: Declaration) -> None:
        self.declaration = declared
        self._hasher = Hasher(declared.expected.algorithm if declared.expected else "sha256")
        self.offset = 0

    def refuse_excess(self, length: int) -> None:
        """Check that `length` more bytes do not exceed the declared size.

        Raises:
            Corrupt: the bytes exceed the declared size.
        """
        total, end = self.declaration.total, self.offset + length
        if total is not None and end > total:
            raise Corrupt(f"expected {total} bytes, got {end} or more", subject=self.declaration.ref)

    def add(self, data: bytes | bytearray | memoryview) -> None:
        """Count and hash written bytes."""
        self._hasher.update(data)
        self.offset += len(data)

    def reset(self) -> None:
        """Start over at offset 0."""
        self._hasher = Hasher(self._hasher.algorithm)
        self.offset = 0

    @property
    def digest(self) -> Digest:
        """The digest of the bytes so far."""
        return self._hasher.digest()

    def verify(self, size: int | None, expected: Digest | None) -> Digest:
        """Return the digest of the bytes, after checking size and digest as described at `Writer.commit`."""
        ref, declared = self.declaration.ref, self.declaration
        if (wanted := declared.total if size is None else size) is not None and wanted != self.offset:
            raise Corrupt(f"expected {wanted} bytes, got {self.offset}", subject=ref)
        if expected is not None and expected.algorithm != self._hasher.algorithm:
            raise InvalidInput(
                f"expected {expected}, but the content is hashed with {self._hasher.algorithm}; declare the digest",
                subject=ref,
            )
        digest = self._hasher.digest()
        for named in (declared.expected, expected):
            if named is not None and named != digest:
                raise Corrupt(f"expected {named}, got {digest}", subject=ref)
        return digest


class Writer(Protocol):
    """Writes one blob. Leaving the `with` block without a commit keeps the data for a later writer. Not thread-safe."""

    @property
    def declaration(self) -> Declaration:
        """The declaration of the content, from the beginning of the ingest."""

    @property
    def offset(self) -> int:
        """The number of bytes that are written and hashed: the offset of the next byte."""

    @property
    def digest(self) -> Digest:
        """The digest of the bytes so far."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`.

        Raises:
            Corrupt: `data` exceeds the declared size; no byte of `data` is written.
            StoreFull, Denied, Unavailable: the disk; this writer cannot be used any more, but the ref can be resumed.
        """

    def truncate(self) -> None:
        """Drop the data and start over at offset 0."""

    def commit(self, *, size: int | None = None, expected: Digest | None = None) -> Digest:
        """Verify the content, make it visible under its digest, whole and durable, and end the ingest.

        The digest must equal the declared digest and `expected`. The size must equal `size`, or without `size` the declared
        total. A blob that exists already is success.

        Raises:
            Corrupt: size or digest are wrong; the ingest stays open and can be committed again, truncated or aborted.
            InvalidInput: `expected` has another algorithm than the declared digest, or than sha256 if no digest was declared.
            StoreFull, Denied, Unavailable: the disk; the ingest can be resumed.
        """

    def abort(self) -> None:
        """Drop the ingest and its data."""

    def close(self) -> None:
        """Release the ref and keep the data. Has no effect after `commit` or `abort`."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None: ...


def close_writer(writer: Writer, error: BaseException | None) -> None:
    """Close a writer at the end of its block. If the block failed, a failing close is only logged."""
    try:
        writer.close()
    except DistError:
        if error is None:
            raise
        _log.debug("%s: close failed after %r", writer.declaration.ref, error, exc_info=True)


class Ingests(Protocol):
    """The ingests of a store. Thread-safe."""

    def writer(self, ref: str, *, expected: Digest | None = None, total: int | None = None) -> Writer:
        """Begin or resume the ingest `ref`.

        An ingest with another declaration or a damaged record starts over (containerd #3089).

        Raises:
            InvalidInput: an empty ref.
            AlreadyExists: the expected blob is in the store.
            Busy: another writer holds the ref; the message has its start time and offset, if they are known.
        """

    def status(self, ref: str) -> Status:
        """Return the status of an ingest.

        Raises:
            NotFound: the ingest does not exist.
        """

    def active(self) -> Iterator[Status]:
        """Yield the status of each ingest, in any order. Ingests that end meanwhile are left out (containerd #1231)."""

    def sweep(self, before: datetime, *, dry_run: bool) -> Iterator[str]:
        """Drop ingests without writes since `before`, and yield their refs or paths."""

    def close(self) -> None:
        """Discard ingests if they cannot outlive this process."""
