"""Reads one blob over several connections in parallel if one connection is slow.

Some servers limit the speed of each connection. A transfer starts on one connection. If the rest is going to take long, parts
of the rest are fetched ahead over further connections, and yielded in order. The first connection is closed once it reaches a
part already arriving from the server. If the server does not send parts, the first connection continues to the end.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

from prefect_dist.ocispec import Descriptor
from prefect_dist.ocispec.errors import Unavailable
from prefect_dist.remotes import body
from prefect_dist.remotes.body import NoRanges, Send

# Small enough to be held in memory, large enough that requests cost little: at 8 MB/s a part takes half a second.
PART_BYTES = 4 * 1024 * 1024
# A transfer is divided after it has waited this time for the server, if it would wait at least the second time for the rest.
# The time of hashing and writing does not count: on a busy machine, further connections would only cost CPU time and memory.
_MIN_WAITED_S = 1.0
_MIN_REMAINING_S = 2.0
# Parts in flight or in memory: from one server, and in a run. The parts of a run take at most 64 MiB.
_MAX_PARTS_PER_SERVER = 8
_MAX_PARTS = 16
# A part without progress for this time is given up. It is longer than the timeouts and retries of its own requests.
_PATIENCE_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Transfer:
    """The transfer of one blob from one server."""

    send: Send
    descriptor: Descriptor
    subject: str
    server: str

    def read_part(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from `start` to `end`, read in this thread.

        Raises:
            Unavailable: the server does not send parts.
            DistError: as `remotes.body.read_part`.
        """
        try:
            yield from body.read_part(self.send, self.descriptor, offset=start, end=end, subject=self.subject)
        except NoRanges:
            raise Unavailable("the server stopped sending parts; will resume", subject=self.subject) from None


class Ranges:
    """Reads blobs over as many connections as help. Thread-safe; the owner closes it."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, patience_s: float = _PATIENCE_S) -> None:
        self._clock, self._patience_s = clock, patience_s
        self._pool = _PartPool()

    def read(self, send: Send, descriptor: Descriptor, *, offset: int, subject: str, server: str) -> Iterator[bytes]:
        """Yield the bytes of `descriptor` from `offset` to its size, with the errors of `remotes.body.read`.

        All transfers from the same `server` share the limit of parts for the server.
        """
        position, waited_s, asked = offset, 0.0, self._clock()
        transfer = _Transfer(send=send, descriptor=descriptor, subject=subject, server=server)
        with closing(_PartsAhead(self._pool, transfer, self._patience_s)) as ahead:
            for piece in (first := body.read(send, descriptor, offset=offset, subject=subject)):
                waited_s += self._clock() - asked
                yield piece
                position += len(piece)
                if self._is_worth_it(waited_s, position - offset, descriptor.size - position):
                    ahead.begin(position + PART_BYTES)
                if ahead.has_reached(position):
                    first.close()
                    break
                asked = self._clock()
            yield from ahead.rest(position)

    def close(self) -> None:
        """Wait for the parts in flight. The caller has to abort their requests first."""
        self._pool.close()

    @staticmethod
    def _is_worth_it(waited_s: float, got: int, left: int) -> bool:
        return waited_s >= _MIN_WAITED_S and left > 2 * PART_BYTES and left * waited_s >= got * _MIN_REMAINING_S


class _PartPool:
    """Threads that fetch parts, with a limit for each server and a total limit. Thread-safe.

    The pool has a thread for each allowed part, so no part waits for a thread behind the parts of a slow server.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_MAX_PARTS, thread_name_prefix="ranges")
        self._held: Counter[str] = Counter()
        self._guard = threading.Lock()

    @property
    def held(self) -> int:
        """Number of parts in flight, or fetched and not yet released."""
        with self._guard:
            return self._held.total()

    def start(self, part: "_RangePart") -> bool:
        """Fetch a part in a thread; return False if too many parts are held. The caller releases a started part.

        Raises:
            Unavailable: the pool is closed, because the run ends.
        """
        server = part.transfer.server
        with self._guard:
            if self._held[server] >= _MAX_PARTS_PER_SERVER or self._held.total() >= _MAX_PARTS:
                return False
            self._held[server] += 1
        try:
            part.pieces = self._threads.submit(part.fetch)
        except RuntimeError:  # after the shutdown
            self._uncount(server)
            raise Unavailable("interrupted; will resume", subject=part.transfer.subject) from None
        return True

    def release(self, part: "_RangePart") -> None:
        """Give up a part. The part counts towards the limits until its thread is free."""
        part.is_abandoned = True
        part.pieces.cancel()
        part.pieces.add_done_callback(lambda _: self._uncount(part.transfer.server))

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    def _uncount(self, server: str) -> None:
        with self._guard:
            self._held[server] -= 1


