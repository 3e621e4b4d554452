"""Leases protect content that a run relies on and that has no name yet. gc treats the leased roots like names.

A run leases each root before it relies on existing content below the root, and releases its leases at the end. A run writes few
records, each with many roots. To add a root, the run replaces a whole record.

On a disk, a run holds a lock while it is alive, and the records are valid exactly as long as the lock is held. On a file system
without locks, such as an object store, a record is valid for seven days after the last write.
"""

import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from prefect_dist.ocispec import Descriptor, fields
from prefect_dist.ocispec.errors import DistError, InvalidInput, Unsupported
from prefect_dist.storage.backend import Backend
from prefect_dist.storage.file_info import modification_time
from prefect_dist.storage.layout import Layout

# The time for which a record without a lock protects its roots. A run that takes longer writes its records again.
_LIFE = timedelta(days=7)
_RENEWAL_S = 24 * 3600.0
_RECORD, _LOCK = ".json", ".lock"
# Each added root rewrites the last record, so the size of a record is limited.
_MAX_ROOTS = 500

_Roots = dict[object, orjson.Fragment]
"""The serialized roots by their keys. A record is written again for each added root, so the roots are serialized once."""


class Lease:
    """The roots of one run, protected from gc. Thread-safe."""

    def __init__(self, backend: Backend, layout: Layout) -> None:
        self._backend, self._layout = backend, layout
        self._run = uuid.uuid4().hex
        self._guard = threading.Lock()  # protects _held and _waiting; never held during I/O
        self._held: set[object] = set()
        self._waiting: _Roots = {}
        self._writing = threading.Lock()  # held while a record is written; protects the attributes below
        self._records: list[_Roots] = []
        self._life = ExitStack()
        self._is_locked: bool | None = None
        self._renewed = time.monotonic()

    def take(self, *roots: Descriptor) -> None:
        """Protect the content below `roots` until the lease is released. The roots are on record when this method returns.

        If several threads take roots at once, one thread writes the roots of every thread.

        Raises:
            StoreFull, Denied, Unavailable: the store; the roots can be taken again.
        """
        wanted: dict[object, Descriptor] = {root.key: root for root in roots}
        if not self._enqueue(wanted):
            self._renew()
            return
        with self._writing, self._backend.translate_errors(f"lease on {roots[0]}"):
            with self._guard:
                waiting = dict(self._waiting)
            if not wanted.keys() & waiting.keys():
                return  # another thread has written these roots meanwhile
            self._write(waiting)
            with self._guard:
                self._held |= waiting.keys()
                self._waiting = {key: root for key, root in self._waiting.items() if key not in waiting}

    def release(self) -> None:
        """Release the roots, so that gc may remove content without a name.

        If the store fails, a later gc removes the records.
        """
        with self._writing, self._life, suppress(DistError), self._backend.translate_errors(f"leases {self._layout.leases}"):
            self._backend.remove([self._path(number) for number in range(len(self._records))])
            self._records.clear()

    def _enqueue(self, wanted: Mapping[object, Descriptor]) -> bool:
        """Queue new roots for writing. Return True if any root is new."""
        with self._guard:
            fresh = {key: _serialize(root) for key, root in wanted.items() if key not in self._held}
            self._waiting |= fresh
            return bool(fresh)

    def _renew(self) -> None:
        """Write the records of a long run again before they expire. Records with a lock do not expire."""
        if self._is_locked or time.monotonic() - self._renewed < _RENEWAL_S:
            return
        with self._writing, self._backend.translate_errors(f"leases {self._layout.leases}"):
            for number, roots in enumerate(self._records):
                self._put(number, roots)
            self._renewed = time.monotonic()

    def _write(self, roots: _Roots) -> None:
        """Add roots to the last record, or start another record."""
        if self._is_locked is None:  # lock first: gc treats a record whose lock is free as that of a dead run
            self._is_locked = self._life.enter_context(self._backend.hold_liveness_lock(self._layout.lease_lock(self._run)))
        last = self._records[-1] if self._records else {}
        if not self._records or len(last) + len(roots) > _MAX_ROOTS:
            number, content = len(self._records), roots
        else:
            number, content = len(self._records) - 1, last | roots
        self._put(number, content)
        self._records[number:] = [content]

    def _put(self, number: int, roots: _Roots) -> None:
        document = {"roots": list(roots.values()), "locked": self._is_locked}
        self._backend.put(self._path(number), orjson.dumps(document))

    def _path(self, number: int) -> str:
        return f"{self._layout.leases}/{self._run}.{number}{_RECORD}"


