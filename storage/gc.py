"""Garbage collection: blobs that nothing needs, and what dead runs left behind.

Whatever names and leases reach is needed. The candidates are listed first. They are removed in batches; for each batch leases
and names are read again, in that order, since a run records its names before it releases its leases. `storage.sweeps` keeps
runs from relying on the content of a batch meanwhile. So a run either is seen by gc, or looks after the removal and finds what
is left.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.ocispec.children import children_reader
from prefect_dist.ocispec.errors import Unavailable
from prefect_dist.ocispec.units import duration
from prefect_dist.storage import presence
from prefect_dist.storage.store import ContentStore, Info

# Where runs are not kept apart from gc: longer than they usually take.
_LONGER_THAN_A_RUN = timedelta(hours=24)
_BATCH = 1000
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Swept:
    """The blobs and the paths of leftovers that were, or in a dry run would be, removed.

    `lost` says of names that were recorded meanwhile which content they lack, and how to get it again.
    """

    blobs: tuple[Info, ...]
    leftovers: tuple[str, ...]
    kept: int
    lost: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """The bytes of the blobs."""
        return sum(info.size for info in self.blobs)


def find_hazard(store: ContentStore, *, grace: timedelta) -> str | None:
    """Return a warning, in one line, if a sweep with this grace period may remove what a run in progress needs."""
    if store.can_exclude_gc or grace >= _LONGER_THAN_A_RUN:
        return None
    given = duration(grace.total_seconds())
    return (
        f"gc of {store.url}: its locks are not shared with other machines, and the grace period is {given}; "
        "make sure that no run is in progress on another machine"
    )


def collect(store: ContentStore, *, grace: timedelta, dry_run: bool) -> Swept:
    """Remove what nothing needs and what was not touched for `grace`.

    Times are compared by the clock of the store; a dry run, which writes nothing, takes that of this machine.

    Raises:
        Corrupt, InvalidInput, Unsupported: a manifest, name or lease cannot be read, so that it is unknown what it needs.
        Denied, Unavailable: the store.
    """
    now = datetime.now(UTC) if dry_run else store.clock()
    before = now - grace
    candidates = [info for info in store.walk() if info.committed < before]
    needed = _Needed(store, now)
    if candidates:
        needed.update()
    unneeded = [info for info in candidates if info.digest not in needed]
    if dry_run:
        leftovers = tuple(store.sweep_leftovers(now, before, dry_run=True))
        return Swept(blobs=tuple(unneeded), leftovers=leftovers, kept=_count(store))
    removed = [info for batch in _batches(unneeded) for info in _remove(store, batch, needed)]
    lost = tuple(needed.lost()) if removed else ()
    leftovers = tuple(store.sweep_leftovers(now, before, dry_run=False))
    return Swept(blobs=tuple(removed), leftovers=leftovers, kept=_count(store), lost=lost)


class _Needed:
    """The digests that names and leases need. The set only grows: so each `update` reads what is new."""

    def __init__(self, store: ContentStore, now: datetime) -> None:
        self._store, self._now = store, now
        self._digests: set[Digest] = set()
        self._leased: set[object] = set()
        self._named: set[object] = set()
        self._awaited: dict[object, Descriptor] = {}  # manifests below leases that have not arrived yet
        self._first: dict[str, object] | None = None

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._digests

    def update(self) -> None:
        """Read leases and names again."""
        leased = _new(self._store.leases.roots(now=self._now), self._leased)
        names = list(self._store.names)
        if self._first is None:
            self._first = {name.name: name for name in names}
        self._walk(_new((root for name in names for root in name.roots), self._named))
        for missing in (*self._walk(leased), *self._walk(self._take_arrived())):
            if missing.is_manifest:
                self._awaited[missing.key] = missing

    def lost(self) -> Iterator[str]:
        """Return a line for each name that was recorded since the first update and lacks content."""
        first = self._first or {}
        for name in self._store.names:
            if first.get(name.name) != name and not (found := presence.check_name(self._store, name)).is_complete:
                yield f"{name.name}: recorded while gc ran, {found.shortage}; fetch it again"

    def _take_arrived(self) -> list[Descriptor]:
        """Return, and forget, awaited manifests that are in the store now."""
        awaited = list(self._awaited.values())
        there = self._store.each(self._store.holds, awaited) if awaited else []
        arrived = [manifest for manifest, is_there in zip(awaited, there, strict=True) if is_there]
        for manifest in arrived:
            del self._awaited[manifest.key]
        return arrived

    def _walk(self, roots: Sequence[Descriptor]) -> tuple[Descriptor, ...]:
        """Add what is below roots, and return what is missing of it."""
        found = presence.check(self._store, *roots, children=children_reader(self._store.manifest))
        self._digests |= {descriptor.digest for descriptor in (*found.present, *found.missing)}
        return found.missing


def _new(roots: Iterator[Descriptor], known: set[object]) -> list[Descriptor]:
    """Return the roots that are not known yet, and note them as known."""
    fresh = {root.key: root for root in roots if root.key not in known}
    known |= fresh.keys()
    return list(fresh.values())


def _remove(store: ContentStore, batch: Sequence[Info], needed: _Needed) -> list[Info]:
    """Remove those blobs of a batch that are still not needed."""
    for _ in range(_ATTEMPTS):
        with store.begin_sweep() as sweep:
            needed.update()
            doomed = [info for info in batch if info.digest not in needed]
            if sweep.is_current:  # else so much was new that reading it took too long; it is known now
                store.delete_all(info.digest for info in doomed)
                return doomed
    raise Unavailable(f"gc of {store.url}: names and leases cannot be read fast enough; run it when fewer runs are in progress")


def _batches(infos: Sequence[Info]) -> Iterator[Sequence[Info]]:
    return (infos[start : start + _BATCH] for start in range(0, len(infos), _BATCH))


def _count(store: ContentStore) -> int:
    return sum(1 for _ in store.walk())
