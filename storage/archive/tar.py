"""Writes and reads the tar streams of archives from front to back (POSIX.1-2001, pax interchange format).

`storage.tarreader` parses the headers. This module adds compression, limits for names and normalised entries.
"""

import bz2
import gzip
import io
import lzma
import os
import posixpath
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, TypeAlias, cast

from prefect_dist.ocispec.errors import Corrupt, DistError, InvalidInput
from prefect_dist.storage.errors import translate_errors
from prefect_dist.storage.tarreader import ForwardStream, read_headers

END = bytes(2 * tarfile.BLOCKSIZE)
"""The end of a tar stream. A stream without these bytes is incomplete."""

_PIECE_BYTES = 1024 * 1024
_NAME_BYTES = 4095  # Linux's limit for a path
# The header of an xz stream selects its window, which needs memory: 65 MiB for `xz -9`, up to 4 GiB for other settings.
_XZ_BYTES = 128 * 1024 * 1024
_Buffered: TypeAlias = "io.BufferedReader[Any]"
_DAMAGED = (tarfile.TarError, EOFError, ValueError, zlib.error, lzma.LZMAError, OSError)


def write(file: IO[bytes], name: str, *, size: int, pieces: Iterable[bytes]) -> None:
    """Append an entry that depends only on the arguments: it has no time and no owner. `END` must follow the last entry."""
    header = tarfile.TarInfo(name)
    header.size = size
    file.write(header.tobuf(tarfile.PAX_FORMAT))
    file.writelines(pieces)
    file.write(bytes(-size % tarfile.BLOCKSIZE))


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveEntry:
    """A file, or a link to the entry `target`. Names are normalised (`a/b` for `./a//b`) but may point anywhere.

    `offset` is the position of the content in the uncompressed archive. `pieces` yields the content of a file, and must be
    read before the next entry.
    """

    name: str
    size: int
    offset: int
    target: str | None
    pieces: Iterator[bytes]


def read(file: IO[bytes], *, source: str) -> Iterator[ArchiveEntry]:
    """Yield the files and links of a tar stream, uncompressed or compressed with gzip, bzip2 or xz.

    `source` describes the stream in errors.

    Raises:
        InvalidInput: not a tar stream.
        Corrupt: the stream is damaged, ends early, or has headers beyond the reader's limits.
        Denied, Unavailable: the stream cannot be read.
    """
    yield from _read_entries(_TarStream(_Input(file, source)), source)


def locate(file: IO[bytes], *, source: str) -> Iterator[ArchiveEntry]:
    """Yield the files and links of an uncompressed archive in a file that can seek. Content is skipped without reading it.

    Raises:
        InvalidInput, Corrupt, Denied, Unavailable: see `read`.
    """
    stream = _SeekableStream(file, source)
    for entry in _read_entries(stream, source):
        yield entry
        stream.seek(entry.offset + entry.size + -entry.size % tarfile.BLOCKSIZE)


def is_compressed(start: bytes) -> bool:
    """Return True if a file that begins with the bytes `start` is compressed with gzip, bzip2 or xz."""
    return any(start.startswith(magic) for magic in _DECOMPRESSORS)


def decompress(file: IO[bytes], *, source: str) -> Iterator[bytes]:
    """Yield the uncompressed bytes of an archive in pieces of at most 1 MiB.

    Raises:
        Corrupt, Denied, Unavailable: see `read`.
    """
    stream = _TarStream(_Input(file, source))
    while piece := _read_piece(stream, _PIECE_BYTES, source):
        yield piece


def _read_entries(stream: ForwardStream, source: str) -> Iterator[ArchiveEntry]:
    headers = read_headers(stream, needs_end=True)
    has_begun = False
    while (header := _next_header(headers, source, has_begun=has_begun)) is not None:
        has_begun = True
        if (header.isreg() and header.sparse is None) or header.issym() or header.islnk():
            _check_length(header, source)
            yield _entry(stream, header, source)


def _next_header(headers: Iterator[tarfile.TarInfo], source: str, *, has_begun: bool) -> tarfile.TarInfo | None:
    try:
        return next(headers, None)
    except DistError:
        raise
    except _DAMAGED as exc:
        if has_begun:
            raise _damage(source, exc) from exc
        raise InvalidInput(
            f"expected a tar archive, plain or compressed with gzip, bzip2 or xz ({exc})", subject=source
        ) from exc


def _entry(stream: ForwardStream, header: tarfile.TarInfo, source: str) -> ArchiveEntry:
    target = None
    if header.islnk():
        target = posixpath.normpath(header.linkname)
    elif header.issym():
        target = posixpath.normpath(posixpath.join(posixpath.dirname(header.name), header.linkname))
    size = header.size if header.isreg() else 0
    return ArchiveEntry(
        name=posixpath.normpath(header.name),
        size=size,
        offset=stream.offset,
        target=target,
        pieces=_pieces(stream, size, source),
    )


