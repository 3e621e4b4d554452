"""The entries of a layer as values that are valid on Linux (image-spec 1.1, layer.md).

`storage.tarreader` reads the archive; `storage.unpack.rootfs` applies the entries to a directory.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

from prefect_dist.ocispec.errors import Corrupt, InvalidInput, Unsupported, quote_text
from prefect_dist.storage.tarreader import read_headers
from prefect_dist.storage.unpack.layers import LayerStream
from prefect_dist.storage.unpack.tree import PATH_BYTES, PATH_NAMES, TreePath

Kind = Literal["file", "directory", "symlink", "link", "fifo", "character", "block"]

_KINDS: dict[bytes, Kind] = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.GNUTYPE_SPARSE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "link",
    tarfile.FIFOTYPE: "fifo",
    tarfile.CHRTYPE: "character",
    tarfile.BLKTYPE: "block",
}
# Linux's limits, and the user or group ID that means "unchanged" to chown(2).
_NAME_BYTES, _NO_ID, _MAX_MAJOR, _MAX_MINOR = 255, 2**32 - 1, 2**12 - 1, 2**20 - 1
_XATTR = "SCHILY.xattr."
# mtime ::= [ "-" ] seconds [ "." fraction ]
_TIME = re.compile(r"(?P<sign>-?)(?P<seconds>[0-9]{1,18})(?:\.(?P<fraction>[0-9]*))?")
_NANO = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """The attributes of an inode. The defaults apply to a directory that no layer describes."""

    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    xattrs: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerEntry:
    """One entry of a layer.

    The content of a file follows in the stream: the bytes of its `extents`, pairs of offset and size, in order. `target` is the
    text of a symbolic link, `source` the path to which a hard link points, `size` the size of a file including its holes.
    """

    name: str
    """The name in the archive, quoted for messages."""
    path: TreePath
    kind: Kind
    attributes: Attributes
    target: bytes = b""
    source: TreePath = ()
    device: int = 0
    size: int = 0
    extents: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def read_entries(stream: LayerStream) -> Iterator[LayerEntry]:
    """Yield the entries of a layer, in order. Content that the caller does not read is skipped. An empty stream has no entries.

    Raises:
        Corrupt: not a tar archive, an incomplete archive, or headers beyond the reader's limits.
        InvalidInput: an impossible entry: a path above the root, or a name or number beyond Linux's limits.
        Unsupported: an entry of a type that images do not have, such as a multi-volume file.
    """
    headers = read_headers(stream, needs_end=False)  # layers without an end are common, and the diff ID covers every byte
    while (header := _next_header(headers, stream)) is not None:
        yield _entry(header, at=f"{stream}: {quote_text(header.name)}")


def _next_header(headers: Iterator[tarfile.TarInfo], stream: LayerStream) -> tarfile.TarInfo | None:
    try:
        return next(headers, None)
    except (tarfile.TarError, ValueError) as exc:
        raise Corrupt(f"damaged tar archive at byte {stream.offset} ({exc}); build the image again", subject=stream) from exc


def _entry(header: tarfile.TarInfo, *, at: str) -> LayerEntry:
    if not (kind := _KINDS.get(header.type)):
        raise Unsupported(f"expected a file, directory, link, fifo or device, got an entry of type {header.type!r}", subject=at)
    path = _path(header.name, at=at)
    if not path and kind != "directory":
        raise InvalidInput(f"expected a directory as the root of the image, got a {kind}", subject=at)
    return LayerEntry(
        name=quote_text(header.name),
        path=path,
        kind=kind,
        attributes=_attributes(header, at=at),
        target=_target(header.linkname, at=at) if kind == "symlink" else b"",
        source=_source(header.linkname, at=at) if kind == "link" else (),
        device=_device(header, at=at) if kind in ("character", "block") else 0,
        size=header.size,
        extents=_extents(header, at=at) if kind == "file" else (),
    )


def _path(name: str, *, at: str) -> TreePath:
    """Return the names of a path from the root down. `.` and `..` are resolved as text, as in container engines written in Go.

    Raises:
        InvalidInput: the path leads above the root, is too long or too deep, or has a name that is too long.
    """
    path: list[bytes] = []
    raw = _raw(name, at=at)
    for part in raw.split(b"/"):
        if len(part) > _NAME_BYTES:
            raise InvalidInput(
                f"expected at most {_NAME_BYTES} bytes in each component of the path, got {len(part)}", subject=at
            )
        if part == b".." and not path:
            raise InvalidInput("the path leads out of the image with ..", subject=at)
        if part == b"..":
            path.pop()
        elif part not in (b"", b"."):
            path.append(part)
    if len(path) > PATH_NAMES:
        raise InvalidInput(f"expected at most {PATH_NAMES} components in the path, got {len(path)}", subject=at)
    return tuple(path)


def _target(text: str, *, at: str) -> bytes:
    if not (raw := _raw(text, at=at)):
        raise InvalidInput("the symbolic link has no target", subject=at)
    return raw


def _source(text: str, *, at: str) -> TreePath:
    at = f"{at}: the hard link to {quote_text(text)}"
    if not (path := _path(text, at=at)):
        raise InvalidInput("expected a file to link to, got the root", subject=at)
    return path


def _device(header: tarfile.TarInfo, *, at: str) -> int:
    if not (0 <= header.devmajor <= _MAX_MAJOR and 0 <= header.devminor <= _MAX_MINOR):
        raise InvalidInput(f"Linux has no device {header.devmajor}:{header.devminor}", subject=at)
    return os.makedev(header.devmajor, header.devminor)


def _raw(text: str, *, at: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    if b"\0" in raw or len(raw) > PATH_BYTES:
        raise InvalidInput(
            f"expected a path of at most {PATH_BYTES} bytes without zero bytes, got {len(raw)} bytes", subject=at
        )
    return raw


def _attributes(header: tarfile.TarInfo, *, at: str) -> Attributes:
    for owner in (header.uid, header.gid):
        if not 0 <= owner < _NO_ID:
            raise InvalidInput(f"expected an owner from 0 to {_NO_ID - 1}, got {owner}", subject=at)
    return Attributes(
        mode=header.mode & 0o7777,
        uid=header.uid,
        gid=header.gid,
        mtime_ns=_nanoseconds(header.pax_headers.get("mtime") or str(header.mtime), at=at),
        xattrs=tuple(
            (_xattr_name(key, at=at), value.encode("utf-8", "surrogateescape"))
            for key, value in header.pax_headers.items()
            if key.startswith(_XATTR)
        ),
    )


def _xattr_name(key: str, *, at: str) -> str:
    name = key.removeprefix(_XATTR)
    if "\0" in name or not 0 < len(os.fsencode(name)) <= _NAME_BYTES:
        raise InvalidInput(
            f"{quote_text(key)} is not a valid extended attribute, expected a name of 1 to {_NAME_BYTES} bytes",
            subject=at,
        )
    return name


def _nanoseconds(text: str, *, at: str) -> int:
    """Return the time in `text` exactly. The float of the standard library would be off by up to some hundred nanoseconds."""
    if not (match := _TIME.fullmatch(text)):
        raise InvalidInput(f"expected a time in seconds, got {text[:40]!r}", subject=at)
    fraction = (match["fraction"] or "")[:_NANO].ljust(_NANO, "0")
    return int(f"{match['sign']}{match['seconds']}{fraction}")


def _extents(header: tarfile.TarInfo, *, at: str) -> tuple[tuple[int, int], ...]:
    """Return the extents of a file that have content. The remaining ranges of a sparse file are holes."""
    if header.size < 0:
        raise Corrupt(f"expected a size of at least 0 bytes, got {header.size}", subject=at)
    sparse = cast("list[tuple[int, int]] | None", header.sparse)
    extents = ((0, header.size),) if sparse is None else tuple(sparse)
    end = 0
    for offset, size in extents:
        if offset < end or size < 0 or offset + size > header.size:
            raise Corrupt(
                f"expected {size} bytes between byte {end} and {header.size} of the file, got offset {offset}", subject=at
            )
        end = offset + size
    return tuple((offset, size) for offset, size in extents if size)
