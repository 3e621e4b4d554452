"""The files that make a store an OCI image layout for other tools (image-spec 1.1, image-layout.md).

`oci-layout` marks it. `index.json` is derived from the names. Each is listed under its whole text, so that
`skopeo inspect oci:STORE:NAME` finds it.
"""

from dataclasses import replace
from typing import Any

import orjson

from ocispec import mediatypes
from storage.backend import Backend, is_there
from storage.errors import translated
from storage.layout import Layout
from storage.names import Name, Names

REF_NAME = "org.opencontainers.image.ref.name"
_MARKER = orjson.dumps({"imageLayoutVersion": "1.0.0"})


def create(backend: Backend, layout: Layout) -> None:
    """Make an empty image layout where there is none; harmless where there is one."""
    with translated(f"store {layout.root}"):
        if is_there(backend.fs, layout.marker):
            return
        with backend.exclusive(layout.lock):  # or our empty index could replace the full one of a faster process
            if not is_there(backend.fs, layout.index):
                backend.put(layout.index, _document([]))
            backend.put(layout.marker, _MARKER)


def update(backend: Backend, layout: Layout, names: Names) -> None:
    """Write `index.json` anew from the names; of several processes that do so, each sees what the one before wrote."""
    with translated(f"store {layout.root}: index.json"), backend.exclusive(layout.lock):
        backend.put(layout.index, _document([_entry(name) for name in names]))


def _entry(name: Name) -> dict[str, Any]:
    others = tuple((key, value) for key, value in name.descriptor.annotations if key != REF_NAME)
    return replace(name.descriptor, annotations=(*others, (REF_NAME, name.name))).to_json()


def _document(manifests: list[dict[str, Any]]) -> bytes:
    return orjson.dumps({"schemaVersion": 2, "mediaType": mediatypes.OCI_INDEX, "manifests": manifests})