def _check_length(header: tarfile.TarInfo, source: str) -> None:
    """Refuse names and link targets that no file system accepts, since they are kept in memory until the end of the archive.

    Raises:
        InvalidInput: a name or target is too long.
    """
    longest = max(len(os.fsencode(text)) for text in (header.name, header.linkname))
    if longest > _NAME_BYTES:
        raise InvalidInput(f"expected names and link targets of at most {_NAME_BYTES} bytes, got {longest}", subject=source)


def _pieces(stream: ForwardStream, size: int, source: str) -> Iterator[bytes]:
    while size:
        piece = _read_piece(stream, min(size, _PIECE_BYTES), source)
        if not piece:
            raise _damage(source, EOFError("unexpected end of data"))
        size -= len(piece)
        yield piece


def _read_piece(stream: ForwardStream, size: int, source: str) -> bytes:
    try:
        return stream.read(size)
    except DistError:
        raise
    except _DAMAGED as exc:
        raise _damage(source, exc) from exc


def _damage(source: str, cause: Exception) -> Corrupt:
    return Corrupt(f"damaged or incomplete ({cause}); copy or create the archive again", subject=source)


class _Input(io.RawIOBase):
    """The bytes of an archive as a file. `magic` has the first bytes, which `read` returns again.

    Errors of the file are translated here, so a later OSError can only come from a decompressor.
    """

    def __init__(self, file: IO[bytes], source: str) -> None:
        self._file, self._source = file, source
        self._peeked = b""
        while len(self._peeked) < _MAGIC_BYTES and (data := self._read(_MAGIC_BYTES - len(self._peeked))):
            self._peeked += data
        self.magic = self._peeked

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = len(buffer)
        if self._peeked:
            data, self._peeked = self._peeked[:size], self._peeked[size:]
        else:
            data = self._read(size)
        buffer[: len(data)] = data
        return len(data)

    def _read(self, size: int) -> bytes:
        with translate_errors(f"{self._source}: reading"):
            return self._file.read(size)


class _Xz(io.RawIOBase):
    """The uncompressed bytes of consecutive xz streams, with bounded memory."""

    def __init__(self, compressed: _Buffered) -> None:
        self._compressed = compressed
        self._decompressor = lzma.LZMADecompressor(memlimit=_XZ_BYTES)
        self._next = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data and (not self._decompressor.eof or self._starts_next()):
            compressed, self._next = self._next, b""
            if not compressed and self._decompressor.needs_input:
                compressed = self._compressed.read1()
                if not compressed:
                    raise EOFError("compressed data ended before the end of its stream")
            data = self._decompressor.decompress(compressed, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _starts_next(self) -> bool:
        """Begin the next xz stream; return False at the end. Zeros between streams are padding."""
        rest = self._decompressor.unused_data.lstrip(b"\0")
        while not rest:
            if not (compressed := self._compressed.read1()):
                return False
            rest = compressed.lstrip(b"\0")
        self._decompressor, self._next = lzma.LZMADecompressor(memlimit=_XZ_BYTES), rest
        return True


# Each decompressor returns only the requested number of uncompressed bytes, even for highly compressed input.
_DECOMPRESSORS: Mapping[bytes, Callable[[_Buffered], IO[bytes]]] = {
    b"\x1f\x8b\x08": lambda raw: cast("IO[bytes]", gzip.GzipFile(fileobj=raw)),
    b"BZh": lambda raw: cast("IO[bytes]", bz2.BZ2File(raw)),
    b"\xfd7zXZ\0": lambda raw: cast("IO[bytes]", io.BufferedReader(_Xz(raw), _PIECE_BYTES)),
    b"\x5d\0\0\x80": lambda raw: cast("IO[bytes]", io.BufferedReader(_Xz(raw), _PIECE_BYTES)),
}
_MAGIC_BYTES = max(map(len, _DECOMPRESSORS))


class _TarStream:
    """The uncompressed bytes of an archive. `offset` counts the bytes that have been read."""

    def __init__(self, source: _Input) -> None:
        self.offset = 0
        raw: _Buffered = io.BufferedReader(source, _PIECE_BYTES)
        opened = [opener(raw) for magic, opener in _DECOMPRESSORS.items() if source.magic.startswith(magic)]
        self._bytes: IO[bytes] = opened[0] if opened else cast("IO[bytes]", raw)

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes; fewer only at the end."""
        data = self._bytes.read(size)
        self.offset += len(data)
        return data


class _SeekableStream:
    """The bytes of an uncompressed archive in a file that can seek. `offset` is the position in the file."""

    def __init__(self, file: IO[bytes], source: str) -> None:
        self._file, self._source = file, source
        self.offset = 0
        with translate_errors(f"{source}: reading"):
            self._end = file.seek(0, os.SEEK_END)
            file.seek(0)

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes; fewer only at the end."""
        if self.offset >= self._end:
            return b""
        with translate_errors(f"{self._source}: reading"):
            data = self._file.read(size)
        self.offset += len(data)
        return data

    def seek(self, offset: int) -> None:
        """Continue at `offset`, which may be beyond the end of the file."""
        if self.offset < offset < self._end:
            with translate_errors(f"{self._source}: reading"):
                self._file.seek(offset)
        self.offset = offset
