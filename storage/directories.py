"""Opens the directories of a store on a disk without following links, which could lead out of the store.

Each writer of a shared store can replace a directory of the store by a symbolic link. A removal by path would then remove files
of another directory, with the permissions of the process that runs gc.

The root of a store may be a link, or lie below a link. The directory `blobs` may be a link, too: gc removes only files there
that have the names of blobs.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FOLLOWED = "/blobs"


@contextmanager
def open_directory(root: str, path: str) -> Iterator[int]:
    """Yield a descriptor of the directory at `path`, which is the root of a store or below the root.

    Raises:
        OSError: with errno ELOOP if the directory, or a directory between the root and the directory, is a link.
    """
    place, names = root, path.removeprefix(root).split("/")[1:]
    opened = os.open(root or "/", _FLAGS)
    try:
        for name in names:
            place, outer = f"{place}/{name}", opened
            flags = _FLAGS if place == f"{root}{_FOLLOWED}" else _FLAGS | os.O_NOFOLLOW
            try:
                opened = os.open(name, flags, dir_fd=outer)
            except NotADirectoryError as exc:
                raise _describe_link(exc, outer, name, place) from exc
            os.close(outer)
        yield opened
    finally:
        os.close(opened)


def has_link(root: str, path: str) -> bool:
    """Return True if `open_directory` refuses the directory at `path` because of a link."""
    try:
        with open_directory(root, path):
            return False
    except OSError as exc:
        return exc.errno == errno.ELOOP


def _describe_link(exc: OSError, parent: int, name: str, place: str) -> OSError:
    """Return an error that names the link; or `exc`, if the entry is no link. Linux reports ENOTDIR for a link."""
    if not stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
        return exc
    return OSError(
        errno.ELOOP, f"{place} is a symbolic link, and nothing is removed through it; use a directory instead", place
    )
