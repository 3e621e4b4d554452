"""A local disk as a store's ground: what is needed of it beyond fsspec."""

import contextlib
import errno
import fcntl
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from ocispec.errors import Busy
from storage.errors import translated
from storage.held import Held
from storage.layout import TEMPORARY

T = TypeVar("T")
R = TypeVar("R")
_READ_ONLY = 0o444
_MOMENT = timedelta(minutes=1)


class Disk:
    """A local disk: advisory locks (flock) that a crash releases, fsync, atomic rename. Raises OSError, untranslated.

    What every blob goes through asks the system for no more than it needs: with many threads each call may cost a change of
    threads, and for small blobs these are most of the cost (docs/performance.md).
    """

    locks = True

    def __init__(self, fs: Any) -> None:
        self.fs = fs

    def translated(self, what: str) -> AbstractContextManager[None]:
        """Have what this disk raises be errors of ours."""
        return translated(what)

    def each(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """What `work` gives for each item, in their order; one after the other, since threads cost more than a disk does."""
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

    def append(self, path: str) -> Held:
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

    def write_back(self, held: Held, start: int, end: int) -> None:
        """Begin to make these bytes durable. A hint: `publish` alone promises it."""
        # On Linux this starts writing dirty pages and waits for none, so that fsync finds little left to do: a fetch of 1 GiB
        # takes a quarter less time (docs/performance.md).
        os.posix_fadvise(held.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)

    def settle(self, held: Held) -> int:
        """Make a file from `append` durable; how many bytes it has."""
        held.sync()
        if (size := held.size()) is None:  # whoever removed it let a stranger in, whose bytes are not ours to publish
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), held.path)
        return size

    def publish(self, held: Held, target: str) -> None:
        """Make a file that is durable visible under `target` at once, read-only; its writer still holds it."""
        try:
            os.replace(held.path, target)
        except FileNotFoundError:
            self._make_parent(target)
            os.replace(held.path, target)
        os.fchmod(held.fileno(), _READ_ONLY)  # not earlier: after a failed rename its owner could not open it to go on
        _sync_directory(os.path.dirname(target))

    def move(self, path: str, target: str) -> None:
        """Take a file out of sight at once, to where it can be looked at."""
        self._make_parent(target)
        os.replace(path, target)
        _sync_directory(os.path.dirname(path))

    @contextmanager
    def locked(self, path: str, *, shared: bool) -> Iterator[None]:
        """Hold a named lock, against every process of this machine that asks for it exclusively or, if not shared, at all.

        Where there is no directory for it, there is nothing to keep either.
        """
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            yield
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def abandoned(self, path: str, *, age: timedelta) -> bool:
        """Whether nobody holds this lock any more; what is younger than a moment may not have come to it yet."""
        if age < _MOMENT:
            return False
        try:
            with open(path, "rb") as file:
                fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return True
        except BlockingIOError:
            return False
        return True

    def touch(self, path: str) -> None:
        """Have a file count as new."""
        os.utime(path)

    def _hold(self, path: str) -> Held:
        try:
            return Held(path)
        except FileNotFoundError:
            self._make_parent(path)
            return Held(path)

    def _make_parent(self, path: str) -> None:
        parent = os.path.dirname(path)
        if not os.path.isdir(parent):
            self._make_parent(parent)
            self.fs.makedirs(parent, exist_ok=True)
            _sync_directory(os.path.dirname(parent))


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
