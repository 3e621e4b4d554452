"""The content store: blobs, ingests, names and leases at one location, on a file system supported by `storage.backend`."""

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
from prefect_dist.storage.claims import ContentClaims
from prefect_dist.storage.file_info import is_there, modification_time
from prefect_dist.storage.ingest import Ingests, Status, Writer
from prefect_dist.storage.layout import TEMPORARY, Layout
from prefect_dist.storage.leases import Leases
from prefect_dist.storage.names import Names
from prefect_dist.storage.runs import RunFiles
from prefect_dist.storage.sweeps import Sweep, Sweeps

T = TypeVar("T")
R = TypeVar("R")
_log = logging.getLogger(__name__)
_PIECE_BYTES = 4 * 1024 * 1024
# Writing a small file takes milliseconds. An older temporary file is from a process that was killed.
_TEMPORARY_LIFE = timedelta(hours=1)
# A run that several processes carry out writes its files and claims every 20 s.
_SHARED_LIFE = timedelta(days=1)


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Info:
    """The digest, size in bytes and commit time of a blob."""

    digest: Digest
    size: int
    committed: datetime


class ContentStore:
    """Blobs, ingests, names and leases at one location. Thread-safe. Created by `open_store`."""

    def __init__(self, backend: Backend, ingests: Ingests, layout: Layout, *, url: str) -> None:
        self.url = url
        self._backend, self._ingests, self._layout = backend, ingests, layout
        self._creating = threading.Lock()
        self._created = False
        self.names = Names(backend, layout)
        self.leases = Leases(backend, layout)
        self.claims = ContentClaims(backend, layout)
        self._sweeps = Sweeps(backend, layout)

    @property
    def has_locks(self) -> bool:
        """True if `exclude_gc` holds a lock. Without locks, a run leases a root before it looks up content."""
        return self._backend.has_locks

    @property
    def can_exclude_gc(self) -> bool:
        """True if gc and runs exclude each other, False on a disk with locks that only one machine sees."""
        return self._backend.can_exclude_gc

    def each(self, look: Callable[[T], R], things: Iterable[T]) -> list[R]:
        """Return the result of `look` for each item, in order.

        On an object store, where each look-up is a round trip, several calls run concurrently in threads.
        """
        return self._backend.each(look, things)

    def prepare(self) -> None:
        """Create the store if necessary, and check that the store is writable.

        Raises:
            InvalidInput, Denied, StoreFull, Unavailable: the store cannot be created or written.
        """
        self._create()
        index.mark(self._backend, self._layout)

    def require(self) -> None:
        """Check that the store exists.

        Raises:
            NotFound: the location has no store.
        """
        with self._backend.translate_errors(f"store {self.url}"):
            if not is_there(self._backend.fs, self._layout.marker):
                raise NotFound(f"store {self.url}: no store found (no file oci-layout); check the location")

    def writer(self, ref: str, *, expected: Digest | None = None, total: int | None = None) -> Writer:
        """Begin or resume the ingest `ref`; see `storage.ingest.Ingests`."""
        self._create()
        return self._ingests.writer(ref, expected=expected, total=total)

    def status(self, ref: str) -> Status:
        """Return the status of an ingest.

        Raises:
            NotFound: the ingest does not exist.
        """
        return self._ingests.status(ref)

    def active(self) -> Iterator[Status]:
        """Return an iterator over the status of each ingest, in any order."""
        return self._ingests.active()

    def info(self, digest: Digest) -> Info:
        """Return the size and commit time of a blob.

        Raises:
            NotFound: the blob does not exist.
        """
        path = self._layout.blob(digest)
        with self._backend.translate_errors(f"blob {digest}"):
            entry = self._backend.fs.info(path)
        return Info(digest=digest, size=entry["size"], committed=modification_time(entry))

    def holds(self, descriptor: Descriptor) -> bool:
        """Return True if the store has a blob with the digest and size of `descriptor`.

        Raises:
            Corrupt: the blob has another size.
        """
        with self._backend.translate_errors(f"blob {descriptor.digest}"):
            try:
                size = self._backend.fs.info(self._layout.blob(descriptor.digest))["size"]
            except FileNotFoundError:
                return False
        if size != descriptor.size:
            raise Corrupt(f"{descriptor} in {self.url}: expected {descriptor.size} bytes, got {size}; run dist verify")
        return True

    def read(self, digest: Digest, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return `length` bytes of a blob from `offset` on, fewer at its end, without verifying them. None returns the rest.

        Raises:
            NotFound: the blob does not exist.
            InvalidInput: `offset` is beyond the end of the blob.
        """
        if offset == 0 and length is None:
            return self._cat(digest)
        size = self.info(digest).size
        if offset > size:
            raise InvalidInput(f"blob {digest}: expected an offset of at most its size of {size} bytes, got {offset}")
        end = size if length is None else min(offset + length, size)
        return self._cat(digest, offset, end) if end > offset else b""  # object stores refuse an empty range

    def manifest(self, descriptor: Descriptor) -> bytes:
        """Return the verified bytes of a small blob, such as a manifest or config.

        Raises:
            NotFound: the blob does not exist.
            Corrupt: the bytes do not match the digest.
        """
        raw = self.read(descriptor.digest)
        if (found := Digest.of(raw, algorithm=descriptor.digest.algorithm)) != descriptor.digest:
            raise Corrupt(f"{descriptor} in {self.url}: the stored bytes have the digest {found}")
        return raw

    def chunks(self, digest: Digest, *, offset: int = 0) -> Iterator[bytes]:
        """Yield a blob in pieces, from `offset` on. If `offset` is 0, the bytes are verified.

        Raises:
            NotFound: the blob does not exist.
            Corrupt: raised after the last piece, if the bytes do not match the digest.
        """
        hasher, is_whole, size = Hasher(digest.algorithm), not offset, self.info(digest).size
        while offset < size:
            piece = self._cat(digest, offset, min(offset + _PIECE_BYTES, size))
            if not piece:
                break  # the blob has become shorter
            hasher.update(piece)
            offset += len(piece)
            yield piece
        if is_whole and hasher.digest() != digest:
            raise Corrupt(f"blob {digest} in {self.url}: the stored bytes have the digest {hasher.digest()}")

    def walk(self) -> Iterator[Info]:
        """Yield each blob, by algorithm, in any order. Other files are skipped with a warning."""
        for directory in self._list(self._layout.blobs):
            for entry in self._list(directory["name"]) if directory["type"] == "directory" else (directory,):
                digest = self._layout.digest(entry["name"])
                if digest is None or entry["type"] != "file":
                    _log.warning("%s is not a blob, ignored", entry["name"])
                    continue
                yield Info(digest=digest, size=entry["size"], committed=modification_time(entry))

    def delete(self, digest: Digest) -> None:
        """Remove a blob, even if it is still needed.

        Raises:
            NotFound: the blob does not exist.
        """
        path = self._layout.blob(digest)
        with self._backend.translate_errors(f"blob {digest}"):
            if not is_there(self._backend.fs, path):
                raise NotFound(f"blob {digest}: not found")
            self._backend.fs.rm_file(path)

    def quarantine(self, info: Info) -> bool:
        """Move a corrupt blob to quarantine. Return False if the blob with this size and time is not in the store any more."""
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
        """Remove blobs with as few requests as possible. Missing blobs are skipped."""
        with self._backend.translate_errors(f"blobs of {self.url}"):
            self._backend.remove([self._layout.blob(digest) for digest in digests])

    def exclude_gc(self) -> AbstractContextManager[None]:
        """Prevent gc from removing content while this block looks it up.

        Content below a recorded name or lease stays from the start of the block on. On a disk, gc waits until the block ends;
        see `storage.sweeps` for object stores.
        """
        return self._sweeps.exclude_gc()

    def begin_sweep(self) -> AbstractContextManager[Sweep]:
        """Begin a sweep, which may remove content during this block. `exclude_gc` blocks wait until the sweep ends."""
        return self._sweeps.begin_sweep()

    def clock(self) -> datetime:
        """Return the current time of the clock behind the modification times in this store."""
        return self._sweeps.clock()

    def sweep_leftovers(self, now: datetime, before: datetime, *, dry_run: bool) -> Iterator[str]:
        """Remove ingests and temporary files of dead processes that were not touched since `before`, and yield the paths."""
        yield from self._ingests.sweep(before, dry_run=dry_run)
        yield from self.leases.sweep(now=now, dry_run=dry_run)
        before = min(before, now - _TEMPORARY_LIFE)
        claims = self._list_abandoned_claims(min(before, now - _SHARED_LIFE))
        runs = dict(self._list_abandoned_runs(min(before, now - _SHARED_LIFE)))
        run_files = (path for paths in runs.values() for path in paths)
        found = (*self._list_temporary(before), *self._sweeps.list_stale_markers(before), *claims, *run_files)
        for path in self._exclude_linked(found):
            if not dry_run:
                with suppress(NotFound), self._backend.translate_errors(self._layout.format_path(path)):
                    self._backend.remove([path])
            yield path
        for path in () if dry_run else self._exclude_linked(runs):
            with self._backend.translate_errors(self._layout.format_path(path)):
                self._backend.remove_directory(path)

    def _exclude_linked(self, paths: Iterable[str]) -> list[str]:
        """Return the paths whose directories are in the store, and not behind a link in place of a directory of the store."""
        found = list(paths)
        linked = {parent for parent in {path.rpartition("/")[0] for path in found} if self._backend.has_link(parent)}
        if linked:
            _log.warning("%s is behind a symbolic link, so gc removes nothing there; use a directory instead", min(linked))
        return [path for path in found if path.rpartition("/")[0] not in linked]

    def _list_temporary(self, before: datetime) -> list[str]:
        directories = (self._layout.root, self._layout.names, self._layout.leases)
        entries = [entry for directory in directories for entry in self._list(directory)]
        return [entry["name"] for entry in entries if entry["name"].endswith(TEMPORARY) and modification_time(entry) < before]

    def _list_abandoned_claims(self, before: datetime) -> Iterator[str]:
        """Yield the claims that no process has written since `before`."""
        for directory in self._list_directories(self._layout.claims):
            for entry in self._list_files(directory["name"]):
                if self._layout.is_claim(entry["name"]) and modification_time(entry) < before:
                    yield entry["name"]

    def _list_abandoned_runs(self, before: datetime) -> Iterator[tuple[str, list[str]]]:
        """Yield the directory and the files of each divided run in which no process has written a file since `before`.

        A run is abandoned as a whole: the parent writes the input of a shard only once, and the shard may wait for days.
        """
        for directory in self._list_directories(self._layout.runs):
            files = self._list_files(directory["name"])
            # On a disk, a new run has a directory before it has a file. The directories of an object store have no time.
            dated = (directory, *files) if self._backend.has_directories else files
            if all(modification_time(entry) < before for entry in dated):
                yield directory["name"], [entry["name"] for entry in files if self._layout.is_run_file(entry["name"])]

    def _list_directories(self, path: str) -> list[dict[str, Any]]:
        return [entry for entry in self._list(path) if entry["type"] == "directory"]

    def _list_files(self, path: str) -> list[dict[str, Any]]:
        return [entry for entry in self._list(path) if entry["type"] == "file"]

    def open_run(self, run: str) -> RunFiles:
        """Return the files of a run that several processes carry out.

        Raises:
            InvalidInput: `run` is not a valid name.
        """
        return RunFiles(self._backend, self._layout, run)

    def update_index(self) -> None:
        """Update `index.json` to the current names, for other tools."""
        self._create()
        index.update(self._backend, self._layout, self.names)

    def close(self) -> None:
        """Discard uncommitted uploads, since no process could resume them."""
        self.claims.close()
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
        """Return the entries of a directory, without the empty objects by which some object stores represent a directory."""
        try:
            with self._backend.translate_errors(f"store {self.url}"):
                entries: list[dict[str, Any]] = self._backend.fs.ls(path, detail=True)
        except NotFound:
            return []
        return [entry for entry in entries if not entry["name"].endswith("/")]


def open_store(url: str, *, options: Mapping[str, Any] | None = None) -> ContentStore:
    """Return the store at a local path or fsspec URL. `options` are those of fsspec. Nothing is created before a write.

    Raises:
        InvalidInput: an unusable URL or wrong options.
        Unsupported: a file system that does not meet the needs of a store.
    """
    return ContentStore(*open_backend(url, options or {}), url=url)