@dataclass(frozen=True, slots=True)
class _LeaseRecord:
    """A record of leases: its roots, or the error of reading it. `is_active` is True if the run may still be in progress."""

    path: str
    roots: tuple[Descriptor, ...]
    is_active: bool
    error: InvalidInput | None = None


class Leases:
    """The leases of a store. Thread-safe."""

    def __init__(self, backend: Backend, layout: Layout) -> None:
        self._backend, self._layout = backend, layout

    @contextmanager
    def hold(self) -> Iterator[Lease]:
        """Yield a lease, and release the lease at the end of this block."""
        lease = Lease(self._backend, self._layout)
        try:
            yield lease
        finally:
            lease.release()

    def roots(self, *, now: datetime | None = None) -> Iterator[Descriptor]:
        """Yield the roots that are protected at `now`, by default the time of this machine.

        Raises:
            InvalidInput: the record of a run that may be in progress is damaged; the message has a remedy.
        """
        for found in self._records(now or datetime.now(UTC)):
            if found.is_active:
                if found.error:
                    raise found.error
                yield from found.roots

    def sweep(self, *, now: datetime, dry_run: bool) -> Iterator[str]:
        """Remove the records of dead runs and yield their paths. Nothing is removed if the directory is a link."""
        if self._backend.has_link(self._layout.leases):
            return
        for found in self._records(now):
            if found.is_active:
                continue
            if not dry_run:
                with suppress(DistError), self._backend.translate_errors(self._layout.format_path(found.path)):
                    self._backend.remove([found.path])
            yield found.path
        if not dry_run:
            self._remove_locks()

    def _remove_locks(self) -> None:
        with suppress(DistError), self._backend.translate_errors(f"leases {self._layout.leases}"):
            for entry in self._entries():
                if entry["name"].endswith(_LOCK):
                    self._backend.remove_lock(entry["name"])

    def _records(self, now: datetime) -> list[_LeaseRecord]:
        with self._backend.translate_errors("leases"):
            entries = [entry for entry in self._entries() if entry["name"].endswith(_RECORD)]
            found = self._backend.each(lambda entry: self._read_record(entry, now), entries)
        return [one for one in found if one is not None]

    def _read_record(self, entry: dict[str, Any], now: datetime) -> _LeaseRecord | None:
        """Return the content and state of a record; None if it was removed meanwhile."""
        path, is_young = entry["name"], now - modification_time(entry) < _LIFE
        is_held = self._backend.is_held(self._layout.lease_lock(_run_of(path)))
        try:
            document = fields.parse_object(self._backend.fs.cat_file(path), at="record")
            fields.require(document, "roots", list, at="record")
            roots = [Descriptor.from_json(one, at=at) for at, one in fields.objects(document, "roots", at="record")]
        except FileNotFoundError:
            return None
        except (InvalidInput, Unsupported) as exc:
            remedy = "remove this file when no run is in progress"
            error = InvalidInput(f"lease: damaged record {self._layout.format_path(path)} ({exc}); {remedy}")
            return _LeaseRecord(path, (), is_young if is_held is None else is_held, error)
        return _LeaseRecord(path, tuple(roots), is_held if document.get("locked") is True and is_held is not None else is_young)

    def _entries(self) -> list[dict[str, Any]]:
        try:
            entries: list[dict[str, Any]] = self._backend.fs.ls(self._layout.leases, detail=True)
        except FileNotFoundError:
            return []
        return entries


def _run_of(path: str) -> str:
    return path.rpartition("/")[2].partition(".")[0]


def _serialize(root: Descriptor) -> orjson.Fragment:
    """Return the media type, digest and size of a root as JSON."""
    bare = Descriptor(media_type=root.media_type, digest=root.digest, size=root.size)
    return orjson.Fragment(orjson.dumps(bare.to_json()))
