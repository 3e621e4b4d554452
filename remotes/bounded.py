"""A body that is read only so far: for answers that are no content, whose length is the server's whim."""

from collections.abc import Iterator

import httpx


class Bounded(httpx.SyncByteStream):
    """The first `limit` bytes of another stream; what follows is never read. Ends there as if it were all."""

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
