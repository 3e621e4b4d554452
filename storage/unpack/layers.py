"""Layers as streams of uncompressed bytes, verified during reading (image-spec 1.1, layer.md and config.md).

A layer has two digests: the digest of its blob, in the manifest, and the digest of its uncompressed bytes, the diff ID, in the
config. Both digests cover every byte, including bytes after the end of the tar archive. `storage.unpack.entries` parses the
bytes.
"""

import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import zstandard

from prefect_dist.ocispec import Descriptor, Digest, Hasher
from prefect_dist.ocispec.errors import Corrupt, DistError, NotFound, Unsupported
from prefect_dist.storage.store import ContentStore

_PIECE_BYTES = 1024 * 1024
# layer ::= ( OCI's prefix | Docker's prefix ) "tar" [ ( "+" | "." ) compression ]
_GRAMMAR = re.compile(
    r"application/vnd\.(?:oci\.image\.layer\.(?P<nondistributable>nondistributable\.)?v1"
    r"|docker\.image\.rootfs\.(?P<foreign>foreign\.)?diff)\.tar(?:[+.](?P<compression>gzip|zstd))?"
)


class _ByteSource(Protocol):
    """A source of uncompressed bytes."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; an empty result at the end."""


class LayerStream:
    """The uncompressed bytes of a layer, hashed while they are read. `str()` names the layer in errors."""

    def __init__(self, source: _ByteSource, *, layer: Descriptor, diff_id: Digest) -> None:
        self.offset = 0
        self._source, self._layer, self._diff_id = source, layer, diff_id
        self._hasher = Hasher(diff_id.algorithm)

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes; fewer only at the end.

        Raises:
            Corrupt: the blob is not compressed as its media type promises.
        """
        pieces = []
        while size and (piece := self._read(size)):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def pieces(self, size: int) -> Iterator[bytes]:
        """Yield the next `size` bytes in pieces of bounded size.

        Raises:
            Corrupt: see `read`, and if the stream ends early.
        """
        while size:
            piece = self.read(min(size, _PIECE_BYTES))
            if not piece:
                raise Corrupt(
                    f"ends at byte {self.offset}, expected {size} more bytes; build or fetch the image again", subject=self
                )
            size -= len(piece)
            yield piece

    def finish(self) -> None:
        """Read the rest of the stream and compare its digest with the diff ID.

        Raises:
            Corrupt: the digest differs.
        """
        while self._read(_PIECE_BYTES):
            pass
        if (found := self._hasher.digest()) != self._diff_id:
            raise Corrupt(f"expected diff ID {self._diff_id} as in the config, got {found}", subject=self)

    def _read(self, size: int) -> bytes:
        try:
            data = self._source.read(size)
        except (gzip.BadGzipFile, zlib.error, EOFError, zstandard.ZstdError) as exc:
            raise Corrupt(f"not valid {self._layer.media_type} after byte {self.offset} ({exc})", subject=self) from exc
        self._hasher.update(data)
        self.offset += len(data)
        return data

    def __str__(self) -> str:
        return str(self._layer)


@contextmanager
def open_layer(store: ContentStore, layer: Descriptor, *, diff_id: Digest) -> Iterator[LayerStream]:
    """Yield the uncompressed bytes of a layer as a stream. The end of the block reads the rest and verifies the digests.

    Raises:
        Corrupt: the blob or its uncompressed bytes do not match their digests. If the blob is damaged, this error replaces an
            error of the block.
    """
    blob = _Blob(store.chunks(layer.digest))
    stream = LayerStream(
        _DECOMPRESSORS[compression(layer)](io.BufferedReader(blob, _PIECE_BYTES)), layer=layer, diff_id=diff_id
    )
    try:
        yield stream
        stream.finish()
    except DistError:
        blob.drain()
        raise
    blob.drain()


def compression(layer: Descriptor) -> str | None:
    """Return the compression in the media type of a layer; None for an uncompressed layer.

    Raises:
        Unsupported: another type, such as an encrypted layer.
    """
    if not (match := _GRAMMAR.fullmatch(layer.media_type)):
        raise Unsupported(f"expected a layer as tar, tar+gzip or tar+zstd, got the type {layer.media_type}", subject=layer)
    return match["compression"]


def require_unpackable(store: ContentStore, layer: Descriptor) -> None:
    """Check that a layer can be unpacked, without reading it.

    Raises:
        NotFound: the store lacks the layer.
        Unsupported: another media type, or a non-distributable layer whose content the store lacks.
        Corrupt: the stored blob has another size.
    """
    compression(layer)
    if store.holds(layer):
        return
    match = _GRAMMAR.fullmatch(layer.media_type)
    if match and (match["foreign"] or match["nondistributable"]):
        kind = f"a non-distributable layer ({layer.media_type})"
        raise Unsupported(f"{kind}, whose content is missing in {store.url}", subject=layer)
    raise NotFound(f"not in {store.url}; fetch the image first", subject=layer)


class _Blob(io.RawIOBase):
    """The pieces of a blob as a file that is read forward."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size

    def drain(self) -> None:
        """Read to the end, where the store compares the digest."""
        for _ in self._pieces:
            pass


def _unzstd(blob: io.BufferedReader) -> _ByteSource:
    return zstandard.ZstdDecompressor().stream_reader(blob, read_across_frames=True)


# Each decompressor returns only the requested number of uncompressed bytes, even for highly compressed input.
_DECOMPRESSORS: Mapping[str | None, Callable[[io.BufferedReader], _ByteSource]] = {
    None: lambda blob: blob,
    "gzip": lambda blob: gzip.GzipFile(fileobj=blob),
    "zstd": _unzstd,
}
