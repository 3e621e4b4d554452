"""A local disk as a store's ground: what is needed of it beyond fsspec."""

import contextlib
import errno
import fcntl
import os
import shlex
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from prefect_dist.ocispec.errors import Busy
from prefect_dist.storage.errors import translate_errors
from prefect_dist.storage.layout import TEMPORARY
from prefect_dist.storage.locked_file import LockedFile, shares_locks

T = TypeVar("T")
R = TypeVar("R")
_MODE = 0o666  # as far as the umask allows
_READ_ONLY = 0o444
# What flock answers where a file system has no locks, such as NFS without a lock service.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


class Disk:
    """A local disk: advisory locks (flock) that a crash releases, fsync, atomic rename. Raises OSError, untranslated.

    What every blob goes through asks the system for no more than it needs: with many threads each call may cost a change of
    threads, and for small blobs these are most of the cost (docs/explanation/performance.md).
    """

    def __init__(self, fs: Any, root: str) -> None:
        self.fs = fs
        self.has_locks = self.can_exclude_gc = shares_locks(root)

    def translate_errors(self, what: str) -> AbstractContextManager[None]:
        """Convert errors of the disk in this block to `DistError`."""
        return translate_errors(what)

    def each(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Return the result of `work` for each item, in order; sequentially, since threads cost more than a disk."""
        return [work(item) for item in items]

    def put(self, path: str, data: bytes) -> None:
        """Replace a small file: readers see the old or the new bytes, also after a power loss."""
        temporary = f"{path}.{uuid.uuid4().hex}{TEMPORARY}"
        self._make_parent(path)
        try:
            with self.fs.open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            # Not fsspec's mv: where rename fails it falls back to copying, and a full disk would leave half a file in sight.
            os.replace(temporary, path)
            _sync_directory(os.path.dirname(path))
        except BaseException:
            with contextlib.suppress(OSError):  # the error that is on its way says more
                self.fs.rm_file(temporary)
            raise

    def read_versioned(self, path: str) -> tuple[bytes | None, str | None]:
        """Return the content of a small file, None if it is missing. There are no versions: a lock keeps other writers out."""
        try:
            return self.fs.cat_file(path), None
        except FileNotFoundError:
            return None, None

    def replace(self, path: str, data: bytes, version: str | None) -> bool:  # noqa: ARG002
        """Replace a small file whose lock the caller holds."""
        self.put(path, data)
        return True

    def append(self, path: str) -> LockedFile:
        """The file at `path`, made if need be, for this writer alone to append to until it is closed.

        Raises:
            Busy: another writer, of this process or another, has it.
        """
        while True:
            try:
                held = self._hold(path)
            except BlockingIOError:
                raise Busy(f"{path}: another writer has it") from None
            try:
                if held.size() is not None:
                    return held
            except BaseException:
                held.close()
                raise
            held.close()  # the writer before us published or dropped the file between our open and our lock

    def write_back(self, held: LockedFile, start: int, end: int) -> None:
        """Begin to make these bytes durable. A hint: `publish` alone promises it."""
        # On Linux this starts writing dirty pages and waits for none, so that fsync finds little left to do: a fetch of 1 GiB
        # takes a quarter less time (docs/explanation/performance.md).
        os.posix_fadvise(held.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)

    def fsync(self, held: LockedFile) -> int:
        """Make a file from `append` durable, and return its size in bytes."""
        held.sync()
        if (size := held.size()) is None:  # the path may be another writer's file by now, which must not be published
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), held.path)
        return size

    def publish(self, held: LockedFile, target: str) -> None:
        """Make a file that is durable visible under `target` at once, read-only; its writer still holds it."""
        try:
            os.replace(held.path, target)
        except FileNotFoundError:
            self._make_parent(target)
            os.replace(held.path, target)
        os.fchmod(
            held.fileno(), held.mode & _READ_ONLY
        )  # not earlier: after a failed rename its owner could not open it to go on
        _sync_directory(os.path.dirname(target))

    def move(self, path: str, target: str) -> None:
        """Take a file out of sight at once, to where it can be looked at."""
        self._make_parent(target)
        os.replace(path, target)
        _sync_directory(os.path.dirname(path))

    @contextmanager
    def hold_lock(self, path: str, *, shared: bool, make: bool = False) -> Iterator[None]:
        """Hold a shared or an exclusive lock (flock) during this block.

        If the directory of the lock is missing, there is nothing to protect: no lock is taken, unless `make` creates it.
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
        """Hold a lock that shows to others that this process lives; yields False where no lock can do that."""
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
        """Return whether a process holds the lock at `path`; None if that cannot be known here."""
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
        """Remove a lock that no process holds; one that is held stays."""
        try:
            lock = _open_locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB, make=False)
        except (FileNotFoundError, BlockingIOError):
            return
        try:
            self.fs.rm_file(path)
        finally:
            os.close(lock)

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files; those that are not there are skipped."""
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(path)

    def touch(self, path: str) -> None:
        """Have a file count as new."""
        os.utime(path)

    def _hold(self, path: str) -> LockedFile:
        try:
            return LockedFile(path)
        except FileNotFoundError:
            self._make_parent(path)
            return LockedFile(path)

    def _make_parent(self, path: str) -> None:
        parent = os.path.dirname(path)
        if not os.path.isdir(parent):
            self._make_parent(parent)
            self.fs.makedirs(parent, exist_ok=True)
            _sync_directory(os.path.dirname(parent))


def _open_locked(path: str, operation: int, *, make: bool = True) -> int:
    """Return a descriptor of the file at `path`, locked; the caller closes it.

    A lock whose file was removed by its last holder is no lock for the next one, so the file is opened again.
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
    """Return a descriptor of a lock file. A new lock file gets its permissions from the umask."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if make else 0), _MODE)
    except PermissionError as exc:
        if make and not os.path.exists(path):
            raise  # the directory is the reason
        with contextlib.suppress(OSError):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # another user's: enough to lock it on a local disk
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
