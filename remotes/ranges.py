"""One blob over several connections, where one alone is slow.

Some servers give each connection only so much. Whether one does is seen, not guessed: a transfer begins on one connection and
is divided when it turns out that it would take long. Then parts are fetched ahead, so many at once, and handed on in order. The
first connection is left when parts are seen to come; a server that does not send parts goes on with what it began.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

from ocispec import Descriptor
from ocispec.errors import Unavailable
from remotes import body
from remotes.body import NoRanges, Send

# What a connection beside the first fetches at once. Small enough to be held in memory, large enough that asking for it costs
# little of its time: at 8 MB/s it takes half a second.
PART_BYTES = 4 * 1024 * 1024
# A transfer that has gone on for so long, and would for so much longer, is divided.
_WATCHED_S = 1.0
_WORTHWHILE_S = 2.0
# The connections of all transfers of a run beside their first, and the parts that these may hold: 64 MiB of memory at most.
_CONNECTIONS = 8
_MOST_PARTS = 16


class Ranges:
    """Reads blobs over as many connections as help. Thread-safe; whoever made it closes it."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._threads = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="ranges")
        self._room = threading.BoundedSemaphore(_MOST_PARTS)

    def read(self, send: Send, descriptor: Descriptor, *, offset: int, subject: str) -> Iterator[bytes]:
        """The bytes of `descriptor` from `offset` to its size, as `remotes.body.read` gives them, and with its errors."""
        began, position = self._clock(), offset
        with closing(_Ahead(self._threads, self._room, send, descriptor, subject)) as ahead:
            for piece in (first := body.read(send, descriptor, offset=offset, subject=subject)):
                yield piece
                position += len(piece)
                if self._is_worth_it(self._clock() - began, position - offset, descriptor.size - position):
                    ahead.begin(position + PART_BYTES)
                if ahead.has_come_to(position):
                    first.close()
                    break
            yield from ahead.rest(position)

    def close(self) -> None:
        """Wait for what is under way, which is to be broken off before."""
        self._threads.shutdown(cancel_futures=True)

    @staticmethod
    def _is_worth_it(seconds: float, got: int, left: int) -> bool:
        return seconds >= _WATCHED_S and left > 2 * PART_BYTES and left * seconds >= got * _WORTHWHILE_S


class _Part:
    """Bytes on their way: `opened` once the server was seen to send just these."""

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end
        self.opened = threading.Event()
        self.pieces: Future[list[bytes]]


class _Ahead:
    """The parts of one blob that are fetched ahead of the one that is being handed on."""

    def __init__(
        self, threads: ThreadPoolExecutor, room: threading.BoundedSemaphore, send: Send, descriptor: Descriptor, subject: str
    ) -> None:
        self._threads, self._room = threads, room
        self._send, self._descriptor, self._subject = send, descriptor, subject
        self._parts: deque[_Part] = deque()
        self._next: int | None = None
        self._closed = False

    def begin(self, start: int) -> None:
        """Fetch from `start` on; once."""
        if self._next is None:
            self._next = start
            self._fill()

    def has_come_to(self, position: int) -> bool:
        """Whether what follows `position` is on its way here."""
        return bool(self._parts) and position >= self._parts[0].start and self._parts[0].opened.is_set()

    def rest(self, position: int) -> Iterator[bytes]:
        """The bytes from `position` to the end."""
        while position < self._descriptor.size:
            for piece in self._pieces(position):
                yield piece
                position += len(piece)

    def close(self) -> None:
        """Let all go that was not handed on."""
        self._closed = True
        while self._parts:
            self._parts.popleft().pieces.cancel()
            self._room.release()

    def _pieces(self, position: int) -> Iterator[bytes]:
        """The bytes of the first part from `position` on; those of one that is not on its way are fetched here."""
        if not self._parts:
            end = min(position + PART_BYTES, self._descriptor.size)
            self._next = end
            self._fill()
            yield from self._read(position, end)
            return
        part = self._parts.popleft()
        try:
            pieces = part.pieces.result()
        except NoRanges:
            raise Unavailable(f"{self._subject}: the server has ceased to send it in parts; will resume") from None
        finally:
            self._room.release()
        self._fill()
        passed = position - part.start  # the first connection may have been faster
        for piece in pieces:
            kept, passed = piece[passed:], max(0, passed - len(piece))
            if kept:
                yield kept

    def _fill(self) -> None:
        """Have as many parts on their way as there is room for."""
        size = self._descriptor.size
        while self._next is not None and self._next < size and len(self._parts) < _CONNECTIONS:
            if not self._room.acquire(blocking=False):
                return
            part = _Part(self._next, min(self._next + PART_BYTES, size))
            part.pieces = self._threads.submit(self._fetch, part)
            self._parts.append(part)
            self._next = part.end

    def _fetch(self, part: _Part) -> list[bytes]:
        pieces = []
        for piece in self._read(part.start, part.end):
            if self._closed:
                break
            pieces.append(piece)
            part.opened.set()
        return pieces

    def _read(self, start: int, end: int) -> Iterator[bytes]:
        return body.read_part(self._send, self._descriptor, offset=start, end=end, subject=self._subject)
