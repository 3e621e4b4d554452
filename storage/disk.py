"""The backend of a store on a local disk: locks, durable writes and atomic renames. `storage.files` has its ingests."""

import contextlib
import errno
import fcntl
import os
import shlex
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import groupby
from typing import Any, TypeVar

from prefect_dist.ocispec.errors import Busy
from prefect_dist.storage.directories import has_link, open_directory
from prefect_dist.storage.errors import translate_errors
from prefect_dist.storage.layout import TEMPORARY
from prefect_dist.storage.locked_file import LockedFile, shares_locks

T = TypeVar("T")
R = TypeVar("R")
_MODE = 0o666  # the umask restricts it
_READ_ONLY = 0o444
# Another process may remove an empty directory as often as this process creates the directory.
_MAX_DIRECTORIES = 5
# The errors of flock on a file system without locks, such as NFS without a lock service.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


class Disk:
    """A local disk: advisory locks (flock) that a crash releases, fsync and atomic rename. Methods raise untranslated OSErrors.

    The methods that every blob uses make as few system calls as possible. With many threads, each call can cost a thread
    switch, and for small blobs these switches are most of the cost (docs/explanation/performance.md).
    """

    has_directories = True

    def __init__(self, fs: Any, root: str) -> None:
        self.fs = fs
        self._root = root
        self.has_locks = self.can_exclude_gc = shares_locks(root)

    def translate_errors(self, what: str) -> AbstractContextManager[None]:
        """Convert errors of the disk in this block to `DistError`."""
        return translate_errors(what)

    def each(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Return the result of `work` for each item, in order. Calls are sequential: threads cost more than disk access."""
        return [work(item) for item in items]

    def put(self, path: str, data: bytes) -> None:
        """Replace a small file. Readers see the old or the new bytes, also after a power loss."""
        temporary = f"{path}.{uuid.uuid4().hex}{TEMPORARY}"
        self._make_parent(path)
        try:
            with self.fs.open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            # Not fsspec's mv: if rename fails, mv copies, and a full disk would leave half a file at the final path.
            os.replace(temporary, path)
            _sync_directory(os.path.dirname(path))
        except BaseException:
            with contextlib.suppress(OSError):  # do not hide the first error
                self.fs.rm_file(temporary)
            raise

    def read_versioned(self, path: str) -> tuple[bytes | None, str | None]:
        """Return the content of a small file, None if it is missing. The version is None: the caller holds a lock."""
        try:
            return self.fs.cat_file(path), None
        except FileNotFoundError:
            return None, None

    def replace(self, path: str, data: bytes, version: str | None) -> bool:  # noqa: ARG002
        """Replace a small file whose lock the caller holds."""
        self.put(path, data)
        return True

    def append(self, path: str) -> LockedFile:
        """Open a file for appending and lock it until it is closed. A missing file is created.

        Raises:
            Busy: another writer, in any process, holds the file.
        """
        while True:
            try:
                held = self._open_locked_file(path)
            except BlockingIOError:
                raise Busy("another writer is active; wait until it ends", subject=path) from None
            try:
                if held.size() is not None:
                    return held
            except BaseException:
                held.close()
                raise
            held.close()  # another writer renamed or removed the file after this process opened it and before it was locked

    def write_back(self, held: LockedFile, start: int, end: int) -> None:
        """Start to write a range of bytes to the disk. This is only a hint: `fsync` makes bytes durable."""
        # On Linux this call starts writing dirty pages without waiting for them, which leaves little work to fsync: a fetch of
        # 1 GiB takes a quarter less time (docs/explanation/performance.md).
        os.posix_fadvise(held.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)

    def fsync(self, held: LockedFile) -> int:
        """Make a file from `append` durable and return its size in bytes."""
        held.sync()
        if (size := held.size()) is None:  # the path may now be the file of another writer, which must not be published
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), held.path)
        return size

    def publish(self, held: LockedFile, target: str) -> None:
        """Rename a durable file to `target` and make it read-only. The writer still holds the lock."""
        try:
            os.replace(held.path, target)
        except FileNotFoundError:
            self._make_parent(target)
            os.replace(held.path, target)
        # Only after the rename: the owner could not open a read-only file to resume it.
        os.fchmod(held.fileno(), held.mode & _READ_ONLY)
        _sync_directory(os.path.dirname(target))

    def move(self, path: str, target: str) -> None:
        """Move a file to another path, atomically."""
        self._make_parent(target)
        os.replace(path, target)
        _sync_directory(os.path.dirname(path))

    @contextmanager
    def hold_lock(self, path: str, *, shared: bool, make: bool = False) -> Iterator[None]:
        """Hold a shared or an exclusive lock (flock) during this block.

        If the directory of the lock is missing, no lock is taken, since nothing needs protection. With `make`, the directory is
        created instead.
        """
        if make:
            self._make_parent(path)
        try:
            lock = _open_locked(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        except FileNotFoundError:
            yield
            return
        try:
            yield
        finally:
            os.close(lock)

    @contextmanager
    def hold_liveness_lock(self, path: str) -> Iterator[bool]:
        """Hold a lock that shows other processes whether this process is alive. Yield False if the file system has no locks."""
        try:
            self._make_parent(path)
            lock = _open_locked(path, fcntl.LOCK_EX) if self.has_locks else None
        except OSError as exc:
            if exc.errno not in _NO_LOCKS:
                raise
            lock = None
        if lock is None:
            yield False
            return
        try:
            yield True
        finally:
            with contextlib.suppress(OSError):
                self.fs.rm_file(path)
            os.close(lock)

    def is_held(self, path: str) -> bool | None:
        """Return True if a process holds the lock at `path`; None if this file system cannot tell."""
        if not self.has_locks:
            return None
        try:
            with open(path, "rb") as file:
                fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def remove_lock(self, path: str) -> None:
        """Remove the file of a lock that no process holds."""
        try:
            lock = _open_locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB, make=False)
        except (FileNotFoundError, BlockingIOError):
            return
        try:
            self.remove([path])
        finally:
            os.close(lock)

    def has_link(self, directory: str) -> bool:
        """Return True if `remove` refuses the files of a directory, because a link takes the place of a directory."""
        return has_link(self._root, directory)

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files. Missing files are skipped. A directory of the store that is a link is not entered."""
        for parent, some in groupby(paths, os.path.dirname):
            with contextlib.suppress(FileNotFoundError), open_directory(self._root, parent) as directory:
                for path in some:
                    with contextlib.suppress(FileNotFoundError):
                        os.remove(os.path.basename(path), dir_fd=directory)

    def remove_directory(self, path: str) -> None:
        """Remove an empty directory. A directory with files stays."""
        try:
            with open_directory(self._root, path), open_directory(self._root, os.path.dirname(path)) as parent:
                os.rmdir(os.path.basename(path), dir_fd=parent)
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                raise

    def touch(self, path: str) -> None:
        """Set the modification time of a file to now, so gc treats the file as new."""
        os.utime(path)

    def _open_locked_file(self, path: str) -> LockedFile:
        for _ in range(_MAX_DIRECTORIES):
            with contextlib.suppress(FileNotFoundError):
                return LockedFile(path)
            self._make_parent(path)
        return LockedFile(path)

    def _make_parent(self, path: str) -> None:
        parent = os.path.dirname(path)
        if not os.path.isdir(parent):
            self._make_parent(parent)
            self.fs.makedirs(parent, exist_ok=True)
            _sync_directory(os.path.dirname(parent))


def _open_locked(path: str, operation: int, *, make: bool = True) -> int:
    """Open and lock the file at `path`, and return its descriptor. The caller closes the descriptor.

    The last holder of a lock removes its file. A lock on a removed file excludes no one, so the file is opened again.
    """
    while True:
        lock = _open_lock_file(path, make=make)
        try:
            fcntl.flock(lock, operation)
            if _is_at(lock, path):
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _open_lock_file(path: str, *, make: bool) -> int:
    """Return a descriptor of a lock file, which must not be a link. The umask sets the permissions of a new file."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if make else 0), _MODE)
    except PermissionError as exc:
        if make and not os.path.exists(path):
            raise  # the directory does not permit new files
        with contextlib.suppress(OSError):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # a file of another user: read access is enough for a local lock
        remedy = f"let all users of the store read and write it: chmod g+rw {shlex.quote(path)}"
        raise PermissionError(errno.EACCES, f"cannot open {path} ({exc.strerror}); {remedy}", path) from exc


def _is_at(file: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
