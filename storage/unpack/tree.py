"""Changes files in a directory tree without following a symbolic link out of the root.

Each step opens one name in an open directory and follows no link (openat(2) with O_NOFOLLOW). This module reads links and walks
their targets step by step: an absolute target starts at the root of the tree, and `..` at the root stays at the root, as after
chroot(2). The guarantee holds while no other process changes the tree.
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
"""The names from the root down; empty for the root."""

PATH_BYTES = 4095  # Linux's limit
PATH_NAMES = 256
"""The maximum number of names in a path. Linux has no such limit, but the work for each entry grows with the number."""
_MAX_STEPS = 2 * PATH_NAMES  # names in one path, including those of its links
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_LINKS = 40  # Linux's limit
_LIBC = ctypes.CDLL(None, use_errno=True)


class Cursor:
    """A position in a tree: an open directory and its path without links. Used as a context manager."""

    def __init__(self, root: int) -> None:
        self._root = root
        self.path: TreePath = ()
        self._path_bytes = 0  # the names with their slashes; joining the path at each step would take quadratic time
        self.handle = os.open(".", _DIRECTORY, dir_fd=root)

    def enter(self, name: bytes) -> None:
        """Move into a subdirectory.

        Raises:
            FileNotFoundError: the name is missing.
            NotADirectoryError: the name is not a directory; a link to a directory is not a directory.
        """
        self._move(os.open(name, _DIRECTORY, dir_fd=self.handle), (*self.path, name))
        self._path_bytes += len(name) + 1

    def leave(self) -> None:
        """Move to the parent directory. At the root, stay."""
        if self.path:
            self._path_bytes -= len(self.path[-1]) + 1
            self._move(os.open("..", _DIRECTORY, dir_fd=self.handle), self.path[:-1])

    def follow(self, path: TreePath, *, make: Callable[[Self, bytes], None] | None = None) -> None:
        """Move along a path and follow its links. `make` creates a directory that is missing.

        Raises:
            FileNotFoundError: a directory is missing and `make` is None.
            NotADirectoryError: a name in the path is neither a directory nor a link.
            InvalidInput: too many links or steps, or a path that is too long or too deep.
        """
        pending, links, steps = [*reversed(path)], 0, 0
        while pending:
            name = pending.pop()
            if (steps := steps + 1) > _MAX_STEPS:
                raise InvalidInput(
                    f"links at {os.fsdecode(name)!r}: expected at most {_MAX_STEPS} components in one path, got more"
                )
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
                    raise InvalidInput(
                        f"link {os.fsdecode(name)!r}: expected at most {_MAX_LINKS} links in one path, got more"
                    ) from None
                if target.startswith(b"/"):
                    self._move(os.open(".", _DIRECTORY, dir_fd=self._root), ())
                    self._path_bytes = 0
                pending.extend(part for part in reversed(target.split(b"/")) if part not in (b"", b"."))

    def status(self, name: bytes) -> os.stat_result | None:
        """Return the status of a name without following a link; None if the name is missing."""
        try:
            return os.stat(name, dir_fd=self.handle, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def children(self) -> list[bytes]:
        """Return the names in this directory."""
        with os.scandir(self.handle) as children:
            return [os.fsencode(child.name) for child in children]

    def _check_length(self, name: bytes) -> None:
        if len(self.path) == PATH_NAMES:
            raise InvalidInput(
                f"directory {os.fsdecode(name)!r}: expected at most {PATH_NAMES} components in its path, got more"
            )
        if self._path_bytes + len(name) > PATH_BYTES:
            raise InvalidInput(f"directory {os.fsdecode(name)!r}: expected at most {PATH_BYTES} bytes in its path, got more")

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
    """Restore the times of a directory at the end of this block."""
    before = os.stat(directory)
    yield
    os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))


def sync(directory: int) -> None:
    """Make the whole file system of an open directory durable (syncfs(2)).

    syncfs needs one call, fsync one call per file. Python only has os.sync, which waits for every disk.
    """
    if _LIBC.syncfs(directory) != 0:
        raise OSError(error := ctypes.get_errno(), os.strerror(error))


def remove(name: bytes, *, within: int) -> None:
    """Remove a name in an open directory with everything below it, regardless of permissions. Links are not followed.

    Raises:
        FileNotFoundError: the name is missing.
    """
    try:
        os.unlink(name, dir_fd=within)
    except IsADirectoryError:
        with Cursor(within) as here:
            _enter_unlocked(here, name)
            while here.path:  # not recursive: a tree may be deeper than Python's stack or the limit of open files
                if inner := _clear_up_to_directory(here.handle):
                    _enter_unlocked(here, inner)
                else:
                    emptied = here.path[-1]
                    here.leave()
                    os.rmdir(emptied, dir_fd=here.handle)


def _enter_unlocked(here: Cursor, name: bytes) -> None:
    os.chmod(name, 0o700, dir_fd=here.handle)  # the caller has checked that it is a directory
    here.enter(name)


def _clear_up_to_directory(directory: int) -> bytes | None:
    """Remove files in a directory until a subdirectory is found, and return its name; None if the directory is empty."""
    with os.scandir(directory) as children:
        for child in children:
            if child.is_dir(follow_symlinks=False):
                return os.fsencode(child.name)
            os.unlink(child.name, dir_fd=directory)
    return None
