"""The headers of a layer's tar archive, in POSIX's pax and ustar, GNU's and the old format.

The standard library parses them. Here is what it leaves open: memory is bounded whatever a header claims, an archive that
breaks off is an error, and nothing is read twice. What a header means is left to `storage.unpack.entries`.
"""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from tarfile import BLOCKSIZE, EmptyHeaderError, EOFHeaderError, HeaderError, ReadError  # type: ignore[attr-defined] # typeshed
from typing import IO, Self, cast

from ocispec.errors import Corrupt, DistError
from storage.unpack.layers import LayerStream

# All headers of one entry, such as long names and extended attributes. Go's reader, on which other engines build, takes at
# most 1 MiB for each of them.
_HEADER_BYTES = 4 * 1024 * 1024
# Where a header has its name and the mark of its format.
_NAME, _MAGIC = slice(0, 100), slice(257, 265)


def read_headers(stream: LayerStream) -> Iterator[tarfile.TarInfo]:
    """The headers, in order. Between two the caller may read the content of the first, from `stream` itself.

    Raises:
        Corrupt: no tar archive, or one that breaks off. An empty stream is an archive without entries.
    """
    headers = _Headers(stream)
    with _damage_named(stream):
        archive = tarfile.TarFile(
            fileobj=cast("IO[bytes]", headers), tarinfo=_Header, encoding="utf-8", errors="surrogateescape"
        )
    while header := _next(archive, stream):
        yield header
        headers.start_entry()


def _next(archive: tarfile.TarFile, stream: LayerStream) -> tarfile.TarInfo | None:
    archive.members = []  # type: ignore[attr-defined] # or it keeps every header of the layer
    with _damage_named(stream):
        return archive.next()


@contextmanager
def _damage_named(stream: LayerStream) -> Iterator[None]:
    """The library says TarError of what it foresees; a header made to deceive it gets further."""
    try:
        yield
    except DistError:
        raise
    except (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError) as exc:
        raise Corrupt(f"{stream}: no whole tar archive at byte {stream.offset} ({exc}); build the image again") from exc


class _Headers:
    """What the library reads of a layer: forward only, and for one entry no more than memory should hold."""

    def __init__(self, stream: LayerStream) -> None:
        self._stream = stream
        self.tell = lambda: stream.offset
        self.start_entry()

    def start_entry(self) -> None:
        """Allow the headers of one more entry."""
        self._left = _HEADER_BYTES

    def read(self, size: int) -> bytes:
        """The next bytes of a header."""
        if not 0 <= size <= self._left:
            raise tarfile.ReadError(f"headers of an entry beyond {_HEADER_BYTES} bytes")
        self._left -= size
        return self._stream.read(size)

    def seek(self, offset: int) -> None:
        """Pass over content that nobody read."""
        if offset < self._stream.offset:
            raise tarfile.ReadError(f"a size leads back to byte {offset}")
        for _ in self._stream.pieces(offset - self._stream.offset):
            pass


class _Header(tarfile.TarInfo):
    """A header as the library parses it, except where it would pass over damage or misread a name."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:  # the library's name for it
        try:
            return super().fromtarfile(tarfile)
        except EOFHeaderError:
            if any(tarfile.fileobj.read(BLOCKSIZE)):
                raise ReadError("a block of zeros inside") from None
            raise
        except EmptyHeaderError as exc:  # no end at all: not rare, and nothing is missing
            raise EOFHeaderError(str(exc)) from None
        except HeaderError as exc:  # behind the first entry the library takes it for the end
            raise ReadError(str(exc)) from exc

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if buf[_MAGIC] == tarfile.GNU_MAGIC and header.type not in tarfile.GNU_TYPES:
            # GNU keeps two times where POSIX keeps the beginning of a long name.
            header.name = bytes(buf[_NAME]).partition(b"\0")[0].decode(encoding, errors)
        return header
