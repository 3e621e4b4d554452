"""Random access to the files in a tar archive on the local disk.

The archive is read from front to back once, to locate its entries. The content of an uncompressed archive is skipped, and read
in place later. A compressed archive is decompressed to a temporary file without a name, which vanishes with the process.

The name of an entry is never used as a path on the disk. Links lead only to other entries of the archive.
"""

import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

from prefect_dist.ocispec.errors import Conflict, Corrupt, InvalidInput, NotFound
from prefect_dist.ocispec.image_layout import INDEX, MARKER_NAME
from prefect_dist.storage.archive import layout, tar
from prefect_dist.storage.errors import StoreFull, translate_errors

_PIECE_BYTES = 4 * 1024 * 1024
_MAGIC_BYTES = 8
# The located entries are kept in memory: at most some 50 MiB.
_MAX_ENTRIES = 100_000
_MAX_NAME_BYTES = 16 * 1024 * 1024
_MAX_LINKS = 8  # on the way to one file
_LISTS = (INDEX, layout.DOCKER_LIST)
# A compressed archive may unpack to any size. The temporary file leaves at least this space free for other programs.
_FREE_BYTES = 64 * 1024 * 1024


class Span(NamedTuple):
    """The position and size of the content of an entry, in bytes."""

    offset: int
    size: int


class FileIdentity(NamedTuple):
    """A version of a file: a file that was replaced or changed has another identity."""

    device: int
    inode: int
    size: int
    changed_ns: int


class ArchiveFile:
    """The entries of one archive. Thread-safe. The file stays open, so a replaced file does not change the entries."""

    def __init__(self, path: str, *, at: str, check: Callable[[], None]) -> None:
        """Open the archive and locate its entries. `at` names the archive in errors. `check` raises the error of an abort.

        Raises:
            NotFound: no file exists at `path`.
            InvalidInput: the file is no tar archive, or has too many entries, or has an entry twice.
            Corrupt: the archive is damaged or incomplete.
            StoreFull: a compressed archive does not fit on the disk for temporary files.
            Denied, Unavailable: the file cannot be read.
        """
        self.at, self._check = at, check
        with translate_errors(at):
            file = _open(path, at)
        with file:
            self.identity = identify(file.fileno())
            start = os.pread(file.fileno(), _MAGIC_BYTES, 0)
            with self._decompress(file) if tar.is_compressed(start) else file as plain:
                self._entries = self._locate(plain)
                self._file = os.dup(plain.fileno())
                self._original = os.dup(file.fileno())
        for opened in (self._file, self._original):
            weakref.finalize(self, os.close, opened)
        self._require_unchanged()

    def find(self, name: str) -> Span | None:
        """Return the position of an entry, or of the entry that a link leads to; None without such an entry."""
        found = self._entries.get(name)
        for _ in range(_MAX_LINKS):
            if not isinstance(found, str):
                return found
            found = self._entries.get(found)
        return None

    def follow(self, name: str) -> str:
        """Return the name of the entry that a link leads to; of other entries, the name itself."""
        for _ in range(_MAX_LINKS):
            target = self._entries.get(name)
            if not isinstance(target, str):
                break
            name = target
        return name

    def read(self, span: Span, offset: int = 0) -> Iterator[bytes]:
        """Yield the content of an entry from `offset` on, in pieces of at most 4 MiB.

        Raises:
            Conflict: another program changed the file after it was opened.
            Unavailable: the file cannot be read, or the run was aborted.
        """
        while offset < span.size:
            self._check()
            with translate_errors(f"{self.at}: reading"):
                piece = os.pread(self._file, min(_PIECE_BYTES, span.size - offset), span.offset + offset)
            self._require_unchanged()
            if not piece:
                raise Corrupt("the file became shorter while it was read", subject=self.at)
            offset += len(piece)
            yield piece

    def _require_unchanged(self) -> None:
        if identify(self._original) != self.identity:
            raise Conflict(
                "another program changed the file while it was read; run again when the file is complete", subject=self.at
            )

    def _locate(self, file: IO[bytes]) -> dict[str, Span | str]:
        entries, name_bytes = dict[str, Span | str](), 0
        for entry in tar.locate(file, source=self.at):
            self._check()
            if entry.name not in _LISTS and entry.name != MARKER_NAME and not layout.is_content(entry.name):
                continue
            located = Span(entry.offset, entry.size) if entry.target is None else entry.target
            if (known := entries.get(entry.name)) is not None:
                if _is_same_blob(entry.name, known, located):
                    continue
                raise InvalidInput(f"{entry.name} occurs twice; refused, since tools would disagree about it", subject=self.at)
            name_bytes += len(os.fsencode(entry.name)) + len(os.fsencode(entry.target or ""))
            if len(entries) >= _MAX_ENTRIES or name_bytes > _MAX_NAME_BYTES:
                limits = f"{_MAX_ENTRIES} files and {_MAX_NAME_BYTES} bytes of names"
                raise InvalidInput(
                    f"expected at most {limits}, found more; dist import reads archives of any size", subject=self.at
                )
            entries[entry.name] = located
        return entries

    def _decompress(self, file: IO[bytes]) -> IO[bytes]:
        directory = tempfile.gettempdir()
        what = f"{self.at}: decompressing to {directory}, which $TMPDIR selects"
        with translate_errors(what):
            plain = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes the file
        try:
            for piece in tar.decompress(file, source=self.at):
                self._check()
                _require_space(directory, what)
                with translate_errors(what):
                    plain.write(piece)
            with translate_errors(what):
                plain.flush()
        except BaseException:
            plain.close()
            raise
        return plain


def _require_space(directory: str, what: str) -> None:
    with translate_errors(what):
        free = shutil.disk_usage(directory).free
    if free < _FREE_BYTES:
        raise StoreFull(f"less than {_FREE_BYTES} bytes are free; decompress the archive elsewhere", subject=what)


def identify(file: int | str) -> FileIdentity:
    """Return the identity of an open file or of the file at a path. Raises OSError."""
    found = os.stat(file)  # noqa: PTH116 - also for an open file
    return FileIdentity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _is_same_blob(name: str, one: Span | str, other: Span | str) -> bool:
    """Return True for two entries that can only have the same content, since readers verify the digest in the name."""
    return layout.digest_of(name) is not None and isinstance(one, Span) and isinstance(other, Span) and one.size == other.size


def _open(path: str, at: str) -> IO[bytes]:
    """Open a regular file. A pipe would block, and has no random access."""
    try:
        opened = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 - the caller closes the file
    except FileNotFoundError:
        raise NotFound("no such file", subject=at) from None
    if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
        opened.close()
        raise InvalidInput("expected a regular file; dist import reads archives from pipes and devices", subject=at)
    return opened


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting for the writer of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
