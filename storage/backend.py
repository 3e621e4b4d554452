"""The file systems that can be a store, and how each is used.

fsspec reads, lists and deletes everywhere in one way. Making bytes durable, keeping a second writer out and making content
visible at once is done in one of two ways: on a disk by locks, fsync and rename (`storage.disk`, `storage.files`), on an
object store by uploads that are completed or not (`storage.objects`, `storage.uploads`). Which one it is, is written in the
table `_KINDS`. Other file systems of fsspec are refused: a store needs that a file appears whole or not at all, and fsspec does
not say which file systems promise that.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from fsspec import get_filesystem_class
from fsspec.core import url_to_fs
from fsspec.utils import get_protocol

from prefect_dist.ocispec.errors import DistError, InvalidInput, Unsupported
from prefect_dist.storage import s3
from prefect_dist.storage.disk import Disk
from prefect_dist.storage.files import FileIngests
from prefect_dist.storage.ingest import Ingests
from prefect_dist.storage.layout import Layout
from prefect_dist.storage.objects import MemoryConditionalWrites, Objects
from prefect_dist.storage.options import merge_options, refuse_flat, refuse_userinfo
from prefect_dist.storage.uploads import UploadIngests

T = TypeVar("T")
R = TypeVar("R")


class Backend(Protocol):
    """Operations that differ between kinds of file systems. Paths have no protocol. All raise OSError."""

    fs: Any
    has_locks: bool
    """Whether `locked` keeps out the processes of all machines."""
    can_exclude_gc: bool
    """Whether gc and runs can be kept apart at all: by locks, or since each process sees at once what others wrote."""

    def translate_errors(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Convert errors of the file system in this block, see `storage.errors.translate_errors`."""

    def each(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Return the result of `work` for each item, in order; concurrently where that is faster."""

    def put(self, path: str, data: bytes) -> None:
        """Replace a small file: readers see the old or the new bytes, also after a power loss."""

    def move(self, path: str, target: str) -> None:
        """Take a file out of sight, to where it can be looked at."""

    def hold_lock(self, path: str, *, shared: bool, make: bool = False) -> contextlib.AbstractContextManager[None]:
        """Hold a shared or an exclusive lock during this block. Object stores have no locks.

        Only `make` creates the directory of the lock. Without the directory no lock is taken.
        """

    def read_versioned(self, path: str) -> tuple[bytes | None, str | None]:
        """Return the content of a small file and its version, for `replace`; no content if there is no file."""

    def replace(self, path: str, data: bytes, version: str | None) -> bool:
        """Replace a small file if it still has this version, or make it if it has none; return whether that was done.

        On a disk the caller holds a lock instead. An object store without conditional writes replaces it in any case.
        Content that is there already counts as written: an answer may have been lost.
        """

    def hold_liveness_lock(self, path: str) -> contextlib.AbstractContextManager[bool]:
        """Hold a lock that shows to others that this process lives; yields False where no lock can do that."""

    def is_held(self, path: str) -> bool | None:
        """Return whether a process holds the lock at `path`; None if that cannot be known here."""

    def remove_lock(self, path: str) -> None:
        """Remove a lock that no process holds; one that is held stays."""

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files; those that are not there are skipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _FileSystemKind:
    """The way to open a store on a kind of file system.

    `options` are those of fsspec if the user names none. `prepared` changes what fsspec cannot use as the user names it.
    """

    open: Callable[[Any, Layout], tuple[Backend, Ingests]]
    options: Callable[[], dict[str, Any]] = dict
    prepared: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict


def _on_disk(fs: Any, layout: Layout) -> tuple[Backend, Ingests]:
    disk = Disk(fs, layout.root)
    return disk, FileIngests(disk, layout)


def _on_s3(fs: Any, layout: Layout) -> tuple[Backend, Ingests]:
    fs = s3.connect(fs)
    objects = Objects(fs, layout.url, s3.S3Api(fs), s3.S3ConditionalWrites(fs, layout.url))
    return objects, UploadIngests(objects, layout)


def _on_objects(fs: Any, layout: Layout) -> tuple[Backend, Ingests]:
    objects = Objects(fs, layout.url)
    return objects, UploadIngests(objects, layout)


def _in_memory(fs: Any, layout: Layout) -> tuple[Backend, Ingests]:
    objects = Objects(fs, layout.url, conditional=MemoryConditionalWrites(fs))
    return objects, UploadIngests(objects, layout)


def _disable_cache() -> dict[str, Any]:
    """Return options that disable fsspec's cache of listings, since other processes write, too."""
    return {"use_listings_cache": False, "skip_instance_cache": True}


def _s3_options() -> dict[str, Any]:
    return _disable_cache() | s3.options()


_KINDS = {
    "file": _FileSystemKind(open=_on_disk),
    "s3": _FileSystemKind(open=_on_s3, options=_s3_options, prepared=s3.with_role),
    "gs": _FileSystemKind(open=_on_objects, options=_disable_cache),
    "az": _FileSystemKind(open=_on_objects, options=_disable_cache),
    "abfs": _FileSystemKind(open=_on_objects, options=_disable_cache),
    "memory": _FileSystemKind(open=_in_memory),  # of this process: for tests and trials
}


# The extras of this distribution that install the drivers of a protocol.
_EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "azure"),
}


