"""The supported file systems, and the implementation of a store on each.

fsspec reads, lists and deletes in the same way everywhere. Three operations differ: making bytes durable, excluding a second
writer, and making content visible atomically. Disks use locks, fsync and rename (`storage.disk`, `storage.files`). Object
stores use uploads that are completed or aborted (`storage.objects`, `storage.uploads`). The table `_KINDS` assigns each
protocol to an implementation.

Other file systems of fsspec are refused. A store needs files that appear whole or not at all, and fsspec does not say which
file systems guarantee this.
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
from prefect_dist.storage.local_files import LocalFiles
from prefect_dist.storage.objects import MemoryConditionalWrites, Objects
from prefect_dist.storage.options import merge_options, refuse_flat, refuse_userinfo
from prefect_dist.storage.uploads import UploadIngests

T = TypeVar("T")
R = TypeVar("R")


class Backend(Protocol):
    """The operations that differ between kinds of file systems. Paths have no protocol. Every method may raise OSError."""

    fs: Any
    has_locks: bool
    """True if `hold_lock` excludes the processes of all machines."""
    has_directories: bool
    """True if directories exist on their own, and have a modification time."""
    can_exclude_gc: bool
    """True if gc and runs can exclude each other: by locks, or by markers that every process sees immediately."""

    def translate_errors(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Convert errors of the file system in this block to `DistError`, see `storage.errors.translate_errors`."""

    def each(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Return the result of `work` for each item, in order. A backend may run several calls concurrently."""

    def put(self, path: str, data: bytes) -> None:
        """Replace a small file. Readers see the old or the new bytes, also after a power loss."""

    def move(self, path: str, target: str) -> None:
        """Move a file to another path, such as a corrupt blob to quarantine."""

    def hold_lock(self, path: str, *, shared: bool, make: bool = False) -> contextlib.AbstractContextManager[None]:
        """Hold a shared or an exclusive lock during this block. On an object store, do nothing.

        If the directory of the lock is missing, no lock is taken, unless `make` creates the directory.
        """

    def read_versioned(self, path: str) -> tuple[bytes | None, str | None]:
        """Return the content of a small file and its version, for `replace`. The content is None if the file is missing."""

    def replace(self, path: str, data: bytes, version: str | None) -> bool:
        """Replace a small file of this version, or create the file if `version` is None. Return False after a conflict.

        On a disk there are no versions, and the caller holds a lock. An object store without conditional writes replaces the
        file in any case. A file with the new content counts as written, since the response to an earlier attempt may have been
        lost.
        """

    def hold_liveness_lock(self, path: str) -> contextlib.AbstractContextManager[bool]:
        """Hold a lock that shows other processes whether this process is alive. Yield False if the file system has no locks."""

    def is_held(self, path: str) -> bool | None:
        """Return True if a process holds the lock at `path`; None if this file system cannot tell."""

    def remove_lock(self, path: str) -> None:
        """Remove the file of a lock that no process holds."""

    def has_link(self, directory: str) -> bool:
        """Return True if `remove` refuses the files of a directory, because a link takes the place of a directory."""

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files. Missing files are skipped. A directory of the store that is a link is not entered."""

    def remove_directory(self, path: str) -> None:
        """Remove an empty directory. A directory with files stays. On an object store, do nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _FileSystemKind:
    """The way to open a store on one kind of file system.

    `options` are the default options of fsspec. `prepare` replaces options that fsspec does not know.
    """

    open: Callable[[Any, Layout], tuple[Backend, Ingests]]
    options: Callable[[], dict[str, Any]] = dict
    prepare: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict


def _open_disk(_fs: Any, layout: Layout) -> tuple[Backend, Ingests]:
    disk = Disk(LocalFiles(), layout.root)
    return disk, FileIngests(disk, layout)


def _open_s3(fs: Any, layout: Layout) -> tuple[Backend, Ingests]:
    fs = s3.connect(fs)
    objects = Objects(fs, layout.url, s3.S3Api(fs), s3.S3ConditionalWrites(fs, layout.url))
    return objects, UploadIngests(objects, layout)


def _open_objects(fs: Any, layout: Layout) -> tuple[Backend, Ingests]:
    objects = Objects(fs, layout.url)
    return objects, UploadIngests(objects, layout)


def _open_memory(fs: Any, layout: Layout) -> tuple[Backend, Ingests]:
    objects = Objects(fs, layout.url, conditional=MemoryConditionalWrites(fs))
    return objects, UploadIngests(objects, layout)


def _disable_cache() -> dict[str, Any]:
    """Return options without fsspec's cache of listings, since other processes write to the store, too."""
    return {"use_listings_cache": False, "skip_instance_cache": True}


def _s3_options() -> dict[str, Any]:
    return _disable_cache() | s3.default_options()


_KINDS = {
    "file": _FileSystemKind(open=_open_disk),
    "s3": _FileSystemKind(open=_open_s3, options=_s3_options, prepare=s3.apply_role),
    "gs": _FileSystemKind(open=_open_objects, options=_disable_cache),
    "az": _FileSystemKind(open=_open_objects, options=_disable_cache),
    "abfs": _FileSystemKind(open=_open_objects, options=_disable_cache),
    "memory": _FileSystemKind(open=_open_memory),  # only within this process: for tests and trials
}


# The extra of this distribution that installs the driver of a protocol.
_EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "azure"),
}


def open_backend(url: str, options: Mapping[str, Any]) -> tuple[Backend, Ingests, Layout]:
    """Return the backend, the ingests and the layout of a store at an fsspec URL or local path.

    Raises:
        InvalidInput: an empty URL, an unknown protocol, a protocol whose driver is not installed, or wrong options.
        Unsupported: a file system that does not meet the needs of a store.
    """
    if not url:
        raise InvalidInput("store: expected a path or URL, got an empty location")
    if "::" in url:  # fsspec would parse /a::b as a chain of URLs and use /a
        raise Unsupported(f"store {url}: a location with :: is not supported")
    refuse_userinfo(url)
    refuse_flat(options)
    try:
        return _open(_kind_of(url), url, options)
    except DistError:
        raise
    except Exception as exc:  # no request was sent yet, so the location or the options are wrong
        raise InvalidInput(f"store {url}: {exc}; check the location and its options") from exc


def _open(kind: _FileSystemKind, url: str, options: Mapping[str, Any]) -> tuple[Backend, Ingests, Layout]:
    on_disk = kind is _KINDS["file"]
    if on_disk and options:
        raise InvalidInput(f"store {url}: a local disk has no store options, got {', '.join(options)}; remove them")
    fs, root = url_to_fs(url, **kind.prepare(merge_options(kind.options(), options)))
    if on_disk and not os.path.isabs(root):
        raise InvalidInput(f"store {url}: expected an absolute path, got {root}; check that the user after ~ exists")
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
    reason = f"{get_protocol(url)}:// does not guarantee that a file appears whole or not at all"
    return Unsupported(f"store {url}: {reason}; use one of {', '.join(sorted(_KINDS))}")
