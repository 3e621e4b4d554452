"""The content store: blobs by digest, on any file system that `storage.backend` lists."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

from prefect_dist.ocispec import Descriptor, Digest, Hasher
from prefect_dist.ocispec.errors import Corrupt, InvalidInput, NotFound
from prefect_dist.storage import index
from prefect_dist.storage.backend import Backend, open_backend
from prefect_dist.storage.file_info import is_there, modification_time
from prefect_dist.storage.ingest import Ingests, Status, Writer
from prefect_dist.storage.layout import TEMPORARY, Layout
from prefect_dist.storage.leases import Leases
from prefect_dist.storage.names import Names
from prefect_dist.storage.sweeps import Sweep, Sweeps

T = TypeVar("T")
R = TypeVar("R")
_log = logging.getLogger(__name__)
_PIECE_BYTES = 4 * 1024 * 1024
# A small file is written in milliseconds; what is older was left by a process that was killed.
_TEMPORARY_LIFE = timedelta(hours=1)


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Info:
    """A blob: its digest, its size in bytes and when it was committed."""

    digest: Digest
    size: int
    committed: datetime


class ContentStore:
    """Blobs, ingests and names at one place. Thread-safe; open it with `open_store`."""

    def __init__(self, backend: Backend, ingests: Ingests, layout: Layout, *, url: str) -> None:
        self.url = url
        self._backend, self._ingests, self._layout = backend, ingests, layout
        self._creating = threading.Lock()
        self._created = False
        self.names = Names(backend, layout)
        self.leases = Leases(backend, layout)
        self._sweeps = Sweeps(backend, layout)

    @property
    def has_locks(self) -> bool:
        """True if `exclude_gc` excludes gc by a lock. Without locks, runs record a lease before they look content up."""
        return self._backend.has_locks

    @property
    def can_exclude_gc(self) -> bool:
        """True if gc and runs exclude each other. They do not on a disk whose locks only one machine sees."""
        return self._backend.can_exclude_gc

    def each(self, look: Callable[[T], R], things: Iterable[T]) -> list[R]:
        """Return the result of `look` for each thing, in order.

        On an object store, where every look is a round trip, some are under way at once, from several threads.
        """
        return self._backend.each(look, things)

    def prepare(self) -> None:
        """Make the store if it is not there, and see that it can be written.

        Raises:
            InvalidInput, Denied, StoreFull, Unavailable: it cannot.
        """
        self._create()
        index.mark(self._backend, self._layout)

    def require(self) -> None:
        """See that there is a store.

        Raises:
            NotFound: there is none.
        """
        with self._backend.translate_errors(f"store {self.url}"):
            if not is_there(self._backend.fs, self._layout.marker):
                raise NotFound(f"store {self.url}: there is none (no oci-layout); check the location")

    def writer(self, ref: str, *, expected: Digest | None = None, total: int | None = None) -> Writer:
        """Begin or resume the ingest `ref`: see `storage.ingest.Ingests`."""
        self._create()
        return self._ingests.writer(ref, expected=expected, total=total)

    def status(self, ref: str) -> Status:
        """Return the status of an ingest; NotFound if there is none."""
        return self._ingests.status(ref)

    def active(self) -> Iterator[Status]:
        """All ingests, in no order."""
        return self._ingests.active()

    def info(self, digest: Digest) -> Info:
        """Return size and commit time of a blob.

        Raises:
            NotFound: no such blob.
        """
        path = self._layout.blob(digest)
        with self._backend.translate_errors(f"blob {digest}"):
            entry = self._backend.fs.info(path)
        return Info(digest=digest, size=entry["size"], committed=modification_time(entry))

    def holds(self, descriptor: Descriptor) -> bool:
        """Return True if the store has the content, by digest and size.

        Raises:
            Corrupt: a blob of that digest has another size.
        """
        try:
            with self._backend.translate_errors(f"blob {descriptor.digest}"):
                size = self._backend.fs.info(self._layout.blob(descriptor.digest))["size"]
        except NotFound:
            return False
        if size != descriptor.size:
            raise Corrupt(
                f"{descriptor} in {self.url}: expected {descriptor.size} bytes, the store has {size}; run dist verify"
            )
        return True

    def read(self, digest: Digest, *, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of a blob from `offset` on, as many as `length` says or all; fewer at its end. Not verified.

        Raises:
            NotFound: no such blob.
            InvalidInput: `offset` is past the end.
        """
        if offset == 0 and length is None:
            return self._cat(digest)
        size = self.info(digest).size
        if offset > size:
            raise InvalidInput(f"blob {digest}: offset {offset} is past its end, it has {size} bytes")
        end = size if length is None else min(offset + length, size)
        return self._cat(digest, offset, end) if end > offset else b""  # to an object store an empty range is an error

    def manifest(self, descriptor: Descriptor) -> bytes:
        """The whole, verified bytes of a small blob such as a manifest.

        Raises:
            NotFound: no such blob.
            Corrupt: the bytes are not those of the digest.
        """
        raw = self.read(descriptor.digest)
        if (found := Digest.of(raw, algorithm=descriptor.digest.algorithm)) != descriptor.digest:
            raise Corrupt(f"{descriptor} in {self.url}: the store has bytes of {found}")
        return raw

    def chunks(self, digest: Digest, *, offset: int = 0) -> Iterator[bytes]:
        """The blob in pieces, from `offset` on; hashed on the way if that is its beginning.

        Raises:
            NotFound: no such blob.
            Corrupt: after the last piece, when the bytes are not those of the digest.
        """
        hasher, is_whole, size = Hasher(digest.algorithm), not offset, self.info(digest).size
        while offset < size:
            piece = self._cat(digest, offset, min(offset + _PIECE_BYTES, size))
            if not piece:
                break  # it has become shorter
            hasher.update(piece)
            offset += len(piece)
            yield piece
        if is_whole and hasher.digest() != digest:
            raise Corrupt(f"blob {digest} in {self.url}: the store has bytes of {hasher.digest()}")

    def walk(self) -> Iterator[Info]:
        """All blobs, by algorithm, in no order. Strange files are passed over with a warning."""
        for directory in self._list(self._layout.blobs):
            for entry in self._list(directory["name"]) if directory["type"] == "directory" else (directory,):
                digest = self._layout.digest(entry["name"])
                if digest is None or entry["type"] != "file":
                    _log.warning("%s is no blob", entry["name"])
                    continue
                yield Info(digest=digest, size=entry["size"], committed=modification_time(entry))

    def delete(self, digest: Digest) -> None:
        """Remove a blob, whatever needs it.

        Raises:
            NotFound: no such blob.
        """
        path = self._layout.blob(digest)
        with self._backend.translate_errors(f"blob {digest}"):
            if not is_there(self._backend.fs, path):
                raise NotFound(f"blob {digest}: not found")
            self._backend.fs.rm_file(path)

    def quarantine(self, info: Info) -> bool:
        """Take a corrupt blob out of sight; False where that very blob is not there any more."""
        path = self._layout.blob(info.digest)
        with self.begin_sweep(), self._backend.translate_errors(f"blob {info.digest}"):
            try:
                if self.info(info.digest) != info:
                    return False
            except NotFound:
                return False
            self._backend.move(path, self._layout.quarantine_path(info.digest))
        return True

    def delete_all(self, digests: Iterable[Digest]) -> None:
        """Remove blobs by as few requests as the store allows; those that are not there are skipped."""
        with self._backend.translate_errors(f"blobs of {self.url}"):
            self._backend.remove([self._layout.blob(digest) for digest in digests])

    def exclude_gc(self) -> AbstractContextManager[None]:
        """Begin a short look at content: what a name or lease that is on record needs is not removed from now on.

        See `storage.sweeps`. On a disk gc waits until the block ends.
        """
        return self._sweeps.exclude_gc()

    def begin_sweep(self) -> AbstractContextManager[Sweep]:
        """Begin a sweep: during this block content may be removed, and `exclude_gc` blocks of runs wait."""
        return self._sweeps.begin_sweep()

    def clock(self) -> datetime:
        """Return the present time by the clock that stamps the files of this store."""
        return self._sweeps.clock()

    def sweep_leftovers(self, now: datetime, before: datetime, *, dry_run: bool) -> Iterator[str]:
        """Remove what was not touched since `before`: ingests, and small files of dead processes; return the paths."""
        yield from self._ingests.sweep(before, dry_run=dry_run)
        yield from self.leases.sweep(now=now, dry_run=dry_run)
        before = min(before, now - _TEMPORARY_LIFE)
        for path in (*self._temporary(before), *self._sweeps.list_stale_markers(before)):
            if not dry_run:
                with suppress(NotFound), self._backend.translate_errors(self._layout.format_path(path)):
                    self._backend.remove([path])
            yield path

    def _temporary(self, before: datetime) -> list[str]:
        directories = (self._layout.root, self._layout.names, self._layout.leases)
        entries = [entry for directory in directories for entry in self._list(directory)]
        return [entry["name"] for entry in entries if entry["name"].endswith(TEMPORARY) and modification_time(entry) < before]

    def update_index(self) -> None:
        """Bring `index.json`, which other tools read, up to date with the names."""
        self._create()
        index.update(self._backend, self._layout, self.names)

    def close(self) -> None:
        """Give up what this store cannot hand on to another process: uploads that were not committed."""
        self._ingests.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _create(self) -> None:
        if not self._created:
            with self._creating:
                index.create(self._backend, self._layout, self.names)
                self._created = True

    def _cat(self, digest: Digest, start: int | None = None, end: int | None = None) -> bytes:
        with self._backend.translate_errors(f"blob {digest}"):
            data: bytes = self._backend.fs.cat_file(self._layout.blob(digest), start=start, end=end)
        return data

    def _list(self, path: str) -> list[dict[str, Any]]:
        """Return what is in a directory, without the empty objects that some object stores have for the directory itself."""
        try:
            with self._backend.translate_errors(f"store {self.url}"):
                entries: list[dict[str, Any]] = self._backend.fs.ls(path, detail=True)
        except NotFound:
            return []
        return [entry for entry in entries if not entry["name"].endswith("/")]


def open_store(url: str, *, options: Mapping[str, Any] | None = None) -> ContentStore:
    """The store at a local path or fsspec URL, with fsspec's storage options. Nothing is made before the first write.

    Raises:
        InvalidInput: an unusable URL.
        Unsupported: a file system that lacks what a store needs.
    """
    return ContentStore(*open_backend(url, options or {}), url=url)
