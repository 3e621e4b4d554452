"""Replaces a file of any size as a whole, with one writer at a time."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def replace_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a new file, which replaces `path` at the end of the block. After an error or a crash, `path` is unchanged.

    The new file is `.NAME.partial` in the same directory, and a lock on it excludes other writers of `path`, also those of
    other processes. After a crash, the next writer uses the same file again.

    Raises:
        OSError: an error of the file system, also in the block.
    """
    partial = path.with_name(f".{path.name}.partial")
    with _open_locked(partial) as file:
        try:
            file.truncate(0)
            if path.exists():
                os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
            yield file
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            with suppress(OSError):  # do not hide the first error
                partial.unlink()
            raise
        _sync_directory(path.parent)


def _open_locked(path: Path) -> IO[bytes]:
    """Open and lock a file. The last writer has renamed or removed its file, so the file is opened again.

    Raises:
        PermissionError: another user owns the file, and could change the archive after it is renamed.
        OSError: the file is a link, for example to a file that another user of the directory wants to have overwritten.
    """
    while True:
        file = open(path, "ab", opener=_open_without_links)  # noqa: SIM115 - the caller closes the file
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
            if _is_own(file, path):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _is_own(file: IO[bytes], path: Path) -> bool:
    """Return True if an open file is still the file at `path`."""
    found = os.fstat(file.fileno())
    if found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, f"{path} belongs to another user; remove the file", str(path))
    try:
        return os.path.samestat(found, path.stat())
    except FileNotFoundError:
        return False


def _open_without_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
