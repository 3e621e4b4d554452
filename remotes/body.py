"""Reads the bytes of a blob to their end, over as many successive connections as needed.

An interrupted transfer is resumed by a closed range (`bytes=N-M`), because some registries answer 416 to open ranges. A range
is requested only to resume or to read a part. Accept-Ranges is ignored: most registries honour ranges without announcing it.
The response decides, see `_skip`. A server may send less than the range (RFC 9110, 15.3.7); the next request then starts where
its Content-Range ended. Verification of the bytes is left to the store.
"""

import re
from collections.abc import Callable, Generator, Iterator
from contextlib import closing

import httpx

from prefect_dist.ocispec import Descriptor
from prefect_dist.ocispec.errors import Corrupt, Unavailable
from prefect_dist.remotes.errors import from_transport, one_line, refuse_coding

# Successive connections without a new byte. After these, the caller retries, with a delay.
_MAX_FAILURES = 3
# This number of smaller ranges in a row ends a transfer: otherwise a server could cause one request per byte.
_SMALL_BYTES, _MAX_SMALL = 64 * 1024, 16
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")

# Statuses of responses with content; 416 is the answer to a range beyond the end.
ANSWERS = frozenset({200, 206})
ANSWERS_RANGED = ANSWERS | {416}

Send = Callable[[str | None], httpx.Response]


class NoRanges(Exception):
    """The server answered the request for a part with the whole content."""


def read(send: Send, descriptor: Descriptor, *, offset: int, subject: str, ranges: bool = True) -> Generator[bytes, None, None]:
    """Yield the bytes of `descriptor` from `offset` to its size, never more.

    `send` requests the content, with a Range header if given, and returns an open response with status 200, 206 or 416. With
    `ranges=False`, no range is requested, and the bytes before `offset` are skipped.

    Raises:
        Corrupt: the server announces or sends another length, or another range.
        Unavailable: the connection broke, and reconnecting gained nothing.
        Unsupported: the body has a content coding.
    """
    yield from _BodyReader(send, descriptor, offset, subject, ranges=ranges).read()


def read_part(send: Send, descriptor: Descriptor, *, offset: int, end: int, subject: str) -> Iterator[bytes]:
    """Yield the bytes of `descriptor` from `offset` to `end`, from a server that supports ranges.

    Raises:
        NoRanges: the server does not support ranges.
        Corrupt, Unavailable, Unsupported: as `read`.
    """
    yield from _BodyReader(send, descriptor, offset, subject, end=end).read()


class TruncatedStream(httpx.SyncByteStream):
    """The first `limit` bytes of another stream. The rest is not read, and is not an error."""

    def __init__(self, stream: httpx.SyncByteStream, limit: int) -> None:
        self._stream, self._limit = stream, limit

    def __iter__(self) -> Iterator[bytes]:
        left = self._limit
        for piece in self._stream:
            yield piece[:left]
            left -= len(piece)
            if left <= 0:
                return

    def close(self) -> None:
        """Close the other stream."""
        self._stream.close()


class _BodyReader:
    """Position and failures of one transfer: of the rest of a blob, or of a part that ends before `end`."""

    def __init__(
        self, send: Send, descriptor: Descriptor, offset: int, subject: str, *, end: int | None = None, ranges: bool = True
    ) -> None:
        self._offset, self._ranges = offset, ranges
        self._send, self._size, self._subject = send, descriptor.size, subject
        self._is_part, self._end = end is not None, descriptor.size if end is None else end
        self._failures = self._small_answers = 0

    def read(self) -> Iterator[bytes]:
        """Yield the bytes, over as many connections as needed."""
        while self._offset < self._end:
            yield from self._read_connection()

    def _read_connection(self) -> Iterator[bytes]:
        """Yield the bytes of one connection."""
        started = self._offset
        try:
            with closing(self._open()) as response:
                for piece in self._pieces(response):
                    self._offset += len(piece)
                    yield piece
        except httpx.TransportError as exc:
            error = from_transport(self._subject, exc)
            if not self._may_reopen(started):
                raise error from exc
        else:
            if self._offset < self._end:
                self._check_gain(self._offset - started)
                if not self._may_reopen(started):
                    raise Unavailable(f"expected {self._end} bytes, got {self._offset}", subject=self._subject)

    def _open(self) -> httpx.Response:
        if not (self._is_part or (self._offset and self._ranges)):
            return self._send(None)
        response = self._send(f"bytes={self._offset}-{self._end - 1}")
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            response.close()
            self._give_up_ranges()
            return self._send(None)
        return response

    def _pieces(self, response: httpx.Response) -> Iterator[bytes]:
        refuse_coding(self._subject, response)
        skip, left = self._skip(response), self._end_of(response) - self._offset
        self._check_length(response, skip + left)
        for piece in response.iter_raw():
            kept, skip = piece[skip:], max(0, skip - len(piece))
            if len(kept) > left:
                raise Corrupt(f"expected {self._size} bytes, the server sent more", subject=self._subject)
            left -= len(kept)
            if kept:
                yield kept

    def _skip(self, response: httpx.Response) -> int:
        """Return the number of bytes to skip in this body: none in a 206, all before the offset in a 200."""
        if response.status_code == httpx.codes.PARTIAL_CONTENT:
            return 0
        if self._is_part or self._offset:  # at offset 0 no range was requested, so the server may still support ranges
            self._give_up_ranges()
        return self._offset

    def _end_of(self, response: httpx.Response) -> int:
        """Return the offset at which the response ends. A 206 may have less than the requested range.

        Raises:
            Corrupt: a 206 that starts elsewhere, or has more than the requested range.
        """
        if response.status_code != httpx.codes.PARTIAL_CONTENT:
            return self._end
        text = response.headers.get("content-range", "")
        match = _CONTENT_RANGE.fullmatch(text)
        end = int(match[2]) + 1 if match and int(match[1]) == self._offset and match[3] in (str(self._size), "*") else 0
        if not self._offset < end <= self._end:
            wanted = f"bytes {self._offset}-{self._end - 1}/{self._size}"
            raise Corrupt(f"expected {wanted}, the server sent {one_line(text) or 'no Content-Range'}", subject=self._subject)
        return end

    def _check_gain(self, gained: int) -> None:
        """Raise Unavailable after many small responses in a row."""
        self._small_answers = 0 if gained >= _SMALL_BYTES else self._small_answers + 1
        if self._small_answers >= _MAX_SMALL:
            raise Unavailable(
                f"the server sent less than {_SMALL_BYTES} bytes of each range; will resume", subject=self._subject
            )

    def _give_up_ranges(self) -> None:
        if self._is_part:
            raise NoRanges
        self._ranges = False

    def _check_length(self, response: httpx.Response, expected: int) -> None:
        announced = response.headers.get("content-length")
        if announced is not None and announced != str(expected):
            raise Corrupt(f"expected {expected} bytes, the server announced {one_line(announced)}", subject=self._subject)

    def _may_reopen(self, started: int) -> bool:
        """Count a broken connection that gained nothing; return True if another connection is worth it.

        A server without ranges sends all bytes again each time. Retries are then left to the caller, because a bad line would
        cost the square of the blob's size.
        """
        self._failures = 0 if self._offset > started else self._failures + 1
        return self._ranges and self._failures < _MAX_FAILURES
