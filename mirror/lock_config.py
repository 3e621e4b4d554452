"""Reads a lock file in place of the configuration of a check."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect_dist.mirror.config import Mirror, parse_mirror, without_file
from prefect_dist.mirror.lock import Lock, Locked
from prefect_dist.mirror.yamlfile import Document
from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import InvalidInput

_KEYS, _FURTHER_KEYS = {"version", "images"}, {"pending"}


def parse_audited(document: Document) -> Mirror:
    """Return the configuration in a document, or the one that a lock file implies.

    Raises:
        InvalidInput, Unsupported: see `parse_mirror` and `from_lock`.
    """
    is_lock = document.is_file and isinstance(document.data, Mapping) and document.data.keys() - _FURTHER_KEYS == _KEYS
    return from_lock(document.path) if is_lock else parse_mirror(document)


def from_lock(path: str) -> Mirror:
    """Return a configuration with one entry for each image in a lock file, without a store and settings of registries.

    Raises:
        InvalidInput, Unsupported: the lock file is damaged, of another version, or names no image.
    """
    lock = str(Path(path).absolute()) if "://" not in path else path
    sync = [_entry(target, record) for target, record in Lock(lock).read().items()]
    if not sync:
        raise InvalidInput("nothing to check: the lock file names no image; mirror or seed it first", subject=path)
    name = Path(path).name.removesuffix(".json").removesuffix(".lock")
    found = parse_mirror(Document(path=path, data={"name": name, "lock": lock, "sync": sync}, lines={}))
    return replace(without_file(found), is_lock=True)


def _entry(target: Reference, record: Locked) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "image", "source": record.source, "target": str(target)}
    if record.single is not None:
        return {**entry, "platform": str(record.single)}
    if record.platforms is not None:
        return {**entry, "platforms": list(map(str, record.platforms)), "rewriteIndex": record.rewritten}
    return entry
