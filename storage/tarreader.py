"""A reader for untrusted tar archives: POSIX pax and ustar, GNU and the old format, read from front to back.

The standard library parses single header blocks. Its handling of extension headers is not used, since it recurses, keeps global
headers forever and follows chains of sparse maps without limit. This reader limits memory and work per entry and per archive:

- the headers of one entry together have at most `_ENTRY_BYTES` bytes and `_ENTRY_RECORDS` records and extents;
- an archive has at most `_ARCHIVE_RECORDS` records and extents, plus `_RECORDS_EARNED` for each entry.

Global pax headers have no effect, as in containerd and Docker. They are read within the same limits and dropped.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from tarfile import BLOCKSIZE, ReadError
from typing import Protocol

_PIECE_BYTES = 1024 * 1024
# For comparison: Go's reader, which other engines use, accepts at most 1 MiB for each header.
_ENTRY_BYTES = 4 * 1024 * 1024
_ENTRY_RECORDS = 100_000
_ARCHIVE_RECORDS = 1_000_000
_RECORDS_EARNED = 100

_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
# These types have no content, even if the size field is not 0.
_WITHOUT_CONTENT = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
_NAME, _TYPE, _MAGIC, _SPARSE_MORE = slice(0, 100), slice(156, 157), slice(257, 265), 482
_SPARSE_MAP, _SPARSE_REAL_SIZE = slice(386, 482), slice(483, 495)
_MAP_BLOCK, _MAP_BLOCK_MORE = slice(0, 504), 504
_NUMBER_BYTES = 12
_NUMBERS = 2**63
_NUMBER = re.compile(r"-?[0-9]{1,20}")
_RECORD_LENGTH = re.compile(rb"[0-9]{1,9} ")
_SPARSE_OFFSET, _SPARSE_BYTES = "GNU.sparse.offset", "GNU.sparse.numbytes"

Extents = list[tuple[int, int]]


class ForwardStream(Protocol):
    """Uncompressed bytes that are read once, from front to back."""

    @property
    def offset(self) -> int:
        """The number of bytes that have been read."""

    def read(self, size: int, /) -> bytes:
        """Return the next `size` bytes; fewer only at the end."""


@dataclass(slots=True)
class _Extensions:
    """The data of the extension headers that precede a header."""

    records: dict[str, str] = field(default_factory=dict)
    sparse: list[int] = field(default_factory=list)
    name: str | None = None
    target: str | None = None
    is_empty: bool = True


def read_headers(stream: ForwardStream, *, needs_end: bool) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of an archive. The caller may read an entry's content from `stream` before it requests the next header.

    The `size` of a header is that of the file including its holes, `sparse` has its extents, and `pax_headers` its own pax
    records. With `needs_end`, an archive without a final block of zeros is an error.

    Raises:
        tarfile.TarError, ValueError: not a tar archive, a damaged archive, or an archive beyond the limits.
    """
    reader = _HeaderReader(stream, needs_end=needs_end)
    while (header := reader.next_header()) is not None:
        yield header
        reader.skip_content()


