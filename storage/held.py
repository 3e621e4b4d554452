"""A file on a local disk that one writer at a time appends to."""

import errno
import fcntl
import os
import stat
from io import FileIO

_MODE = 0o666


class Held:
    """A file that is made if need be, and locked (flock) until it is closed. Unbuffered; raises OSError, untranslated.

    `found` is the size that it had when it was locked, in bytes.

    Raises:
        BlockingIOError: another writer, of this process or another, has it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = FileIO(path, "w", opener=_appending)  # which decides alone: "a" would be one more call, to seek the end
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
        """Its descriptor, for what the system can do with it."""
        return self._file.fileno()

    def size(self) -> int | None:
        """How many bytes it has now; None where it has lost its path, for whoever had it before published or dropped it."""
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return None
        return status.st_size if os.path.samestat(status, self._status) else None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append all of `data`. The system may take less at once: on a full disk what fits, else at most 2 GiB."""
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def truncate(self) -> None:
        """Make it empty."""
        self._file.truncate(0)

    def sync(self) -> None:
        """Make it durable; where the disk has failed to, nothing is left of it."""
        try:
            os.fsync(self._file.fileno())
        except OSError as exc:
            if exc.errno == errno.EIO:  # what did not reach the disk is called clean now, and the next sync would succeed
                self.truncate()
            raise

    def close(self) -> None:
        """Let it go."""
        self._file.close()


def _appending(path: str, _flags: int) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
