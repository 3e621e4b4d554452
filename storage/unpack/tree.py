"""A directory tree that is worked on from inside: whatever its symbolic links say, no step leads out of its root.

Every step goes from an open directory to one name in it and follows nothing (openat(2) with O_NOFOLLOW). Links are read and
walked here, absolute ones from the tree's root and `..` at the root staying there, as chroot(2) would have it. This holds
while nobody else changes the tree.
"""

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from prefect_dist.ocispec.errors import InvalidInput

TreePath = tuple[bytes, ...]
"""Names from the root down; the root itself has none."""

PATH_BYTES = 4095  # Linux's limit
PATH_NAMES = 256
"""How many names a path may have. Linux has no limit, but the work for each entry grows with them."""
_MAX_STEPS = 2 * PATH_NAMES  # on one way, with those that its links add
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_LINKS = 40  # as Linux
_LIBC = ctypes.CDLL(None, use_errno=True)


class Cursor:
    """A place in a tree: an open directory, and its path without links. To be used as a context."""

    def __init__(self, root: int) -> None:
        self._root = root
        self.path: TreePath = ()
        self._path_bytes = 0  # each name with its slash; joining the path at each step would take quadratic time
        self.handle = os.open(".", _DIRECTORY, dir_fd=root)

    def enter(self, name: bytes) -> None:
        """Go into a directory.

        Raises:
            FileNotFoundError, NotADirectoryError: there is none of this name; a link to one is none.
        """
        self._move(os.open(name, _DIRECTORY, dir_fd=self.handle), (*self.path, name))
        self._path_bytes += len(name) + 1

    def leave(self) -> None:
        """Go up one directory; at the root, stay."""
        if self.path:
            self._path_bytes -= len(self.path[-1]) + 1
            self._move(os.open("..", _DIRECTORY, dir_fd=self.handle), self.path[:-1])

    def follow(self, path: TreePath, *, make: Callable[[Self, bytes], None] | None = None) -> None:
        """Go along a path, links included. `make` is asked to make a directory that is missing.

        Raises:
            FileNotFoundError: a directory is missing and `make` is None.
            NotADirectoryError: something in the path is neither a directory nor a link.
            InvalidInput: too many links or steps, or a path that is too long or too deep.
        """
        pending, links, steps = [*reversed(path)], 0, 0
        while pending:
            name = pending.pop()
            if (steps := steps + 1) > _MAX_STEPS:
                raise InvalidInput(f"link on the way to {os.fsdecode(name)!r}: more than {_MAX_STEPS} names in one path")
            if name == b"..":
                self.leave()
                continue
            self._check_length(name)
            try:
                self.enter(name)
            except FileNotFoundError:
                if make is None:
                    raise
                make(self, name)
                self.enter(name)
            except NotADirectoryError:
                target = self._read_link(name)
                if (links := links + 1) > _MAX_LINKS:
                    raise InvalidInput(f"link {os.fsdecode(name)!r}: more than {_MAX_LINKS} links in one path") from None
                if target.startswith(b"/"):
                    self._move(os.open(".", _DIRECTORY, dir_fd=self._root), ())
                    self._path_bytes = 0
                pending.extend(part for part in reversed(target.split(b"/")) if part not in (b"", b"."))

    def status(self, name: bytes) -> os.stat_result | None:
        """Return the status of a name without following a link; None if it is missing."""
        try:
            return os.stat(name, dir_fd=self.handle, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def children(self) -> list[bytes]:
        """The names in this directory."""
        with os.scandir(self.handle) as children:
            return [os.fsencode(child.name) for child in children]

    def _check_length(self, name: bytes) -> None:
        if len(self.path) == PATH_NAMES:
            raise InvalidInput(f"directory {os.fsdecode(name)!r}: its path has more than {PATH_NAMES} names")
        if self._path_bytes + len(name) > PATH_BYTES:
            raise InvalidInput(f"directory {os.fsdecode(name)!r}: its path has more than {PATH_BYTES} bytes")

    def _read_link(self, name: bytes) -> bytes:
        try:
            return os.readlink(name, dir_fd=self.handle)
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name) from None
            raise

    def _move(self, handle: int, path: TreePath) -> None:
        os.close(self.handle)
        self.handle, self.path = handle, path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.handle)


@contextmanager
def open_directory(directory: Path) -> Iterator[int]:
    """Open a directory and yield its handle."""
    handle = os.open(directory, _DIRECTORY)
    try:
        yield handle
    finally:
        os.close(handle)


@contextmanager
def unchanged_times(directory: int) -> Iterator[None]:
    """Restore the times of a directory after this block."""
    before = os.stat(directory)
    yield
    os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))


def sync(directory: int) -> None:
    """Make durable what is below an open directory, with all else on its file system (syncfs(2)).

    One call, where fsync would take one per file. Python has only os.sync, which waits for every other disk, too.
    """
    if _LIBC.syncfs(directory) != 0:
        raise OSError(error := ctypes.get_errno(), os.strerror(error))


def remove(name: bytes, *, within: int) -> None:
    """Remove what has this name in an open directory, with all below it; no link is followed, no permission bit hinders.

    Raises:
        FileNotFoundError: nothing has this name.
    """
    try:
        os.unlink(name, dir_fd=within)
    except IsADirectoryError:
        with Cursor(within) as here:
            _enter_unlocked(here, name)
            while here.path:  # not recursive: a tree may be deeper than Python's stack, or than files may be open
                if inner := _clear_up_to_directory(here.handle):
                    _enter_unlocked(here, inner)
                else:
                    emptied = here.path[-1]
                    here.leave()
                    os.rmdir(emptied, dir_fd=here.handle)


def _enter_unlocked(here: Cursor, name: bytes) -> None:
    os.chmod(name, 0o700, dir_fd=here.handle)  # that it is a directory has been seen
    here.enter(name)


def _clear_up_to_directory(directory: int) -> bytes | None:
    """Remove what a directory holds until there is a directory, whose name is the result."""
    with os.scandir(directory) as children:
        for child in children:
            if child.is_dir(follow_symlinks=False):
                return os.fsencode(child.name)
            os.unlink(child.name, dir_fd=directory)
    return None
