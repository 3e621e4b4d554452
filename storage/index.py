"""The files that make a store, or an archive of it, an OCI image layout for other tools (image-spec 1.1, image-layout.md).

`oci-layout` marks it. `index.json` is derived from the names. Each is listed under its whole text, so that
`skopeo inspect oci:STORE:NAME` finds it. Its referrers are listed beside it, where other tools look for them: without a name,
or, those that a tag has to find, under that tag in the repository that they are from.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from prefect_dist.ocispec import Descriptor, Digest, fields, mediatypes
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.storage.backend import Backend
from prefect_dist.storage.file_info import is_there
from prefect_dist.storage.layout import Layout
from prefect_dist.storage.names import Name, Names
from prefect_dist.storage.statefile import change_file

_log = logging.getLogger(__name__)
REF_NAME = "org.opencontainers.image.ref.name"
# An annotation of the whole index: the digest of what it lists and of the names that this was derived from.
_SEAL = "io.github.prefect-dist.names"
MARKER = orjson.dumps({"imageLayoutVersion": "1.0.0"})


def create(backend: Backend, layout: Layout, names: Names) -> None:
    """Make an empty image layout where there is none; harmless where there is one."""
    with backend.translate_errors(f"store {layout.url}"):
        if is_there(backend.fs, layout.marker):
            return
        update(backend, layout, names)
        mark(backend, layout)


def mark(backend: Backend, layout: Layout) -> None:
    """Write the file that makes a directory an image layout."""
    with backend.translate_errors(f"store {layout.url}"):
        backend.put(layout.marker, MARKER)


def update(backend: Backend, layout: Layout, names: Names) -> None:
    """Write `index.json` again if the names have changed since; only records that changed are read.

    Many processes may do this at once, see `storage.statefile`. Each lists the names again after it wrote, for stores that have
    neither locks nor conditional writes: a name is recorded before its process comes here, so the last writer has seen it.

    A damaged name is left out with a warning: other tools are no worse off without it, and no other image fails for it.
    """
    what, written = f"store {layout.url}: index.json", dict[str, str]()

    def update(raw: bytes | None) -> bytes:
        nonlocal written
        with backend.translate_errors(what):
            written = names.list_records()
            return raw if raw is not None and _is_of(raw, written) else _make_index(names, written)

    with backend.translate_errors(what):
        if _is_of(_content(backend, layout), names.list_records()):
            return
        names.recall()
    while True:
        change_file(backend, layout.index, update, what=what)
        with backend.translate_errors(what):
            if names.list_records() == written:
                break
    if written:
        with backend.translate_errors(what):
            names.remember()


def document(names: Iterable[Name], *, under: tuple[str, ...], tagged: Iterable[tuple[str, Descriptor]] = ()) -> bytes:
    """Return an `index.json` that lists `names`, each in these annotations, and `tagged` manifests by reference name."""
    others = [_entry_json(descriptor, {REF_NAME: name}) for name, descriptor in tagged]
    return _document([*(_entry(name, under) for name in names), *others])


def _document(manifests: Sequence[Mapping[str, Any]], **more: object) -> bytes:
    return orjson.dumps({"schemaVersion": 2, "mediaType": mediatypes.OCI_INDEX, "manifests": manifests, **more})


def _make_index(names: Names, listed: Mapping[str, str]) -> bytes:
    known, damaged = names.read()
    for error in damaged:
        _log.warning("index.json leaves out: %s", error)
    manifests = [*(_entry(name, (REF_NAME,)) for name in known), *_referrers(known)]
    return _document(manifests, annotations={_SEAL: _seal(manifests, listed)})


def _content(backend: Backend, layout: Layout) -> bytes:
    try:
        content: bytes = backend.fs.cat_file(layout.index)
    except FileNotFoundError:
        return b""
    return content


def _is_of(raw: bytes, listed: Mapping[str, str]) -> bool:
    """Return whether an `index.json` was made from these names, and was not changed since."""
    try:
        found = fields.parse_object(raw, at="index.json")
        annotations = dict(fields.pairs(found, "annotations", at="index.json"))
    except InvalidInput:
        return False
    return annotations.get(_SEAL) == _seal(found.get("manifests"), listed)


def _seal(manifests: object, listed: Mapping[str, str]) -> str:
    return str(Digest.of(orjson.dumps(manifests) + ascii(sorted(listed.items())).encode()))


def _entry(name: Name, under: tuple[str, ...]) -> dict[str, Any]:
    return _entry_json(name.descriptor, dict.fromkeys(under, name.name))


def _referrers(names: Sequence[Name]) -> list[dict[str, Any]]:
    """Each referrer once; none under what is a name by itself."""
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
