"""A run that hashes the blobs of a store again, checks that the images are complete, and repairs images on request."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from prefect_dist.mirror.fetch import walk_image_states
from prefect_dist.mirror.report import BlobRow, NameRow, ReportBuilder, RunError, RunReport, count_outcomes, row_errors
from prefect_dist.mirror.resources import RunResources
from prefect_dist.mirror.run_spec import RunContext, RunSpec
from prefect_dist.mirror.scopes import FetchScopes
from prefect_dist.ocispec import Digest, Reference
from prefect_dist.ocispec.errors import Corrupt, DistError, NotFound
from prefect_dist.storage import ContentStore, Info, Name, open_store, presence
from prefect_dist.storage.presence import reachable_digests
from prefect_dist.storage.verify import Verified
from prefect_dist.transfer import units
from prefect_dist.transfer.cancellation import Stopped
from prefect_dist.transfer.events import BlobsHashed, CorruptContent, Notify, StepFailed
from prefect_dist.transfer.image_report import ImageReport
from prefect_dist.transfer.pool import Failed, Ok, Outcome, Pool, Unit
from prefect_dist.transfer.related import EVERYTHING, NOTHING
from prefect_dist.transfer.session import SessionSpec
from prefect_dist.transfer.walk_state import ImageState

# Bounds of a unit of work: enough blobs to be worth a task, and few enough bytes that a retry costs minutes, not hours.
_MOST_BYTES = 1024**3
_MOST_BLOBS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyJob:
    """The verification of a store. `repair` are the names to fetch again if they are incomplete."""

    repair: Literal["all"] | tuple[str, ...]
    planning: ClassVar[float] = 0

    def list_hosts(self, session: SessionSpec, /) -> frozenset[str]:
        """Return the registries of the names to fetch again."""
        if not self.repair:
            return frozenset()
        with open_store(session.store, options=session.store_options) as store:
            names, _ = store.names.read()
        return frozenset(Reference.parse(name.name).host for name in select_repaired(names, self.repair))

    def run(self, context: RunContext, /) -> RunReport:
        """Verify the store."""
        return run_verify(context.pool, context.scopes.open_fetch(), context.notify, repair=self.repair)


def make_verify_run(resources: RunResources, *, repair: Literal["all"] | Sequence[str], concurrency: int) -> RunSpec:
    """Return the run for the parameters of a verification.

    Raises:
        InvalidInput: a parameter is invalid.
    """
    job = VerifyJob(repair="all" if repair == "all" else tuple(repair))
    return RunSpec(job=job, session=resources.make_session(), window=concurrency)


def run_verify(pool: Pool, scopes: FetchScopes, notify: Notify, *, repair: Literal["all"] | Sequence[str]) -> RunReport:
    """Hash every blob again, move corrupt blobs into quarantine, and check that each name is complete.

    `repair` are the names to fetch again if incomplete. `scopes` are the flow runs of this fetch.

    Raises:
        NotFound: the store does not exist.
    """
    builder, session = ReportBuilder("verify", pool), pool.session
    session.store.require()
    outcomes = _verify_all(pool, notify)
    names, unreadable = session.store.names.read()
    damaged = dict(_find_damaged(session.store, names))
    unreferenced = _count_unreferenced(session.store)
    chosen = [] if session.cancel.reason else select_repaired(names, repair)
    repaired, errors = _repair([name for name in chosen if name.name in damaged], pool, scopes, notify)
    verified = _total(outcome.value for outcome in outcomes if isinstance(outcome, Ok))
    rows: list[BlobRow | NameRow] = [
        *(_blob_row(digest, has_damaged_name=bool(damaged), unreferenced=unreferenced) for digest in verified.corrupt),
        *_name_rows(damaged, repaired),
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
            "fetched_bytes": session.stats.received,
        },
        errors=[*(RunError(object=None, error=error) for error in (*failed, *unreadable)), *errors],
    )


def select_repaired(names: Iterable[Name], repair: Literal["all"] | Sequence[str]) -> list[Name]:
    """Return the names that the parameter `repair` selects."""
    return [name for name in names if repair == "all" or name.name in repair]


def _repair(
    names: Sequence[Name], pool: Pool, scopes: FetchScopes, notify: Notify
) -> tuple[tuple[ImageReport, ...], list[RunError]]:
    """Fetch the images of incomplete names. Return the reports of the images, and the errors."""
    if not names:
        return (), []
    images = [
        ImageState(
            Reference.parse(name.name),
            platforms=name.platforms,
            related=EVERYTHING if name.referrers else NOTHING,
        )
        for name in names
    ]
    reports, errors = walk_image_states(images, pool, scopes, notify)
    return reports, [*(error for report in reports for error in row_errors(report)), *errors]


def _blob_row(digest: Digest, *, has_damaged_name: bool, unreferenced: int | None) -> BlobRow:
    """Return the row of a corrupt blob. The blob is an error only if no damaged name shows the loss."""
    needed = "the names that need it are unknown" if unreferenced is None else "no name needs it"
    error = Corrupt(f"corrupt, now in quarantine; {needed}")
    return BlobRow(digest=digest, outcome="corrupt", errors=() if has_damaged_name else (error,))


def _name_rows(damaged: Mapping[str, DistError], fetched: Sequence[ImageReport]) -> Iterator[NameRow]:
    """Yield the rows of incomplete names; `fetched` are the reports of the repaired images."""
    repaired = {report.name for report in fetched if not report.failures}
    for name, error in damaged.items():
        if name in repaired:
            yield NameRow(name=name, outcome="repaired", note=str(error))
        else:
            yield NameRow(name=name, outcome="damaged", errors=(error,))


def _verify_all(pool: Pool, notify: Notify) -> list[Outcome[Verified]]:
    """Verify the blobs of the store. Return the outcome of each chunk of blobs."""
    chunks, store = list(_chunks(pool.session.store.walk())), pool.session.store
    progress = BlobsHashed(count=0, total=sum(map(len, chunks)), failed=0, size=0, total_size=sum(map(_size_of, chunks)))
    notify(progress)
    outcomes = []
    for chunk, outcome in pool.run(chunks, lambda blobs: Unit(work=units.verify, arguments=(blobs,))):
        outcomes.append(outcome)
        if isinstance(outcome, Ok):
            for digest in outcome.value.corrupt:
                error = Corrupt(f"corrupt in {store.url}, now in quarantine", subject=f"blob {digest}")
                notify(CorruptContent(digest, "store", store.url, error))
            progress = replace(progress, count=progress.count + len(chunk), size=progress.size + _size_of(chunk))
        elif isinstance(outcome.error, Stopped):
            continue
        else:
            notify(StepFailed(outcome.error))
            progress = replace(progress, failed=progress.failed + len(chunk))
        notify(progress)
    return outcomes


def _size_of(chunk: tuple[Info, ...]) -> int:
    return sum(info.size for info in chunk)


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
