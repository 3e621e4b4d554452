"""An object store as a store's ground: objects become visible whole and at once; nothing can be appended to or locked."""

import io
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Protocol, TypeVar

from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import NotFound
from prefect_dist.storage.errors import translate_errors

_log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")
_MEMORY_LOCK = threading.Lock()
# What is smaller is sent at once. Every transfer under way holds one part in memory.
MIN_PART_BYTES = 8 * 1024 * 1024
# Small looks that are under way at once; botocore keeps ten connections.
_AT_ONCE = 10


class UploadAbortedError(OSError):
    """The upload was aborted by another process, such as gc or a lifecycle rule; what was sent of it is lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnfinishedUpload:
    """An upload of any process that was begun and did not end: `size` bytes of it have arrived."""

    path: str
    upload: str
    size: int
    started: datetime
    updated: datetime


class Upload(Protocol):
    """Content on its way to a path: seen there after `commit`, all at once, or never.

    All methods but `discard` raise UploadAbortedError if another process aborted it.
    """

    def take(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`. If this fails, nobody knows how much was taken."""

    def send(self) -> None:
        """Send what was taken, as far as it fills parts. If this fails, it can be tried again."""

    def commit(self) -> None:
        """Send the rest and make it visible. If this fails, it can be tried again."""

    def discard(self) -> None:
        """Give it up."""


class ObjectApi(Protocol):
    """Operations of an object store that fsspec has no common API for."""

    def upload(self, path: str, size: int | None) -> Upload:
        """Begin to write `size` bytes, None if that is not known."""

    def list_unfinished(self, prefix: str, *, before: datetime | None = None) -> Iterator[UnfinishedUpload]:
        """Yield the unfinished uploads below `prefix`; with `before`, only those without new data since then."""

    def abort(self, path: str, upload: str, /) -> None:
        """Give up an upload, whatever process began it."""

    def remove(self, paths: Sequence[str], /) -> None:
        """Remove objects, many by one request; those that are not there are skipped."""


class ConditionalWrites(Protocol):
    """Writes of an object on the condition that no other process has changed it."""

    def read(self, path: str) -> tuple[bytes, str]:
        """Return the content of an object and its version.

        Raises:
            FileNotFoundError: no such object.
        """

    def write(self, path: str, data: bytes, version: str | None, /) -> bool:
        """Write an object if it still has this version, or with None only if there is none; return whether it was written.

        Raises:
            NoConditionsError: the service has no conditional writes.
        """


