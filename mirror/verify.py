"""A run that hashes the blobs of a store again, checks that the images are complete, and repairs images on request."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from prefect_dist.mirror.report import BlobRow, NameRow, ReportBuilder, RunError, RunReport, count_outcomes
from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import Corrupt, DistError, NotFound
from prefect_dist.ocispec.platform import Platforms
from prefect_dist.ocispec.units import format_count, size
from prefect_dist.storage import ContentStore, Info, Name, presence
from prefect_dist.storage.presence import reachable_digests
from prefect_dist.storage.verify import Verified
from prefect_dist.transfer import units
from prefect_dist.transfer.cancellation import Stopped
from prefect_dist.transfer.events import CorruptContent, Notify
from prefect_dist.transfer.image_report import ImageReport
from prefect_dist.transfer.pool import Failed, Ok, Outcome, Pool, Unit

# Bounds of a unit of work: enough blobs to be worth a task, and few enough bytes that a retry costs minutes, not hours.
_MOST_BYTES = 1024**3
_MOST_BLOBS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """Images for a common fetch: with the same platforms, and either with or without referrers."""

    names: tuple[str, ...]
    platforms: Platforms
    referrers: bool


def run_verify(
    pool: Pool,
    notify: Notify,
    progress: "HashingProgress",
    fetch: Callable[[Repair], RunReport],
    *,
    repair: Literal["all"] | Sequence[str],
) -> RunReport:
    """Hash every blob again, move corrupt blobs into quarantine, and check that each name is complete.

    `repair` are the names to fetch again if incomplete. `fetch` fetches images, on a separate pool.

    Raises:
        NotFound: the store does not exist.
    """
    builder, session = ReportBuilder("verify", pool), pool.session
    session.store.require()
    outcomes = _verify_all(pool, notify, progress)
    names, unreadable = session.store.names.read()
    damaged = dict(_find_damaged(session.store, names))
    wanted = damaged if repair == "all" else damaged.keys() & set(repair)
    unreferenced = _count_unreferenced(session.store)
    repairs = [] if session.cancel.reason else _group_repairs(name for name in names if name.name in wanted)
    fetched = [fetch(group) for group in repairs]
    pool.runs += sum(run.tasks for run in fetched)
    verified = _total(outcome.value for outcome in outcomes if isinstance(outcome, Ok))
    rows: list[BlobRow | NameRow] = [
        *(_blob_row(digest, has_damaged_name=bool(damaged), unreferenced=unreferenced) for digest in verified.corrupt),
        *_name_rows(damaged, fetched),
    ]
    failed = (outcome.error for outcome in outcomes if isinstance(outcome, Failed))
    return builder.build(
        rows,
        {
            "ok": verified.sound,
            "corrupt": len(verified.corrupt),
            **count_outcomes([row for row in rows if isinstance(row, NameRow)], ("damaged", "repaired")),
            **({} if unreferenced is None else {"unreferenced": unreferenced}),
            "hashed_bytes": verified.size,
        },
        errors=[
            *(RunError(object=None, error=error) for error in (*failed, *unreadable)),
            *(error for run in fetched for error in run.errors),
        ],
    )


def _blob_row(digest: Digest, *, has_damaged_name: bool, unreferenced: int | None) -> BlobRow:
    """Return the row of a corrupt blob. The blob is an error only if no damaged name shows the loss."""
    needed = "the names that need it are unknown" if unreferenced is None else "no name needs it"
    error = Corrupt(f"corrupt, now in quarantine; {needed}")
    return BlobRow(digest=digest, outcome="corrupt", errors=() if has_damaged_name else (error,))


def _name_rows(damaged: Mapping[str, DistError], fetched: Sequence[RunReport]) -> Iterator[NameRow]:
    """Yield the rows of incomplete names; `fetched` are the reports of the repairs."""
    images = (row for run in fetched for row in run.select(ImageReport))
    repaired = {row.name for row in images if not row.failures}
    for name, error in damaged.items():
        if name in repaired:
            yield NameRow(name=name, outcome="repaired", note=str(error))
        else:
            yield NameRow(name=name, outcome="damaged", errors=(error,))


class HashingProgress:
    """The progress of the verification of a store. Other threads read the numbers."""

    def __init__(self) -> None:
        self._blobs = self._over = self._failed = self._bytes = self._over_bytes = 0

    def begin(self, chunk: tuple[Info, ...]) -> None:
        """Count blobs before hashing."""
        self._blobs += len(chunk)
        self._bytes += sum(info.size for info in chunk)

    def end(self, chunk: tuple[Info, ...]) -> None:
        """Count hashed blobs."""
        self._over += len(chunk)
        self._over_bytes += sum(info.size for info in chunk)

    def fail(self, chunk: tuple[Info, ...]) -> None:
        """Count unreadable blobs."""
        self._failed += len(chunk)

    def fraction(self) -> float:
        """Return the fraction of hashed bytes, 0 to 1."""
        return self._over_bytes / self._bytes if self._bytes else 0

    def words(self) -> str:
        """Return the progress in blobs and bytes."""
        failed = f", {self._failed} failed" if self._failed else ""
        blobs, total = format_count(self._blobs, "blob"), size(self._bytes)
        return f"{self._over} of {blobs} hashed{failed}, {size(self._over_bytes)} of {total}"

    def lacks(self) -> bool:
        """Return whether some blobs could not be read."""
        return self._failed > 0


def _verify_all(pool: Pool, notify: Notify, progress: HashingProgress) -> list[Outcome[Verified]]:
    """Verify the blobs of the store. Return the outcome of each chunk of blobs."""
    chunks, store = list(_chunks(pool.session.store.walk())), pool.session.store
    for chunk in chunks:
        progress.begin(chunk)
    outcomes = []
    for chunk, outcome in pool.run(chunks, lambda blobs: Unit(work=units.verify, arguments=(blobs,))):
        outcomes.append(outcome)
        if isinstance(outcome, Failed):
            if not isinstance(outcome.error, Stopped):
                progress.fail(chunk)
        else:
            progress.end(chunk)
            for digest in outcome.value.corrupt:
                message = f"blob {digest}: corrupt in {store.url}, now in quarantine"
                notify(CorruptContent(digest, "store", store.url, message))
    return outcomes


def _chunks(blobs: Iterable[Info]) -> Iterator[tuple[Info, ...]]:
    chunk: list[Info] = []
    for info in blobs:
        if chunk and (len(chunk) == _MOST_BLOBS or sum(i.size for i in chunk) + info.size > _MOST_BYTES):
            yield tuple(chunk)
            chunk = []
        chunk.append(info)
    if chunk:
        yield tuple(chunk)


def _find_damaged(store: ContentStore, names: Iterable[Name]) -> Iterator[tuple[str, DistError]]:
    for name in names:
        try:
            found = presence.check_name(store, name)
        except DistError as exc:
            yield name.name, exc.with_traceback(None)
        else:
            if not found.is_complete:
                yield name.name, NotFound(found.shortage)


def _group_repairs(names: Iterable[Name]) -> list[Repair]:
    groups: dict[tuple[Platforms, bool], list[str]] = {}
    for name in names:
        groups.setdefault((name.platforms, bool(name.referrers)), []).append(name.name)
    return [Repair(names=tuple(group), platforms=key[0], referrers=key[1]) for key, group in groups.items()]


def _count_unreferenced(store: ContentStore) -> int | None:
    """Return the number of blobs that no name needs, or None if a manifest or a name cannot be read."""
    try:
        needed = reachable_digests(store, [root for name in store.names for root in name.roots])
    except DistError:
        return None
    return sum(info.digest not in needed for info in store.walk())


def _total(parts: Iterable[Verified]) -> Verified:
    known = list(parts)
    return Verified(
        sound=sum(part.sound for part in known),
        size=sum(part.size for part in known),
        corrupt=tuple(digest for part in known for digest in part.corrupt),
    )
