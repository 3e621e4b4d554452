"""The backend of a store on an object store. Objects become visible whole and atomically, but cannot be appended to or locked.

`storage.uploads` has the ingests of this backend, `storage.s3` the operations that fsspec does not offer for S3.
"""

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
# Smaller content is sent in one request. Every upload in flight holds one part in memory.
MIN_PART_BYTES = 8 * 1024 * 1024
# Concurrent small requests; botocore keeps ten connections.
_CONCURRENCY = 10


class UploadAbortedError(OSError):
    """Another process, for example gc or a lifecycle rule, aborted the upload. The data is lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnfinishedUpload:
    """An upload of any process that was neither completed nor aborted. `size` bytes have arrived."""

    path: str
    upload: str
    size: int
    started: datetime
    updated: datetime


class Upload(Protocol):
    """Content on its way to a path. It becomes visible as a whole at `commit`.

    Every method except `discard` raises UploadAbortedError if another process aborted the upload.
    """

    def take(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data` to the upload. After a failure, the amount of accepted data is unknown."""

    def send(self) -> None:
        """Send complete parts of the accepted data. After a failure, the call can be repeated."""

    def commit(self) -> None:
        """Send the rest and make the content visible. After a failure, the call can be repeated."""

    def discard(self) -> None:
        """Abort the upload and drop its data."""


class ObjectApi(Protocol):
    """Operations of an object store that fsspec does not offer for every service."""

    def upload(self, path: str, size: int | None) -> Upload:
        """Begin an upload of `size` bytes; None if the size is unknown."""

    def list_unfinished(self, prefix: str, *, before: datetime | None = None) -> Iterator[UnfinishedUpload]:
        """Yield the unfinished uploads below `prefix`. With `before`, yield only uploads without new data since then."""

    def abort(self, path: str, upload: str, /) -> None:
        """Abort an upload of any process."""

    def remove(self, paths: Sequence[str], /) -> None:
        """Remove objects, many per request. Missing objects are skipped."""


class ConditionalWrites(Protocol):
    """Writes with the condition that no other process has changed the object."""

    def read(self, path: str) -> tuple[bytes, str]:
        """Return the content of an object and its version.

        Raises:
            FileNotFoundError: the object does not exist.
        """

    def write(self, path: str, data: bytes, version: str | None, /) -> bool:
        """Write an object of this version, or create the object if `version` is None. Return False after a conflict.

        Raises:
            NoConditionsError: the service has no conditional writes.
        """


class MemoryConditionalWrites:
    """`ConditionalWrites` for fsspec's in-memory file system, under a lock of this process. For tests and trials."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def read(self, path: str) -> tuple[bytes, str]:
        """Return the content of an object and its version."""
        content: bytes = self._fs.cat_file(path)
        return content, str(Digest.of(content))

    def write(self, path: str, data: bytes, version: str | None) -> bool:
        """Write an object of this version, or create the object if `version` is None. Return False after a conflict."""
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
    """The store at `url` in an object store that fsspec supports.

    Without `api`, large content is written to a temporary path and then copied. Without `conditional`, the last writer of a
    small object wins.
    """

    has_locks, has_directories, can_exclude_gc = False, False, True

    def __init__(self, fs: Any, url: str, api: ObjectApi | None = None, conditional: ConditionalWrites | None = None) -> None:
        self.fs = fs
        self._url, self._api, self._conditional = url, api, conditional

    def translate_errors(self, what: str) -> AbstractContextManager[None]:
        """Convert errors of the object store in this block. Messages contain the URL of the store and what to check."""
        return translate_errors(what, service=self._url)

    def each(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Return the result of `work` for each item, in order. The calls are concurrent, since each is a round trip."""
        with ThreadPoolExecutor(_CONCURRENCY) as threads:
            return list(threads.map(work, items))

    def put(self, path: str, data: bytes) -> None:
        """Replace a small object. Readers see the old or the new bytes."""
        with self._in_bucket():
            self.fs.pipe_file(path, data)

    @contextmanager
    def _in_bucket(self) -> Iterator[None]:
        """Report a missing bucket. A write needs no existing object, so FileNotFoundError means that the bucket is missing."""
        try:
            yield
        except FileNotFoundError as exc:
            raise NotFound(f"store {self._url}: the bucket does not exist; check the location, or create the bucket") from exc

    def move(self, path: str, target: str) -> None:
        """Copy an object to another path and remove the original. For a moment, both exist."""
        self.fs.cp_file(path, target)  # not mv, which treats * and [ in a path as patterns
        self.fs.rm_file(path)

    @contextmanager
    def hold_lock(self, path: str, *, shared: bool, make: bool = False) -> Iterator[None]:  # noqa: ARG002
        """Do nothing: object stores have no locks. Conditional writes and markers (`storage.sweeps`) take their place."""
        yield

    def read_versioned(self, path: str) -> tuple[bytes | None, str | None]:
        """Return the content of a small object and its version; None for both if the object is missing."""
        try:
            return self._conditional.read(path) if self._conditional else (self.fs.cat_file(path), None)
        except FileNotFoundError:
            return None, None

    def replace(self, path: str, data: bytes, version: str | None) -> bool:
        """Replace a small object of this version; see `storage.backend.Backend`."""
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

    def has_link(self, directory: str) -> bool:  # noqa: ARG002
        """Return False: object stores have no links."""
        return False

    def remove(self, paths: Sequence[str]) -> None:
        """Remove objects, on S3 a thousand per request. Missing objects are skipped."""
        if self._api:
            self._api.remove(paths)
            return
        for path in paths:
            with suppress(FileNotFoundError):
                self.fs.rm_file(path)

    def remove_directory(self, path: str) -> None:
        """Do nothing: a directory of an object store is only the common part of paths."""

    def upload(self, path: str, size: int | None, *, aside: str) -> Upload:
        """Begin an upload of `size` bytes, None if the size is unknown. `aside` is a temporary path for incomplete content."""
        if size is not None and size <= MIN_PART_BYTES:
            return _SingleRequest(self.fs, path)
        return self._api.upload(path, size) if self._api else _CopiedUpload(self, aside, path)

    def list_unfinished(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """Yield the unfinished uploads of every process below `prefix`, if the service can list them."""
        return self._api.list_unfinished(prefix) if self._api else iter(())

    def sweep(self, prefix: str, before: datetime, *, dry_run: bool) -> Iterator[str]:
        """Abort the uploads below `prefix` without new data since `before`, and yield the paths."""
        for found in self._api.list_unfinished(prefix, before=before) if self._api else ():
            if self._api and not dry_run:
                self._api.abort(found.path, found.upload)
            yield found.path


@cache
def warn_of_lost_changes(url: str) -> None:
    """Warn once per process and store that the store has no conditional writes."""
    _log.warning(
        "%s: the object store has no conditional writes: if two runs change the same file at once, one change is lost", url
    )


class _SingleRequest:
    """An upload of content in a single request, which is atomic."""

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


class _CopiedUpload:
    """An upload through fsspec's file to a temporary path, which the object store then copies to the final path."""

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
