"""An object store as a store's ground: objects become visible whole and at once; nothing can be appended to or locked."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Protocol

# What is smaller is sent at once. Every transfer under way holds one part in memory.
_PART_BYTES = 8 * 1024 * 1024
# S3's limit; the others allow more.
_MAX_PARTS = 10_000
# Where the size is not known before: room for 640 GB.
_PART_BYTES_UNKNOWN = 64 * 1024 * 1024


class Upload(Protocol):
    """Content on its way to a path: seen there after `commit`, all at once, or never."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`."""

    def commit(self) -> None:
        """Make it visible."""

    def discard(self) -> None:
        """Give it up."""


class Objects:
    """An object store that fsspec knows. `in_parts` tells whether it takes an object in several parts before it shows it."""

    def __init__(self, fs: Any, *, in_parts: bool) -> None:
        self.fs = fs
        self._in_parts = in_parts

    def put(self, path: str, data: bytes) -> None:
        """Replace a small object: readers see the old or the new bytes."""
        self.fs.pipe_file(path, data)

    def move(self, path: str, target: str) -> None:
        """Take an object away, to where it can be looked at; for a moment it is in both places."""
        self.fs.cp_file(path, target)  # not mv, which takes * and [ in a path for patterns
        self.fs.rm_file(path)

    @contextmanager
    def locked(self, path: str, *, shared: bool) -> Iterator[None]:  # noqa: ARG002
        """Nothing: object stores have no locks. What that means is in docs/guarantees.md."""
        yield

    def upload(self, path: str, size: int | None) -> Upload:
        """Begin to write `size` bytes, None if that is not known."""
        if not self._in_parts or (size is not None and size <= _PART_BYTES):
            return _Whole(self.fs, path)
        return _InParts(self.fs.open(path, "wb", autocommit=False, block_size=part_bytes(size)))

    def unfinished(self, prefix: str, before: datetime, *, dry_run: bool) -> Iterator[str]:  # noqa: ARG002
        """Give up what other processes began to upload below `prefix` before a time; answers with the paths."""
        yield from ()


class _Whole:
    def __init__(self, fs: Any, path: str) -> None:
        self._fs, self._path = fs, path
        self._buffer = io.BytesIO()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._buffer.write(data)

    def commit(self) -> None:
        self._fs.pipe_file(self._path, self._buffer.getvalue())

    def discard(self) -> None:
        self._buffer = io.BytesIO()


class _InParts:
    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._file.write(data)

    def commit(self) -> None:
        if not self._file.closed:
            self._file.close()  # sends what is left
        self._file.commit()

    def discard(self) -> None:
        self._file.discard()


def part_bytes(size: int | None) -> int:
    """How big the parts are of an object of `size` bytes, so that they are not too many."""
    if size is None:
        return _PART_BYTES_UNKNOWN
    return max(_PART_BYTES, -(-size // _MAX_PARTS))
