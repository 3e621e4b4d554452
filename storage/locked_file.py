"""Files that are locked (flock) for one writer, and which mounts share such locks between machines."""

import errno
import fcntl
import os
import stat
from contextlib import suppress
from io import FileIO
from pathlib import Path

_MODE = 0o666
_MOUNTS = Path("/proc/self/mountinfo")
# Options of an NFS mount with which flock keeps out only processes of the same machine (nfs(5)).
_LOCAL = {"nolock", "local_lock=all", "local_lock=flock"}


class LockedFile:
    """A file that is created if it is missing, and locked until it is closed. Unbuffered; raises OSError.

    `found` is the size of the file when it was locked, in bytes.

    Raises:
        BlockingIOError: another writer, of this process or another, has locked the file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = FileIO(
            path, "w", opener=_open_to_append
        )  # the opener sets the mode; "a" would cost another call, a seek to the end
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._status = os.fstat(self._file.fileno())
        except BaseException:
            self._file.close()
            raise
        self.found = self._status.st_size

    @property
    def mode(self) -> int:
        """Return the permissions of the file, which followed the umask when it was made."""
        return stat.S_IMODE(self._status.st_mode)

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._file.fileno()

    def size(self) -> int | None:
        """Return the present size in bytes; None if an earlier writer has moved or removed the file."""
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return None
        return status.st_size if os.path.samestat(status, self._status) else None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append all of `data`. One system call may write less: what fits on a full disk, and at most 2 GiB."""
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def truncate(self) -> None:
        """Truncate the file to no bytes."""
        self._file.truncate(0)

    def sync(self) -> None:
        """Make the content durable (fsync). After an I/O error, truncate the file."""
        try:
            os.fsync(self._file.fileno())
        except OSError as exc:
            if exc.errno == errno.EIO:  # the kernel has dropped the dirty pages: the next fsync would succeed without them
                self.truncate()
            raise

    def close(self) -> None:
        """Close the file, which releases the lock."""
        self._file.close()


def _open_to_append(path: str, _flags: int) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)


def shares_locks(path: str) -> bool:
    """Return True if every machine that mounts the file system sees a lock (flock) on a file at `path`."""
    with suppress(OSError):  # other systems have no such list
        return shares_locks_by(_MOUNTS.read_text(), os.path.realpath(path))
    return True


def shares_locks_by(mounts: str, path: str) -> bool:
    """Return the same from the text of a mountinfo file (proc_pid_mountinfo(5)), for a path without symbolic links."""
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
