"""Which file systems can be a store, and in which way.

fsspec reads, lists and deletes everywhere in one way. Making bytes durable, keeping a second writer out and making content
visible at once is done in one of two ways: on a disk by locks, fsync and rename (`storage.disk`, `storage.files`), on an
object store by uploads that are completed or not (`storage.objects`, `storage.uploads`). Which one it is, is written in the
table `_KINDS`, not found out by exception.
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from fsspec.core import url_to_fs

from ocispec.errors import InvalidInput, Unsupported
from storage.disk import Disk
from storage.files import FileIngests
from storage.ingest import Ingests
from storage.layout import Layout
from storage.objects import Objects
from storage.uploads import UploadIngests


class Backend(Protocol):
    """What differs beside ingests. Paths are fsspec's, without protocol. All raise OSError; the store translates."""

    fs: Any

    def put(self, path: str, data: bytes) -> None:
        """Replace a small file: readers see the old or the new bytes, also after a power loss."""

    def move(self, path: str, target: str) -> None:
        """Take a file out of sight, to where it can be looked at."""

    def locked(self, path: str, *, shared: bool) -> contextlib.AbstractContextManager[None]:
        """Hold a named lock against whoever asks for it exclusively or, if not shared, at all; object stores have none."""


def _on_disk(fs: Any, layout: Layout) -> tuple[Backend, Ingests]:
    disk = Disk(fs)
    return disk, FileIngests(disk, layout)


def _on_objects(fs: Any, layout: Layout) -> tuple[Backend, Ingests]:
    objects = Objects(fs, in_parts=True)
    return objects, UploadIngests(objects, layout)


def _in_memory(fs: Any, layout: Layout) -> tuple[Backend, Ingests]:
    objects = Objects(fs, in_parts=False)
    return objects, UploadIngests(objects, layout)


_KINDS: dict[str, Callable[[Any, Layout], tuple[Backend, Ingests]]] = {
    "file": _on_disk,
    "memory": _in_memory,  # of this process: for tests and trials
    "s3": _on_objects,
    "gs": _on_objects,
    "abfs": _on_objects,
}


def open_backend(url: str, options: Mapping[str, Any]) -> tuple[Backend, Ingests, Layout]:
    """The backend for an fsspec URL or local path, with its ingests, and where things are in it.

    Raises:
        InvalidInput: an empty URL, or a protocol that fsspec does not know.
        Unsupported: a file system that lacks what a store needs.
    """
    if not url:
        raise InvalidInput("store: the location is empty, expected a path or URL")
    if "::" in url:  # fsspec's chains; it would take the path /a::b for /a
        raise Unsupported(f"store {url}: a location with :: is not supported")
    try:
        fs, root = url_to_fs(url, **options)
    except (ValueError, ImportError, TypeError, AttributeError, OSError) as exc:  # each of fsspec's classes has its own ways
        raise InvalidInput(f"store {url}: {exc}") from exc
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    kind = next((_KINDS[protocol] for protocol in protocols if protocol in _KINDS), None)
    if kind is None:
        raise Unsupported(f"store {url}: {protocols[0]} is not supported, use one of {', '.join(sorted(_KINDS))}")
    if "file" in protocols and not os.path.isabs(root):
        raise InvalidInput(f"store {url}: expected an absolute path, got {root} (is there such a user?)")
    layout = Layout(root.rstrip("/"))
    return *kind(fs, layout), layout
