"""Leases: what a run under way is bringing in, and no name holds yet. For gc they are roots like names are.

A run takes one before it relies on content that is there already, and gives it back when the name is recorded. What a dead run
did not give back loses its force with time.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

import orjson

from ocispec import Descriptor, fields
from ocispec.errors import DistError
from storage import times
from storage.backend import Backend
from storage.errors import translated
from storage.layout import Layout

# Longer than any run should take: then what it found in the store may be swept away under it.
LIFE = timedelta(days=7)


class Leases:
    """The leases of a store. Thread-safe."""

    def __init__(self, backend: Backend, layout: Layout) -> None:
        self._backend, self._layout = backend, layout

    @contextmanager
    def hold(self, root: Descriptor) -> Iterator[None]:
        """Keep gc from what is below `root` during this block."""
        path = self._layout.lease(uuid.uuid4().hex)
        with translated(f"lease on {root}"):
            self._backend.put(path, orjson.dumps({"descriptor": root.to_json(), "taken": datetime.now(UTC)}))
        try:
            yield
        finally:
            with suppress(DistError, FileNotFoundError), translated(f"lease on {root}"):
                self._backend.fs.rm_file(path)

    def roots(self) -> Iterator[Descriptor]:
        """What is held now."""
        for path, descriptor, taken in self._all():
            if datetime.now(UTC) - taken < LIFE:
                yield descriptor
            else:
                with suppress(DistError), translated(path):
                    self._backend.fs.rm_file(path)

    def _all(self) -> Iterator[tuple[str, Descriptor, datetime]]:
        with translated("leases"):
            try:
                paths = self._backend.fs.ls(self._layout.leases, detail=False)
            except FileNotFoundError:
                return
            for path in paths:
                if not path.endswith(".json"):
                    continue
                try:
                    document = fields.parse_object(self._backend.fs.cat_file(path), at=path)
                except FileNotFoundError:
                    continue  # given back meanwhile
                descriptor = Descriptor.from_json(fields.require(document, "descriptor", dict, at=path), at=path)
                yield path, descriptor, times.require(document, "taken", at=path)
