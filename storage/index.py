"""The files that make a store, or an archive of it, an OCI image layout for other tools (image-spec 1.1, image-layout.md).

`oci-layout` marks it. `index.json` is derived from the names. Each is listed under its whole text, so that
`skopeo inspect oci:STORE:NAME` finds it.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import orjson

from ocispec import mediatypes
from storage.backend import Backend
from storage.errors import translated
from storage.layout import Layout
from storage.names import Name, Names
from storage.presence import is_there

REF_NAME = "org.opencontainers.image.ref.name"
MARKER = orjson.dumps({"imageLayoutVersion": "1.0.0"})


def create(backend: Backend, layout: Layout, names: Names) -> None:
    """Make an empty image layout where there is none; harmless where there is one."""
    with translated(f"store {layout.root}"):
        if is_there(backend.fs, layout.marker):
            return
        update(backend, layout, names)
        mark(backend, layout)


def mark(backend: Backend, layout: Layout) -> None:
    """Write the file that makes a directory an image layout."""
    with translated(f"store {layout.root}"):
        backend.put(layout.marker, MARKER)


def update(backend: Backend, layout: Layout, names: Names) -> None:
    """Write `index.json` anew from the names, until it has all of them.

    Many processes may do this at once, without a lock. Each looks once more after it wrote: so whichever is the last to write
    has seen every name that was recorded before, since a name is recorded before its process comes here.
    """
    with translated(f"store {layout.root}: index.json"):
        written = None
        while (listed := names.listing()) != written:
            backend.put(layout.index, document(names))
            written = listed


def document(names: Iterable[Name], *, under: tuple[str, ...] = (REF_NAME,)) -> bytes:
    """An `index.json` that lists `names`, each in these annotations."""
    manifests = [_entry(name, under) for name in names]
    return orjson.dumps({"schemaVersion": 2, "mediaType": mediatypes.OCI_INDEX, "manifests": manifests})


def _entry(name: Name, under: tuple[str, ...]) -> dict[str, Any]:
    others = tuple((key, value) for key, value in name.descriptor.annotations if key not in under)
    return replace(name.descriptor, annotations=(*others, *((key, name.name) for key in under))).to_json()
