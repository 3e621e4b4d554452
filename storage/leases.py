"""Leases: what a run under way is bringing in, and no name holds yet. For gc they are roots like names are.

A run takes one on each root before it relies on content that is there already, and gives all back at its end. On a disk they
hold as long as their run lives, which a lock tells; an object store has no locks, there they hold for some days.
"""

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta

import orjson

from ocispec import Descriptor, fields
from ocispec.errors import DistError
from storage import times
from storage.backend import Backend
from storage.layout import Layout

# Longer than any run should take: then what it found in the store may be swept away under it.
_LIFE = timedelta(days=7)
_RECORD = ".json"


class Lease:
    """What one run holds. Not for use by several threads."""

    def __init__(self, backend: Backend, layout: Layout) -> None:
        self._backend, self._layout = backend, layout
        self._run = uuid.uuid4().hex
        self._given_back = ExitStack()
        self._number = 0

    def take(self, root: Descriptor) -> None:
        """Keep gc from what is below `root`, until the lease is given back."""
        record = f"{self._layout.leases}/{self._run}.{self._number}{_RECORD}"
        with self._backend.translated(f"lease on {root}"):
            self._backend.put(record, orjson.dumps({"descriptor": root.to_json(), "taken": datetime.now(UTC)}))
            self._given_back.callback(self._remove, record)
            if not self._number:  # its directory is there now
                lock = self._layout.lease_lock(self._run)
                self._given_back.callback(self._remove, lock)
                self._given_back.enter_context(self._backend.locked(lock, shared=False))
        self._number += 1

    def give_back(self) -> None:
        """Let gc have what no name holds."""
        self._given_back.close()

    def _remove(self, path: str) -> None:
        with suppress(DistError), self._backend.translated(self._layout.shown(path)):
            self._backend.fs.rm_file(path)


class Leases:
    """The leases of a store. Thread-safe."""

    def __init__(self, backend: Backend, layout: Layout) -> None:
        self._backend, self._layout = backend, layout

    @contextmanager
    def hold(self) -> Iterator[Lease]:
        """A lease for the length of this block."""
        lease = Lease(self._backend, self._layout)
        try:
            yield lease
        finally:
            lease.give_back()

    def roots(self) -> Iterator[Descriptor]:
        """What is held now."""
        return (descriptor for _, descriptor, live in self._all() if live)

    def sweep(self, *, dry_run: bool) -> Iterator[str]:
        """Remove what dead runs left, and answer with the paths."""
        for path, _, live in self._all():
            if live:
                continue
            if not dry_run:
                for left in (path, self._layout.lease_lock(_run(path))):
                    with suppress(FileNotFoundError, DistError), self._backend.translated(self._layout.shown(left)):
                        self._backend.fs.rm_file(left)
            yield path

    def _all(self) -> Iterator[tuple[str, Descriptor, bool]]:
        """Each record, what it holds, and whether its run lives."""
        with self._backend.translated("leases"):
            try:
                paths = self._backend.fs.ls(self._layout.leases, detail=False)
            except FileNotFoundError:
                return
            for path in paths:
                if not path.endswith(_RECORD):
                    continue
                try:
                    document = fields.parse_object(self._backend.fs.cat_file(path), at=path)
                except FileNotFoundError:
                    continue  # given back meanwhile
                descriptor = Descriptor.from_json(fields.require(document, "descriptor", dict, at=path), at=path)
                yield path, descriptor, self._lives(path, times.require(document, "taken", at=path))

    def _lives(self, path: str, taken: datetime) -> bool:
        age = datetime.now(UTC) - taken
        return age < _LIFE and not self._backend.abandoned(self._layout.lease_lock(_run(path)), age=age)


def _run(path: str) -> str:
    return path.rpartition("/")[2].partition(".")[0]