class _HeaderReader:
    def __init__(self, stream: ForwardStream, *, needs_end: bool) -> None:
        self._stream, self._needs_end = stream, needs_end
        self._archive_records = _ARCHIVE_RECORDS
        self._content_end = 0
        self._bytes_left = self._records_left = 0

    def next_header(self) -> tarfile.TarInfo | None:
        """Return the next header with its extensions applied; None at the end."""
        self._bytes_left, self._records_left = _ENTRY_BYTES, _ENTRY_RECORDS
        self._archive_records += _RECORDS_EARNED
        extensions = _Extensions()
        while True:
            block = self._read(BLOCKSIZE)
            if self._is_end(block, extensions):
                return None
            header = _parse_block(block)
            if header.type in _PAX:
                extensions.records, extensions.sparse = self._read_records(header.size)
            elif header.type == tarfile.XGLTYPE:
                self._read_padded(header.size)
            elif header.type == tarfile.GNUTYPE_LONGNAME:
                extensions.name = self._read_name(header.size)
            elif header.type == tarfile.GNUTYPE_LONGLINK:
                extensions.target = self._read_name(header.size)
            else:
                self._complete(header, extensions, block)
                return header
            extensions.is_empty = False

    def skip_content(self) -> None:
        """Skip the unread content of the current entry and its padding."""
        left = self._content_end - self._stream.offset
        if left < 0:
            raise ReadError(f"a negative size leads back to byte {self._content_end}")
        while left:
            piece = self._stream.read(min(left, _PIECE_BYTES))
            if not piece:
                raise ReadError("unexpected end of data")
            left -= len(piece)

    def _read(self, size: int) -> bytes:
        """Read a part of the headers of one entry, within the limit for these headers."""
        if not 0 <= size <= self._bytes_left:
            raise ReadError(f"a header has a size of {size} bytes; expected at most {_ENTRY_BYTES} in the headers of one entry")
        self._bytes_left -= size
        return self._stream.read(size)

    def _spend(self, records: int) -> None:
        self._records_left -= records
        self._archive_records -= records
        if self._records_left < 0:
            raise ReadError(f"an entry has more than {_ENTRY_RECORDS} pax records and extents")
        if self._archive_records < 0:
            limit = f"{_ARCHIVE_RECORDS} pax records and extents, plus {_RECORDS_EARNED} for each entry"
            raise ReadError(f"the archive has more than {limit}")

    def _is_end(self, block: bytes, extensions: _Extensions) -> bool:
        if any(block):
            return False
        if not extensions.is_empty:
            raise ReadError("an extension header is not followed by an entry")
        if not block and self._needs_end:
            raise ReadError("empty header")
        if block and any(self._read(BLOCKSIZE)):
            raise ReadError("a block of zeros is not followed by a second block of zeros")
        return not block or len(block) == BLOCKSIZE

    def _read_padded(self, size: int) -> bytes:
        data = self._read(_padded_size(size))
        if len(data) != _padded_size(size):
            raise ReadError("unexpected end of data")
        return data[:size]

    def _read_name(self, size: int) -> str:
        return _decode(self._read_padded(size).partition(b"\0")[0])

    def _read_records(self, size: int) -> tuple[dict[str, str], list[int]]:
        """Return the records of a pax header, and the numbers of a sparse map in GNU's format 0.0, which repeats its keys."""
        data = self._read_padded(size)
        records, sparse, at = dict[str, str](), list[int](), 0
        while at < len(data):
            self._spend(1)
            match = _RECORD_LENGTH.match(data, at)
            end = at + int(match[0]) if match else 0
            if not match or end > len(data) or end <= match.end() or data[end - 1 : end] != b"\n":
                raise ReadError("a pax record is damaged")
            key, equals, value = data[match.end() : end - 1].partition(b"=")
            if not key or not equals:
                raise ReadError("a pax record has no key")
            if (name := _decode(key)) in (_SPARSE_OFFSET, _SPARSE_BYTES):
                if (name == _SPARSE_BYTES) != len(sparse) % 2:
                    raise ReadError("the offsets and sizes of a sparse map do not alternate")
                sparse.append(_number(_decode(value)))
            else:
                records[name] = _decode(value)
            at = end
        return records, sparse

    def _complete(self, header: tarfile.TarInfo, extensions: _Extensions, block: bytes) -> None:
        """Apply the extensions to a header, and compute the end of its content."""
        records = extensions.records
        header.pax_headers = records
        name = extensions.name or records.get("GNU.sparse.name") or records.get("path")
        header.linkname = extensions.target or records.get("linkpath") or header.linkname
        header.uid, header.gid = _numeric(records, "uid", header.uid), _numeric(records, "gid", header.gid)
        if block[_TYPE] == tarfile.AREGTYPE:  # the old format has no type for directories; their names end with a slash
            is_directory = (name or _raw_name(block)).endswith("/")
            header.type = tarfile.DIRTYPE if is_directory else tarfile.REGTYPE
        header.name = name or header.name
        stored = 0 if header.type in _WITHOUT_CONTENT else _numeric(records, "size", _check_number(header.size))
        if stored < 0:
            raise ReadError(f"a header has a size of {stored} bytes")
        header.size, end = stored, self._stream.offset + _padded_size(stored)
        if header.type == tarfile.GNUTYPE_SPARSE:
            header.size = _field(block[_SPARSE_REAL_SIZE])
            header.sparse = _extents(self._read_old_map(block))  # type: ignore[assignment] # typeshed: bytes
            end = self._stream.offset + _padded_size(stored)
        elif header.isreg() and (numbers := self._sparse_map(records, extensions.sparse)) is not None:
            header.size = _numeric(records, "GNU.sparse.realsize", _numeric(records, "GNU.sparse.size", stored))
            header.sparse = _extents(numbers)  # type: ignore[assignment] # typeshed: bytes
        self._content_end = end

    def _sparse_map(self, records: dict[str, str], repeated: list[int]) -> list[int] | None:
        """Return alternating offsets and sizes from one of GNU's sparse formats in pax headers; None without a map."""
        if (text := records.get("GNU.sparse.map")) is not None:
            self._spend(text.count(","))
            return [_number(part) for part in text.split(",")] if text else []
        if (records.get("GNU.sparse.major"), records.get("GNU.sparse.minor")) == ("1", "0"):
            return self._read_new_map()
        return repeated if "GNU.sparse.size" in records else None

    def _read_new_map(self) -> list[int]:
        """Read a sparse map in format 1.0: decimal lines before the content, with their count in the first line."""
        blocks = [self._read(BLOCKSIZE)]
        if (count := 2 * _number(_decode(blocks[0].partition(b"\n")[0]))) < 0:
            raise ReadError("a sparse map has a negative length")
        self._spend(count)
        lines = blocks[0].count(b"\n")
        while lines < count + 1:
            blocks.append(self._read(BLOCKSIZE))
            if not blocks[-1]:
                raise ReadError("unexpected end of data")
            lines += blocks[-1].count(b"\n")
        numbers = b"".join(blocks).split(b"\n", count + 1)[1 : count + 1]
        return [_number(_decode(number)) for number in numbers]

    def _read_old_map(self, block: bytes) -> list[int]:
        """Read a sparse map in GNU's old format: the first part in the header, the rest in the blocks after it."""
        numbers = _fields(block[_SPARSE_MAP])
        has_more = bool(block[_SPARSE_MORE])
        while has_more:
            block = self._read(BLOCKSIZE)
            if len(block) != BLOCKSIZE:
                raise ReadError("unexpected end of data")
            found = _fields(block[_MAP_BLOCK])
            self._spend(max(1, len(found)))
            numbers += found
            has_more = bool(block[_MAP_BLOCK_MORE])
        return numbers