class MemoryConditionalWrites:
    """`ConditionalWrites` for fsspec's file system in memory, under a lock of this process: for tests and trials."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def read(self, path: str) -> tuple[bytes, str]:
        """Return the content of an object and its version."""
        content: bytes = self._fs.cat_file(path)
        return content, str(Digest.of(content))

    def write(self, path: str, data: bytes, version: str | None) -> bool:
        """Write an object if it still has this version, or with None only if there is none."""
        with _MEMORY_LOCK:
            try:
                found = self.read(path)[1]
            except FileNotFoundError:
                found = None
            if found != version:
                return False
            self._fs.pipe_file(path, data)
            return True


class NoConditionsError(OSError):
    """The service has no conditional writes."""


class Objects:
    """An object store that fsspec knows, with the store at `url` in it.

    Without an `api`, what is big goes to a place aside and is copied into sight there. Without `conditional` writes, the last
    writer of a small object wins.
    """

    has_locks, can_exclude_gc = False, True

    def __init__(self, fs: Any, url: str, api: ObjectApi | None = None, conditional: ConditionalWrites | None = None) -> None:
        self.fs = fs
        self._url, self._api, self._conditional = url, api, conditional

    def translate_errors(self, what: str) -> AbstractContextManager[None]:
        """Convert errors of the object store in this block. They name the store and what to check."""
        return translate_errors(what, service=self._url)

    def each(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Return the result of `work` for each item, in order; concurrently, since each is a round trip."""
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            return list(threads.map(work, items))

    def put(self, path: str, data: bytes) -> None:
        """Replace a small object: readers see the old or the new bytes."""
        with self._in_bucket():
            self.fs.pipe_file(path, data)

    @contextmanager
    def _in_bucket(self) -> Iterator[None]:
        """Have the error of a write say what it means: an object need not be there to be written, its bucket does."""
        try:
            yield
        except FileNotFoundError as exc:
            raise NotFound(f"store {self._url}: its bucket is not there; check the location, or make the bucket") from exc

    def move(self, path: str, target: str) -> None:
        """Take an object away, to where it can be looked at; for a moment it is in both places."""
        self.fs.cp_file(path, target)  # not mv, which takes * and [ in a path for patterns
        self.fs.rm_file(path)

    @contextmanager
    def hold_lock(self, path: str, *, shared: bool, make: bool = False) -> Iterator[None]:  # noqa: ARG002
        """Do nothing: object stores have no locks. Conditional writes and markers (`storage.sweeps`) take their place."""
        yield

    def read_versioned(self, path: str) -> tuple[bytes | None, str | None]:
        """Return the content of a small object and its version, None for both if there is none."""
        try:
            return self._conditional.read(path) if self._conditional else (self.fs.cat_file(path), None)
        except FileNotFoundError:
            return None, None

    def replace(self, path: str, data: bytes, version: str | None) -> bool:
        """Replace a small object if it still has this version; see `storage.backend.Backend`."""
        if self._conditional:
            with suppress(NoConditionsError), self._in_bucket():
                return self._conditional.write(path, data, version) or self.read_versioned(path)[0] == data
            self._conditional = None
        warn_of_lost_changes(self._url)
        self.put(path, data)
        return True

    @contextmanager
    def hold_liveness_lock(self, path: str) -> Iterator[bool]:  # noqa: ARG002
        """Yield False: object stores have no locks."""
        yield False

    def is_held(self, path: str) -> bool | None:  # noqa: ARG002
        """Return None: object stores have no locks."""
        return None

    def remove_lock(self, path: str) -> None:
        """Do nothing: object stores have no locks."""

    def remove(self, paths: Sequence[str]) -> None:
        """Remove objects, on S3 a thousand per request; those that are not there are skipped."""
        if self._api:
            self._api.remove(paths)
            return
        for path in paths:
            with suppress(FileNotFoundError):
                self.fs.rm_file(path)

    def upload(self, path: str, size: int | None, *, aside: str) -> Upload:
        """Begin to write `size` bytes, None if that is not known; `aside` is where they may be seen before they are whole."""
        if size is not None and size <= MIN_PART_BYTES:
            return _Whole(self.fs, path)
        return self._api.upload(path, size) if self._api else _Aside(self, aside, path)

    def list_unfinished(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """Return the uploads of all processes below `prefix`, where the service lists them."""
        return self._api.list_unfinished(prefix) if self._api else iter(())

    def sweep(self, prefix: str, before: datetime, *, dry_run: bool) -> Iterator[str]:
        """Abort the uploads below `prefix` to which nothing was sent since `before`, and return their paths."""
        for found in self._api.list_unfinished(prefix, before=before) if self._api else ():
            if self._api and not dry_run:
                self._api.abort(found.path, found.upload)
            yield found.path


@cache
def warn_of_lost_changes(url: str) -> None:
    """Log once per process that a store has no conditional writes."""
    _log.warning("%s: no conditional writes there: of two runs that change one file at once, the last one wins", url)


class _Whole:
    """Small enough to be sent in one request, which is atomic."""

    def __init__(self, fs: Any, path: str) -> None:
        self._fs, self._path = fs, path
        self._buffer = io.BytesIO()

    def take(self, data: bytes | bytearray | memoryview) -> None:
        self._buffer.write(data)

    def send(self) -> None:
        pass

    def commit(self) -> None:
        self._fs.pipe_file(self._path, self._buffer.getvalue())

    def discard(self) -> None:
        self._buffer = io.BytesIO()


class _Aside:
    """Written by fsspec's own file to a place that nobody takes for the object, then copied by the object store."""

    def __init__(self, objects: Objects, aside: str, path: str) -> None:
        self._objects, self._aside, self._path = objects, aside, path
        self._file = objects.fs.open(aside, "wb")

    def take(self, data: bytes | bytearray | memoryview) -> None:
        self._file.write(data)

    def send(self) -> None:
        pass

    def commit(self) -> None:
        self._file.close()
        self._objects.move(self._aside, self._path)

    def discard(self) -> None:
        self._file.close()
        self._objects.fs.rm_file(self._aside)
