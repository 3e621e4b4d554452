"""Garbage collection: removes unneeded blobs and the leftovers of dead runs.

A blob is needed if a name or a lease reaches it. gc lists the candidates first and removes them in batches. Before each batch,
gc reads leases and names again. Leases are read first, since a run records its names before it releases its leases.

`storage.sweeps` prevents runs from relying on the content of a batch during its removal. So either gc sees the lease of a run,
or the run looks content up after the removal and finds only the remaining content.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.ocispec.children import children_reader
from prefect_dist.ocispec.errors import NotFound, Unavailable
from prefect_dist.ocispec.units import duration
from prefect_dist.storage import presence
from prefect_dist.storage.store import ContentStore, Info

# The shortest safe grace period if gc and runs cannot exclude each other. Runs usually take less time.
_LONGER_THAN_A_RUN = timedelta(hours=24)
_BATCH = 1000
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Swept:
    """The result of a garbage collection: the removed blobs and the paths of removed leftovers.

    In a dry run, nothing was removed, and the result has the blobs and leftovers to remove. `kept` is the number of blobs that
    stay. `lost` has a line for each name that was recorded during gc and lacks content.
    """

    blobs: tuple[Info, ...]
    leftovers: tuple[str, ...]
    kept: int
    lost: tuple[tuple[str, NotFound], ...] = ()

    @property
    def size(self) -> int:
        """The size of the removed blobs, in bytes."""
        return sum(info.size for info in self.blobs)


def find_hazard(store: ContentStore, *, grace: timedelta) -> str | None:
    """Return a one-line warning if gc with this grace period may remove content of a run in progress; None if gc is safe."""
    if store.can_exclude_gc or grace >= _LONGER_THAN_A_RUN:
        return None
    given = duration(grace.total_seconds())
    return (
        f"gc of {store.url}: the locks of this file system do not exclude other machines, and the grace period is only "
        f"{given}; make sure that no run is in progress on another machine"
    )


def collect(store: ContentStore, *, grace: timedelta, dry_run: bool) -> Swept:
    """Remove blobs and leftovers that are unneeded and were not touched during the grace period.

    The clock of the store determines ages. A dry run writes nothing and uses the clock of this machine.

    Raises:
        Corrupt, InvalidInput, Unsupported: a manifest, name or lease cannot be read, so its content is unknown.
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
    """The digests that names and leases need. The set only grows, so each `update` reads only new roots."""

    def __init__(self, store: ContentStore, now: datetime) -> None:
        self._store, self._now = store, now
        self._digests: set[Digest] = set()
        self._leased: set[object] = set()
        self._named: set[object] = set()
        self._awaited: dict[object, Descriptor] = {}  # manifests below leases that runs have not fetched yet
        self._first: dict[str, object] | None = None

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._digests

    def update(self) -> None:
        leased = _new(self._store.leases.roots(now=self._now), self._leased)
        names = list(self._store.names)
        if self._first is None:
            self._first = {name.name: name for name in names}
        self._walk(_new((root for name in names for root in name.roots), self._named))
        for missing in (*self._walk(leased), *self._walk(self._pop_arrived())):
            if missing.is_manifest:
                self._awaited[missing.key] = missing

    def lost(self) -> Iterator[tuple[str, NotFound]]:
        """Yield the name and the error of each name that was recorded since the first update and lacks content."""
        first = self._first or {}
        for name in self._store.names:
            if first.get(name.name) != name and not (found := presence.check_name(self._store, name)).is_complete:
                yield name.name, NotFound(f"recorded while gc ran, {found.shortage}; fetch the image again")

    def _pop_arrived(self) -> list[Descriptor]:
        """Return the awaited manifests that are in the store now, and remove them from the awaited manifests."""
        awaited = list(self._awaited.values())
        there = self._store.each(self._store.holds, awaited) if awaited else []
        arrived = [manifest for manifest, is_there in zip(awaited, there, strict=True) if is_there]
        for manifest in arrived:
            del self._awaited[manifest.key]
        return arrived

    def _walk(self, roots: Sequence[Descriptor]) -> tuple[Descriptor, ...]:
        """Add the digests below the roots, and return the missing descriptors."""
        found = presence.check(self._store, *roots, children=children_reader(self._store.manifest))
        self._digests |= {descriptor.digest for descriptor in (*found.present, *found.missing)}
        return found.missing


def _new(roots: Iterator[Descriptor], known: set[object]) -> list[Descriptor]:
    """Return the roots with keys outside of `known`, and add the keys to `known`."""
    fresh = {root.key: root for root in roots if root.key not in known}
    known |= fresh.keys()
    return list(fresh.values())


def _remove(store: ContentStore, batch: Sequence[Info], needed: _Needed) -> list[Info]:
    """Remove the blobs of a batch that are still unneeded, and return the removed blobs."""
    for _ in range(_ATTEMPTS):
        with store.begin_sweep() as sweep:
            needed.update()
            doomed = [info for info in batch if info.digest not in needed]
            if sweep.is_current:  # otherwise reading took too long; the next attempt has less to read
                store.delete_all(info.digest for info in doomed)
                return doomed
    raise Unavailable(f"gc of {store.url}: reading names and leases takes too long; run gc when fewer runs are in progress")


def _batches(infos: Sequence[Info]) -> Iterator[Sequence[Info]]:
    return (infos[start : start + _BATCH] for start in range(0, len(infos), _BATCH))


def _count(store: ContentStore) -> int:
    return sum(1 for _ in store.walk())