def _parse_block(block: bytes) -> tarfile.TarInfo:
    header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    if block[_MAGIC] == tarfile.GNU_MAGIC and header.type not in tarfile.GNU_TYPES:
        # The GNU format has two times where POSIX has the prefix of a long name.
        header.name = _raw_name(block)
    return header


def _raw_name(block: bytes) -> str:
    """Return the name in a header unchanged. The library would remove a final slash of a directory's name."""
    return _decode(block[_NAME].partition(b"\0")[0])


def _fields(data: bytes) -> list[int]:
    """Return the offsets and sizes in a part of a map in GNU's old format. An empty field ends the map."""
    numbers = list[int]()
    for at in range(0, len(data), 2 * _NUMBER_BYTES):
        offset, size = data[at : at + _NUMBER_BYTES], data[at + _NUMBER_BYTES : at + 2 * _NUMBER_BYTES]
        if not offset[0] or not size[0]:
            break
        numbers += (_field(offset), _field(size))
    return numbers


def _field(data: bytes) -> int:
    """Return the number in a header field: octal digits, or GNU's binary form."""
    if data[0] & 0x80:
        return _check_number(int.from_bytes(bytes((data[0] & 0x7F,)) + data[1:], "big"))
    return int(data.strip(b" \0") or b"0", 8)


def _extents(numbers: list[int]) -> Extents:
    if len(numbers) % 2:
        raise ReadError("a sparse map ends with an offset without a size")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _numeric(records: dict[str, str], key: str, default: int) -> int:
    text = records.get(key)
    return _number(text) if text else default


def _number(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise ReadError(f"expected a decimal number, got {text[:40]!r}")
    return _check_number(int(text))


def _check_number(number: int) -> int:
    """Return the number if it is a valid file offset on Linux.

    Raises:
        ReadError: the number has more than 63 bits.
    """
    if not -_NUMBERS < number < _NUMBERS:
        raise ReadError(f"expected a number below 2^63, got {number}")
    return number


def _decode(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _padded_size(size: int) -> int:
    return size + -size % BLOCKSIZE
