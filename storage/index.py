"""The files of an OCI image layout for other tools, in a store or an archive (image-spec 1.1, image-layout.md).

`oci-layout` marks the directory. `index.json` is derived from the names. Each image is listed under its full name, so that
`skopeo inspect oci:STORE:NAME` finds the image. Referrers are listed in the same index: a referrer with a digest tag under this
tag in the repository of the image, other referrers without a name.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from prefect_dist.ocispec import Descriptor, Digest, fields
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.ocispec.image_layout import MARKER, REF_NAME, serialize_index
from prefect_dist.storage.backend import Backend
from prefect_dist.storage.file_info import is_there
from prefect_dist.storage.layout import Layout
from prefect_dist.storage.names import Name, Names
from prefect_dist.storage.statefile import change_file

_log = logging.getLogger(__name__)
# An annotation of the whole index: a digest over its manifests and over the names from which they were derived.
SEAL = "io.github.prefect-dist.names"


def create(backend: Backend, layout: Layout, names: Names) -> None:
    """Create an empty image layout if the store has none."""
    with backend.translate_errors(f"store {layout.url}"):
        if is_there(backend.fs, layout.marker):
            return
        update(backend, layout, names)
        mark(backend, layout)


def mark(backend: Backend, layout: Layout) -> None:
    """Write `oci-layout`, the file that marks an image layout."""
    with backend.translate_errors(f"store {layout.url}"):
        backend.put(layout.marker, MARKER)


def update(backend: Backend, layout: Layout, names: Names) -> None:
    """Write `index.json` again if the names have changed. Only changed records are read.

    Several processes may update at once, see `storage.statefile`. After writing, each process lists the names again. A process
    records a name before it updates the index. So the last writer has seen every name, even on stores with neither locks nor
    conditional writes.

    Damaged names are left out with a warning. Otherwise one damaged record would fail every image.
    """
    what, written = f"store {layout.url}: index.json", dict[str, str]()

    def refresh(raw: bytes | None) -> bytes:
        nonlocal written
        with backend.translate_errors(what):
            written = names.list_records()
            return raw if raw is not None and _is_current(raw, written) else _make_index(names, written)

    with backend.translate_errors(what):
        if _is_current(_read_index(backend, layout), names.list_records()):
            return
        names.load_cache()
    while True:
        change_file(backend, layout.index, refresh, what=what)
        with backend.translate_errors(what):
            if names.list_records() == written:
                break
    if written:
        with backend.translate_errors(what):
            names.save_cache()


def document(names: Iterable[Name], *, under: tuple[str, ...], tagged: Iterable[tuple[str, Descriptor]] = ()) -> bytes:
    """Return an `index.json` that lists `names` under the annotations `under`, and `tagged` manifests by reference name."""
    others = [_entry_json(descriptor, {REF_NAME: name}) for name, descriptor in tagged]
    return serialize_index([*(_entry(name, under) for name in names), *others])


def _make_index(names: Names, listed: Mapping[str, str]) -> bytes:
    known, damaged = names.read()
    for error in damaged:
        _log.warning("index.json does not list a damaged name: %s", error)
    manifests = [*(_entry(name, (REF_NAME,)) for name in known), *_referrers(known)]
    return serialize_index(manifests, annotations={SEAL: _seal(manifests, listed)})


def _read_index(backend: Backend, layout: Layout) -> bytes:
    try:
        content: bytes = backend.fs.cat_file(layout.index)
    except FileNotFoundError:
        return b""
    return content


def _is_current(raw: bytes, listed: Mapping[str, str]) -> bool:
    """Return True if an `index.json` was made from these names and was not changed afterwards."""
    try:
        found = fields.parse_object(raw, at="index.json")
        annotations = dict(fields.pairs(found, "annotations", at="index.json"))
    except InvalidInput:
        return False
    return annotations.get(SEAL) == _seal(found.get("manifests"), listed)


def _seal(manifests: object, listed: Mapping[str, str]) -> str:
    return str(Digest.of(orjson.dumps(manifests) + ascii(sorted(listed.items())).encode()))


def _entry(name: Name, under: tuple[str, ...]) -> dict[str, Any]:
    return _entry_json(name.descriptor, dict.fromkeys(under, name.name))


def _referrers(names: Sequence[Name]) -> list[dict[str, Any]]:
    """Return the entries of the referrers of all names, each once. A tag that is also a recorded name is left out."""
    taken: set[object] = {name.name for name in names}
    entries = list[dict[str, Any]]()
    for name in names:
        for referrer in name.referrers:
            called = None if referrer.tag is None else f"{name.repository}:{referrer.tag}"
            key = called or referrer.descriptor.digest
            if key not in taken:
                taken.add(key)
                entries.append(_entry_json(referrer.descriptor, {} if called is None else {REF_NAME: called}))
    return entries


def _entry_json(descriptor: Descriptor, names: Mapping[str, str]) -> dict[str, Any]:
    others = tuple((key, value) for key, value in descriptor.annotations if key not in (REF_NAME, *names))
    return replace(descriptor, annotations=(*others, *names.items())).to_json()