class _RangePart:
    """A part of a blob. `opened` is set once the server has sent the first bytes of the part."""

    def __init__(self, transfer: _Transfer, start: int, end: int) -> None:
        self.transfer, self.start, self.end = transfer, start, end
        self.opened = threading.Event()
        self.is_abandoned = False
        self.received = 0
        self.pieces: Future[deque[bytes]]

    def fetch(self) -> deque[bytes]:
        """Return the bytes; stop early if the part is abandoned."""
        pieces = deque[bytes]()
        for piece in self.transfer.read_part(self.start, self.end):
            if self.is_abandoned:
                break
            pieces.append(piece)
            self.received += len(piece)
            self.opened.set()
        return pieces

    def wait(self, patience_s: float) -> deque[bytes]:
        """Wait for the part and return its bytes.

        Raises:
            Unavailable: the server stopped sending parts, nothing arrived for `patience_s`, or the run ends.
            DistError: an error of the server.
        """
        subject, before = self.transfer.subject, -1
        while before < self.received:
            before = self.received
            try:
                return self.pieces.result(timeout=patience_s)
            except CancelledError:
                raise Unavailable("interrupted; will resume", subject=subject) from None
            except TimeoutError:
                continue
        raise Unavailable(f"nothing arrived for {patience_s:g} s; will resume", subject=subject)


class _PartsAhead:
    """The parts of one blob that are fetched ahead of the current position."""

    def __init__(self, pool: _PartPool, transfer: _Transfer, patience_s: float) -> None:
        self._pool, self._transfer, self._patience_s = pool, transfer, patience_s
        self._size = transfer.descriptor.size
        self._parts: deque[_RangePart] = deque()
        self._next: int | None = None

    def begin(self, start: int) -> None:
        """Start to fetch parts from `start` on. Only the first call has an effect."""
        if self._next is None:
            self._next = start
            self._fill()

    def has_reached(self, position: int) -> bool:
        """Return True if `position` is in the first part, and the first bytes of the part have arrived."""
        return bool(self._parts) and position >= self._parts[0].start and self._parts[0].opened.is_set()

    def rest(self, position: int) -> Iterator[bytes]:
        """Yield the bytes from `position` to the end."""
        while position < self._size:
            for piece in self._pieces(position):
                yield piece
                position += len(piece)

    def close(self) -> None:
        """Release the remaining parts."""
        while self._parts:
            self._pool.release(self._parts.popleft())

    def _pieces(self, position: int) -> Iterator[bytes]:
        """Yield the bytes of the first part from `position` on. Without a part in flight, read them in this thread."""
        if not self._parts:
            end = min(position + PART_BYTES, self._size)
            self._next = end
            self._fill()
            yield from self._transfer.read_part(position, end)
            return
        part = self._parts.popleft()
        try:
            pieces = part.wait(self._patience_s)
            skip = position - part.start  # the first connection may have been faster
            while pieces:  # each piece is freed before the next: the caller may take long to write them
                piece = pieces.popleft()
                kept, skip = piece[skip:], max(0, skip - len(piece))
                if kept:
                    yield kept
        finally:
            self._pool.release(part)
        self._fill()

    def _fill(self) -> None:
        """Start as many parts as the pool allows."""
        while self._next is not None and self._next < self._size:
            part = _RangePart(self._transfer, self._next, min(self._next + PART_BYTES, self._size))
            if not self._pool.start(part):
                return
            self._parts.append(part)
            self._next = part.end