def open_backend(url: str, options: Mapping[str, Any]) -> tuple[Backend, Ingests, Layout]:
    """The backend for an fsspec URL or local path, with its ingests, and where things are in it.

    Raises:
        InvalidInput: an empty URL, a protocol that fsspec does not know or whose driver is not installed, or wrong options.
        Unsupported: a file system that lacks what a store needs.
    """
    if not url:
        raise InvalidInput("store: the location is empty, expected a path or URL")
    if "::" in url:  # fsspec's chains; it would take the path /a::b for /a
        raise Unsupported(f"store {url}: a location with :: is not supported")
    refuse_userinfo(url)
    refuse_flat(options)
    try:
        return _open(_kind_of(url), url, options)
    except DistError:
        raise
    except Exception as exc:  # nothing was asked over the network; what else is wrong, each library says in its own way
        raise InvalidInput(f"store {url}: {exc}; check the location and its options") from exc


def _open(kind: _FileSystemKind, url: str, options: Mapping[str, Any]) -> tuple[Backend, Ingests, Layout]:
    on_disk = kind is _KINDS["file"]
    if on_disk and options:
        raise InvalidInput(f"store {url}: a local disk has no store options, got {', '.join(options)}; leave them out")
    fs, root = url_to_fs(url, **kind.prepared(merge_options(kind.options(), options)))
    if on_disk and not os.path.isabs(root):
        raise InvalidInput(f"store {url}: expected an absolute path, got {root} (is there such a user?)")
    layout = Layout(root.rstrip("/"), "" if on_disk else f"{get_protocol(url)}://")
    return *kind.open(fs, layout), layout


def _kind_of(url: str) -> _FileSystemKind:
    protocol = get_protocol(url)
    try:
        known = get_filesystem_class(protocol).protocol
    except ImportError as exc:
        if (extra := _EXTRAS.get(protocol)) is None:
            raise _unsupported_error(url) from exc
        advice = f"run pip install 'prefect-dist[{extra}]'"
        raise InvalidInput(f"store {url}: the driver for {protocol}:// is not installed; {advice}") from exc
    for name in (protocol, *((known,) if isinstance(known, str) else known)):
        if name in _KINDS:
            return _KINDS[name]
    raise _unsupported_error(url)


def _unsupported_error(url: str) -> Unsupported:
    reason = f"{get_protocol(url)}:// does not promise that a file appears whole or not at all, as a store needs"
    return Unsupported(f"store {url}: {reason}; use one of {', '.join(sorted(_KINDS))}")
