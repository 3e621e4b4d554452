"""Files with a lock (flock) for one writer, and the detection of mounts that share locks between machines."""

import errno
import fcntl
import os
import stat
from contextlib import suppress
from io import FileIO
from pathlib import Path

_MODE = 0o666
_MOUNTS = Path("/proc/self/mountinfo")
# Options of an NFS mount with which flock excludes only processes of the same machine (nfs(5)).
_LOCAL = {"nolock", "local_lock=all", "local_lock=flock"}


class LockedFile:
    """A file that is created if missing, and locked until it is closed. Unbuffered; methods raise OSError.

    `found` is the size of the file at the time of locking, in bytes.

    Raises:
        BlockingIOError: another writer, in this process or another process, has locked the file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        # The opener appends, not mode "a", which would cost another system call, a seek to the end.
        self._file = FileIO(path, "w", opener=_open_to_append)
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._status = os.fstat(self._file.fileno())
        except BaseException:
            self._file.close()
            raise
        self.found = self._status.st_size

    @property
    def mode(self) -> int:
        """The permissions of the file when it was locked."""
        return stat.S_IMODE(self._status.st_mode)

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._file.fileno()

    def size(self) -> int | None:
        """Return the current size in bytes; None if another writer has moved or removed the file."""
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return None
        return status.st_size if os.path.samestat(status, self._status) else None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append the whole of `data`, with several system calls if necessary: on a full disk, or beyond 2 GiB."""
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def truncate(self) -> None:
        """Truncate the file to zero bytes."""
        self._file.truncate(0)

    def sync(self) -> None:
        """Make the content durable (fsync). After an I/O error, the file is truncated."""
        try:
            os.fsync(self._file.fileno())
        except OSError as exc:
            if exc.errno == errno.EIO:  # the kernel has dropped the unwritten pages, and the next fsync would succeed
                self.truncate()
            raise

    def close(self) -> None:
        """Close the file, which releases the lock."""
        self._file.close()


def _open_to_append(path: str, _flags: int) -> int:
    # The directory may come from elsewhere, such as an image layout, and a link in it could lead to any file.
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)


def shares_locks(path: str) -> bool:
    """Return True if a lock (flock) on a file at `path` excludes processes on every machine that mounts the file system."""
    with suppress(OSError):  # only Linux has this list
        return shares_locks_by(_MOUNTS.read_text(), os.path.realpath(path))
    return True


def shares_locks_by(mounts: str, path: str) -> bool:
    """Return the result of `shares_locks` for a mountinfo text (proc_pid_mountinfo(5)) and a path without symbolic links."""
    longest, found = -1, True
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        place = left.split(" ")[4].encode().decode("unicode_escape")  # blanks are octal escapes
        kind, _, options = (*right.split(" "), "", "")[:3]
        is_above = path == place or path.startswith(place.rstrip("/") + "/")
        if is_above and len(place) >= longest:
            longest = len(place)
            found = not (kind.startswith("nfs") and _LOCAL & set(options.split(",")))
    return found
