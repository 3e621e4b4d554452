"""Mutual exclusion of gc and runs: gc removes no content that a run has just found.

On a disk, a lock excludes gc: runs share the lock while they look up content, and gc holds the lock while it removes a batch.

Object stores have no locks, but every process sees the writes of other processes immediately. On an object store, gc writes a
marker, reads names and leases, removes one batch of unneeded content, and removes the marker. A run records a lease, waits
until the markers of that moment are gone, and only then looks up content. So either gc sees the lease, or the run looks up
content after the removal and finds only the remaining content.

A marker expires after six minutes, by the clock of the store. gc sends no removal later than one minute after writing a marker,
and the last attempt of a removal ends at most five minutes later.
"""

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from prefect_dist.ocispec.errors import Unavailable
from prefect_dist.storage.backend import Backend
from prefect_dist.storage.file_info import modification_time
from prefect_dist.storage.layout import TEMPORARY, Layout

_log = logging.getLogger(__name__)
_MARKER = ".gc"  # needed because some services list an empty directory as an object, too
# gc sends the requests of a batch within a minute after its marker, and the last attempt of a request ends within five minutes.
_LIFE = timedelta(minutes=6)
_BATCH_S = 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
_LONG_S = 3.0
# A clock that does not stop while the machine is suspended, if the system has one.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


@dataclass(frozen=True, slots=True)
class Sweep:
    """The permission to remove unneeded content. `until` is the time at which the permission ends, None if it has no end."""

    until: float | None = None

    @property
    def is_current(self) -> bool:
        """True if content may still be removed, based on the names and leases read since this sweep began."""
        return self.until is None or time.clock_gettime(_CLOCK) < self.until

    def require(self) -> None:
        """Check that content may still be removed.

        Raises:
            Unavailable: the names and leases read since this sweep began may be outdated.
        """
        if not self.is_current:
            raise Unavailable(f"reading names and leases took more than {_BATCH_S:.0f} s; nothing was removed, run again")


class Sweeps:
    """The sweeps of a store, and the waiting of runs for them. Thread-safe."""

    def __init__(self, backend: Backend, layout: Layout) -> None:
        self._backend, self._layout = backend, layout
        self._ended: set[str] = set()  # markers that dead processes left

    @contextmanager
    def exclude_gc(self) -> Iterator[None]:
        """Wait until the batches that gc is removing are done; on a disk, also prevent further batches during this block."""
        with ExitStack() as held:
            with self._backend.translate_errors(f"store {self._layout.url}"):
                if self._backend.has_locks:
                    held.enter_context(self._backend.hold_lock(self._layout.lock, shared=True))
                else:
                    self._wait()
            yield

    @contextmanager
    def begin_sweep(self) -> Iterator[Sweep]:
        """Begin a sweep: `exclude_gc` blocks of runs wait until this block ends."""
        with ExitStack() as held:
            with self._backend.translate_errors(f"store {self._layout.url}"):
                if self._backend.has_locks:
                    held.enter_context(self._backend.hold_lock(self._layout.lock, shared=False))
                    sweep = Sweep()
                else:
                    sweep = Sweep(until=time.clock_gettime(_CLOCK) + _BATCH_S)
                    held.enter_context(self._hold_marker())
            yield sweep

    def clock(self) -> datetime:
        """Return the current time of the clock behind the modification times in this store."""
        path = f"{self._layout.root}/clock.{uuid.uuid4().hex}{TEMPORARY}"
        with self._backend.translate_errors(f"store {self._layout.url}"):
            self._backend.put(path, b"")
            try:
                return modification_time(self._backend.fs.info(path))
            finally:
                self._backend.remove([path])

    def list_stale_markers(self, before: datetime) -> list[str]:
        """Return the markers of dead processes that expired before a time."""
        with self._backend.translate_errors(f"store {self._layout.url}"):
            return [path for path, written in self._markers().items() if written < before - _LIFE]

    @contextmanager
    def _hold_marker(self) -> Iterator[None]:
        marker = f"{self._layout.sweeps}/{uuid.uuid4().hex}{_MARKER}"
        self._backend.put(marker, b"gc\n")
        try:
            yield
        finally:
            with suppress(Exception):  # do not hide an error of the block; the marker expires by itself
                self._backend.remove([marker])

    def _wait(self) -> None:
        """Wait until the markers that exist now are removed or have expired."""
        awaited, started, pause = self._markers().keys() - self._ended, time.monotonic(), _FIRST_PAUSE_S
        is_long = False
        while awaited:
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
            markers = self._markers()
            awaited &= markers.keys()
            if awaited and time.monotonic() - started > _LONG_S:
                now = self.clock()  # costs requests, and most batches end before
                self._ended |= {path for path in awaited if now - markers[path] > _LIFE}
                awaited -= self._ended
                if awaited and not is_long:
                    _log.warning(
                        "waiting for gc to remove a batch; if no gc is running, remove %s",
                        self._layout.format_path(min(awaited)),
                    )
                is_long = True

    def _markers(self) -> dict[str, datetime]:
        try:
            entries = self._backend.fs.ls(self._layout.sweeps, detail=True)
        except FileNotFoundError:
            return {}
        return {entry["name"]: modification_time(entry) for entry in entries if entry["name"].endswith(_MARKER)}
