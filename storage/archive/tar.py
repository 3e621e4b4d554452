"""Tar streams, written and read from front to back (POSIX.1-2001, pax interchange format)."""

import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Self

from ocispec.errors import Corrupt, InvalidInput
from storage.errors import translated

END = bytes(2 * tarfile.BLOCKSIZE)
"""What ends a tar stream. Without it a stream is cut short."""

_PIECE_BYTES = 1024 * 1024
# Names and attributes that do not fit into a header come in an entry of their own, which is read into memory; several of them
# may precede a header, and tarfile keeps all.
_MAX_EXTENSION_BYTES = 64 * 1024
_EXTENSIONS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
# Beside its own errors, tarfile lets through whatever its parsing of a damaged header trips over.
_DAMAGED = (tarfile.TarError, EOFError, ArithmeticError, LookupError, RecursionError, ValueError, zlib.error, lzma.LZMAError)


def write(file: IO[bytes], name: str, *, size: int, pieces: Iterable[bytes]) -> None:
    """Append an entry whose bytes depend on these arguments alone: no time, no owner. `END` has to follow the last one."""
    header = tarfile.TarInfo(name)
    header.size = size
    file.write(header.tobuf(tarfile.PAX_FORMAT))
    file.writelines(pieces)
    file.write(bytes(-size % tarfile.BLOCKSIZE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file, or a link to the entry `target`. Names are normalised, as in `a/b` for `./a//b`; they may lead anywhere."""

    name: str
    size: int
    target: str | None
    pieces: Iterator[bytes]
    """The bytes of a file, to be read before the next entry."""


def read(file: IO[bytes], *, source: str) -> Iterator[Entry]:
    """The files and links of a tar stream, plain or compressed with gzip, bzip2 or xz; `source` names it in errors.

    Raises:
        InvalidInput: no tar stream.
        Corrupt: the stream is damaged or ends early.
        Denied, Unavailable: it cannot be read.
    """
    with _open(file, source) as stream:
        while (header := _next(stream, source)) is not None:
            if (header.isreg() and not header.issparse()) or header.issym() or header.islnk():
                yield _entry(stream, header, source)


class _Header(tarfile.TarInfo):
    """A header that is refused where tarfile takes a damaged one for the end, or reads any amount into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as exc:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the true end
            raise tarfile.ReadError(str(exc)) from exc
        if header.size < 0 or (header.type in _EXTENSIONS and header.size > _MAX_EXTENSION_BYTES):
            raise tarfile.ReadError(f"a header says {header.size} bytes")
        return header


def _open(file: IO[bytes], source: str) -> tarfile.TarFile:
    with translated(f"{source}: reading"):
        try:
            return tarfile.open(fileobj=file, mode="r|*", bufsize=_PIECE_BYTES, tarinfo=_Header)
        except _DAMAGED as exc:
            raise InvalidInput(f"{source}: expected a tar archive, plain or compressed with gzip, bzip2 or xz ({exc})") from exc


def _next(stream: tarfile.TarFile, source: str) -> tarfile.TarInfo | None:
    with _reading(source):
        header = stream.next()
    # It would remember all there were.
    stream.members.clear()  # type: ignore[attr-defined]
    stream.pax_headers = {}
    return header


def _entry(stream: tarfile.TarFile, header: tarfile.TarInfo, source: str) -> Entry:
    target = None
    if header.islnk():
        target = posixpath.normpath(header.linkname)
    elif header.issym():
        target = posixpath.normpath(posixpath.join(posixpath.dirname(header.name), header.linkname))
    name = posixpath.normpath(header.name)
    return Entry(name=name, size=header.size, target=target, pieces=_pieces(stream, header, source))


def _pieces(stream: tarfile.TarFile, header: tarfile.TarInfo, source: str) -> Iterator[bytes]:
    content = stream.extractfile(header) if header.isreg() else None
    while content is not None:
        with _reading(source):
            piece = content.read(_PIECE_BYTES)
        if not piece:
            return
        yield piece


@contextmanager
def _reading(source: str) -> Iterator[None]:
    with translated(f"{source}: reading"):
        try:
            yield
        except _DAMAGED as exc:
            raise Corrupt(f"{source}: damaged or cut short ({exc}); get it again") from exc
