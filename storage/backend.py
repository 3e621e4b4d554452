"""What the store needs of a file system beyond fsspec, and which file systems can give it.

fsspec reads, lists and deletes everywhere in one way. Making bytes durable, keeping a second writer out and making a file
visible at once is different on each kind of system, so each kind has a class here and the table `_BACKENDS` names them.
Whether a system can do something is written there, not found out by exception.
"""

import contextlib
import errno
import fcntl
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, Protocol

from fsspec.core import url_to_fs

from ocispec.errors import Busy, InvalidInput, Unsupported

_READ_ONLY = 0o444


class Backend(Protocol):
    """The operations that differ. Paths are fsspec's, without protocol. All raise OSError; the store translates."""

    fs: Any

    def put(self, path: str, data: bytes) -> None:
        """Replace a small object: readers see the old or the new bytes, also after a power loss."""

    def append(self, path: str) -> IO[bytes]:
        """The file at `path`, made if need be, open at its end, for this writer alone.

        Raises:
            Busy: another writer, of this process or another, has it.
        """

    def release(self, file: IO[bytes], path: str) -> None:
        """Close a file from `append` and let the next writer in."""

    def write_back(self, file: IO[bytes], start: int, end: int) -> None:
        """Begin to make these bytes durable, if that can be done meanwhile. A hint: `publish` alone promises it."""

    def publish(self, file: IO[bytes], path: str, target: str) -> None:
        """Make a file from `append` durable, then visible under `target` at once, read-only; its writer still holds it."""

    def exclusive(self, path: str) -> contextlib.AbstractContextManager[None]:
        """Hold a named lock against every other process that asks for it; it waits."""


class _Disk:
    """A local disk: advisory locks (flock) that a crash releases, fsync, atomic rename."""

    def __init__(self, fs: Any) -> None:
        self.fs = fs

    def put(self, path: str, data: bytes) -> None:
        temporary = f"{path}.{uuid.uuid4().hex}.new"
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

    def append(self, path: str) -> IO[bytes]:
        while True:
            file: IO[bytes] = self._open(path)
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_at(file, path):
                    return file
            except BlockingIOError:
                file.close()
                raise Busy(f"{path}: another writer has it") from None
            except BaseException:
                file.close()
                raise
            file.close()  # the writer before us published or dropped the file between our open and our lock

    def release(self, file: IO[bytes], path: str) -> None:  # noqa: ARG002 - the lock goes with the file
        file.close()

    def write_back(self, file: IO[bytes], start: int, end: int) -> None:
        # On Linux this starts writing dirty pages and waits for none, so that fsync finds little left to do: a fetch of 1 GiB
        # takes a quarter less time (docs/performance.md).
        os.posix_fadvise(file.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)

    def publish(self, file: IO[bytes], path: str, target: str) -> None:
        file.flush()
        os.fsync(file.fileno())
        self._make_parent(target)
        if not self._is_at(file, path):  # whoever removed it let a stranger in, whose bytes are not ours to publish
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        os.replace(path, target)
        os.fchmod(file.fileno(), _READ_ONLY)  # not earlier: after a failed rename its owner could not open it to go on
        _sync_directory(os.path.dirname(target))

    @contextmanager
    def exclusive(self, path: str) -> Iterator[None]:
        self._make_parent(path)
        with self.fs.open(path, "ab") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
            yield

    def _open(self, path: str) -> Any:
        try:
            return self.fs.open(path, "ab")
        except FileNotFoundError:
            self._make_parent(path)
            return self.fs.open(path, "ab")

    @staticmethod
    def _is_at(file: IO[bytes], path: str) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
        except FileNotFoundError:
            return False

    def _make_parent(self, path: str) -> None:
        parent = os.path.dirname(path)
        if not os.path.isdir(parent):
            self._make_parent(parent)
            self.fs.makedirs(parent, exist_ok=True)
            _sync_directory(os.path.dirname(parent))


class _Memory:
    """fsspec's memory file system, whose content all stores of this process share: for tests and trials."""

    _held: set[str] = set()  # noqa: RUF012 - shared on purpose, like the file system itself
    _guard = threading.Lock()

    def __init__(self, fs: Any) -> None:
        self.fs = fs

    def put(self, path: str, data: bytes) -> None:
        self.fs.pipe_file(path, data)

    def append(self, path: str) -> IO[bytes]:
        with self._guard:
            if path in self._held:
                raise Busy(f"{path}: another writer has it")
            self._held.add(path)
        try:
            file: IO[bytes] = self.fs.open(path, "ab")
        except BaseException:
            self._let_go(path)
            raise
        return file

    def release(self, file: IO[bytes], path: str) -> None:
        file.close()
        self._let_go(path)

    def write_back(self, file: IO[bytes], start: int, end: int) -> None:
        pass

    def publish(self, file: IO[bytes], path: str, target: str) -> None:  # noqa: ARG002
        self.fs.cp_file(path, target)  # not mv, which takes * and [ in a path for patterns
        self.fs.rm_file(path)

    @contextmanager
    def exclusive(self, path: str) -> Iterator[None]:  # noqa: ARG002 - one lock serves all names
        with self._guard:
            yield

    def _let_go(self, path: str) -> None:
        with self._guard:
            self._held.discard(path)


_BACKENDS: dict[str, Callable[[Any], Backend]] = {"file": _Disk, "memory": _Memory}


def is_there(fs: Any, path: str) -> bool:
    """Whether something has this path. Unlike fsspec's `exists`, a disk that fails is an OSError, not a no."""
    try:
        fs.info(path)
    except FileNotFoundError:
        return False
    return True


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_backend(url: str, options: Mapping[str, Any]) -> tuple[Backend, str]:
    """The backend for an fsspec URL or local path, and the root path in it.

    Raises:
        InvalidInput: an empty URL, or a protocol that fsspec does not know.
        Unsupported: a file system that lacks what a store needs.
    """
    if not url:
        raise InvalidInput("store: the location is empty, expected a path or URL")
    if "::" in url:  # fsspec's chains; it would take the path /a::b for /a
        raise Unsupported(f"store {url}: a location with :: is not supported")
    try:
        fs, root = url_to_fs(url, **options)
    except (ValueError, ImportError, TypeError, AttributeError, OSError) as exc:  # each of fsspec's classes has its own ways
        raise InvalidInput(f"store {url}: {exc}") from exc
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    if protocol not in _BACKENDS:
        raise Unsupported(f"store {url}: {protocol} is not supported, use one of {', '.join(sorted(_BACKENDS))}")
    if protocol == "file" and not os.path.isabs(root):
        raise InvalidInput(f"store {url}: expected an absolute path, got {root} (is there such a user?)")
    return _BACKENDS[protocol](fs), root.rstrip("/")
