"""Layers of an image as streams of uncompressed bytes, verified on the way (image-spec 1.1, layer.md and config.md).

A layer has two digests: its blob's, in the manifest, and that of its uncompressed bytes, the diff ID, in the config. Both
cover every byte, also those behind the end of the tar archive. What the bytes mean is left to `storage.unpack.entries`.
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
        """At most `size` bytes; none at the end."""


class LayerStream:
    """The uncompressed bytes of a layer, from the first to the last, hashed. `str()` names the layer in errors."""

    def __init__(self, source: _ByteSource, *, layer: Descriptor, diff_id: Digest) -> None:
        self.offset = 0
        self._source, self._layer, self._diff_id = source, layer, diff_id
        self._hasher = Hasher(diff_id.algorithm)

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end.

        Raises:
            Corrupt: the blob is not compressed as its media type says.
        """
        pieces = []
        while size and (piece := self._read(size)):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def pieces(self, size: int) -> Iterator[bytes]:
        """The next `size` bytes, in pieces that memory holds.

        Raises:
            Corrupt: also when the stream ends before.
        """
        while size:
            piece = self.read(min(size, _PIECE_BYTES))
            if not piece:
                raise Corrupt(f"{self}: ends at byte {self.offset}, expected {size} more; build or fetch it again")
            size -= len(piece)
            yield piece

    def finish(self) -> None:
        """Read what is left and compare all with the diff ID.

        Raises:
            Corrupt: they differ.
        """
        while self._read(_PIECE_BYTES):
            pass
        if (found := self._hasher.digest()) != self._diff_id:
            raise Corrupt(f"{self}: expected diff ID {self._diff_id} as in the config, got {found}")

    def _read(self, size: int) -> bytes:
        try:
            data = self._source.read(size)
        except (gzip.BadGzipFile, zlib.error, EOFError, zstandard.ZstdError) as exc:
            raise Corrupt(f"{self}: not what {self._layer.media_type} says after byte {self.offset} ({exc})") from exc
        self._hasher.update(data)
        self.offset += len(data)
        return data

    def __str__(self) -> str:
        return str(self._layer)


@contextmanager
def open_layer(store: ContentStore, layer: Descriptor, *, diff_id: Digest) -> Iterator[LayerStream]:
    """The uncompressed bytes of a layer. At the end of the block those that nobody read are read, too, and all verified.

    Raises:
        Corrupt: the blob or its uncompressed bytes are not those of their digests; also instead of any error in the block
            that a damaged blob explains.
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
    """Return the compression in a layer's media type; None for none.

    Raises:
        Unsupported: any other type, among them encrypted layers.
    """
    if not (match := _GRAMMAR.fullmatch(layer.media_type)):
        raise Unsupported(f"{layer}: expected a layer as tar, tar+gzip or tar+zstd, got the type {layer.media_type}")
    return match["compression"]


def require(store: ContentStore, layer: Descriptor) -> None:
    """Make sure that a layer can be unpacked, as far as that can be told without reading it.

    Raises:
        NotFound: the store does not have it.
        Unsupported: another type, or a foreign layer whose content the store does not have.
        Corrupt: the store has it with another size.
    """
    compression(layer)
    if store.holds(layer):
        return
    match = _GRAMMAR.fullmatch(layer.media_type)
    if match and (match["foreign"] or match["nondistributable"]):
        raise Unsupported(f"{layer}: a foreign layer ({layer.media_type}), whose content {store.url} does not have")
    raise NotFound(f"{layer}: not in {store.url}; fetch the image first")


class _Blob(io.RawIOBase):
    """A blob's pieces as a file that is read forward."""

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
        """Read to the end, where the digest is compared."""
        for _ in self._pieces:
            pass


def _unzstd(blob: io.BufferedReader) -> _ByteSource:
    return zstandard.ZstdDecompressor().stream_reader(blob, read_across_frames=True)


# Each gives uncompressed bytes in the pieces that are asked for, however much a piece of the blob may hold.
_DECOMPRESSORS: Mapping[str | None, Callable[[io.BufferedReader], _ByteSource]] = {
    None: lambda blob: blob,
    "gzip": lambda blob: gzip.GzipFile(fileobj=blob),
    "zstd": _unzstd,
}
