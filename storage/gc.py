"""Garbage collection: blobs that nothing needs, and what dead runs left behind.

What names and leases reach is needed (`storage.reachable`). The order makes it safe beside runs: first the candidates are
listed, then names and leases are read, then candidates that nothing reaches are removed, all under a lock that
`ContentStore.unswept` shares; nothing else removes a blob without it. Whoever relies on content that is there looks for it
under that lock, with a lease on its root and with the manifest above it in the store: so either gc sees that it is needed, or
the look comes after the removal and finds nothing. Object stores have no locks; there the grace period has to be longer than a
run (docs/guarantees.md), and `hazard` says so to whoever gives a short one.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ocispec.errors import NotFound
from ocispec.units import duration
from storage.reachable import reachable
from storage.store import ContentStore, Info

# Where there are no locks: longer than runs take, as far as anybody can guess.
_LONGER_THAN_A_RUN = timedelta(hours=24)


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Swept:
    """What was, or in a dry run would be, removed: blobs, and the paths of ingests and leftovers."""

    blobs: tuple[Info, ...]
    leftovers: tuple[str, ...]
    kept: int

    @property
    def size(self) -> int:
        """The bytes of the blobs."""
        return sum(info.size for info in self.blobs)


def hazard(store: ContentStore, *, grace: timedelta) -> str | None:
    """What to tell, in one line, before a sweep with such a grace period; None where it endangers no run under way."""
    if store.locks or grace >= _LONGER_THAN_A_RUN:
        return None
    given = duration(grace.total_seconds())
    return (
        f"gc of {store.url}: no locks there, and a grace of {given}; what runs under way need may go, see that there are none"
    )


def collect(store: ContentStore, *, grace: timedelta, dry_run: bool) -> Swept:
    """Remove what nothing needs and nobody has touched for `grace`.

    Raises:
        Corrupt, InvalidInput, Unsupported: a manifest or a name cannot be read; nothing is removed, for what it needs would be.
        Denied, Unavailable: the store.
    """
    before = datetime.now(UTC) - grace
    if dry_run:
        return Swept(blobs=_unneeded(store, before), leftovers=tuple(store.leftovers(before, dry_run=True)), kept=_count(store))
    with store.sweeping():
        blobs = tuple(info for info in _unneeded(store, before) if _remove(store, info))
    return Swept(blobs=blobs, leftovers=tuple(store.leftovers(before, dry_run=False)), kept=_count(store))


def _unneeded(store: ContentStore, before: datetime) -> tuple[Info, ...]:
    candidates = [info for info in store.walk() if info.committed < before]
    if not candidates:
        return ()
    needed = reachable(store, [*(root for name in store.names for root in name.roots), *store.leases.roots()])
    return tuple(info for info in candidates if info.digest not in needed)


def _remove(store: ContentStore, info: Info) -> bool:
    try:
        store.delete(info.digest)
    except NotFound:
        return False  # somebody else was faster
    return True


def _count(store: ContentStore) -> int:
    return sum(1 for _ in store.walk())
