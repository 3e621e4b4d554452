"""A run that hashes the blobs of a store again, and checks that its images are complete; it repairs images on request."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from prefect_dist.mirror.causes import Cause, group_lines
from prefect_dist.mirror.run_report import RunReport, Status, describe_pieces, pace
from prefect_dist.ocispec.errors import DistError, InvalidInput
from prefect_dist.ocispec.platform import Platforms
from prefect_dist.ocispec.units import duration, format_count, size
from prefect_dist.storage import ContentStore, Info, Name, presence
from prefect_dist.storage.presence import reachable_digests
from prefect_dist.storage.verify import Verified
from prefect_dist.transfer import units
from prefect_dist.transfer.cancellation import Stopped
from prefect_dist.transfer.events import CorruptContent, Notify
from prefect_dist.transfer.pool import Failed, Ok, Outcome, Pool, Unit

# Bounds of a unit of work: enough blobs to be worth a task, and few enough bytes that a retry costs minutes, not hours.
_MOST_BYTES = 1024**3
_MOST_BLOBS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """Images that can be fetched together, because the store wants the same platforms of each, and referrers of all or none."""

    names: tuple[str, ...]
    platforms: Platforms
    referrers: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What is sound, what went to quarantine, which names lack something and why, and how their repair came out.

    `extra` counts blobs that no name needs; None where a damaged manifest or name leaves that unknown.
    """

    verified: Verified
    extra: int | None
    damaged: dict[str, str]
    repaired: tuple[RunReport, ...] = ()
    failures: tuple[str, ...] = ()
    tasks: int
    seconds: float
    stopped: str | None = field(default=None)

    @property
    def status(self) -> Status:
        """`complete` where nothing is corrupt and every name whole, if need be after the repair."""
        if self.stopped:
            return "stopped"
        return "failed" if self.errors() else "complete"

    @property
    def repaired_names(self) -> frozenset[str]:
        """Return the names that a repair made whole."""
        return frozenset(image.name for run in self.repaired for image in run.images if not image.failures)

    def summary(self) -> str:
        """One line that counts."""
        corrupt = f", {len(self.verified.corrupt)} corrupt (in quarantine now)" if self.verified.corrupt else ""
        damaged = f"; {format_count(len(self.damaged), 'name')} not whole" if self.damaged else ""
        mended = f", {len(self.repaired_names)} repaired" if self.repaired_names else ""
        extra = f"; {format_count(self.extra, 'blob')} that no name needs" if self.extra else ""
        checked = f"{format_count(self.verified.sound, 'blob')} sound, {size(self.verified.size)}"
        return f"{checked}{corrupt}{damaged}{mended}{extra}; in {duration(self.seconds)}"

    def totals(self) -> dict[str, int]:
        """Return the numbers of blobs and names; `extra` is left out if a damaged name leaves it unknown."""
        return {
            "sound": self.verified.sound,
            "corrupt": len(self.verified.corrupt),
            "damaged": len(self.damaged),
            "repaired": len(self.repaired_names),
            **({} if self.extra is None else {"extra": self.extra}),
            "hashed_bytes": self.verified.size,
        }

    def errors(self) -> list[str]:
        """One line per name that is not whole, and per corrupt blob that no name needs; and what a repair failed with."""
        lines = [message for name, message in self.damaged.items() if name not in self.repaired_names]
        if not self.damaged:
            needed = "which name needs it, nobody knows" if self.extra is None else "no name needs it"
            lines += [f"blob {digest}: corrupt, now in quarantine; {needed}" for digest in self.verified.corrupt]
        return [*self.failures, *lines, *(error for run in self.repaired for error in run.errors())]

    def causes(self) -> list[Cause]:
        """The failures, grouped by their cause."""
        return group_lines(self.errors())

    def to_json(self, flow_run_id: str) -> dict[str, Any]:
        """The command line's JSON output."""
        return {
            "flow_run_id": flow_run_id,
            "status": self.status,
            "seconds": round(self.seconds, 3),
            "sound": self.verified.sound,
            "bytes": self.verified.size,
            "corrupt": [str(digest) for digest in self.verified.corrupt],
            "extra": self.extra,
            "damaged": [{"name": n, "message": m, "repaired": n in self.repaired_names} for n, m in self.damaged.items()],
            "errors": self.errors(),
        }

    def facts(self) -> dict[str, str | int]:
        """What was done."""
        return {
            "sound": describe_pieces(self.verified.sound, self.verified.size),
            "corrupt, now in quarantine": len(self.verified.corrupt),
            "names not whole": len(self.damaged),
            "names repaired": len(self.repaired_names),
            "blobs that no name needs": "not known" if self.extra is None else self.extra,
            **pace(self.verified.size, self.seconds),
        }

    def table(self) -> list[dict[str, str | int]]:
        """One row per corrupt blob and per name that is not whole."""
        rows: list[dict[str, str | int]] = [
            {"what": str(digest), "state": "corrupt", "more": "in quarantine"} for digest in self.verified.corrupt
        ]
        states = {True: "repaired", False: "not whole"}
        return rows + [{"what": n, "state": states[n in self.repaired_names], "more": m} for n, m in self.damaged.items()]


def run_verify(
    pool: Pool,
    notify: Notify,
    progress: "HashingProgress",
    fetch: Callable[[Repair], RunReport],
    *,
    repair: Literal["all"] | Sequence[str],
) -> VerifyReport:
    """Hash every blob again, move corrupt blobs into quarantine, and check that each name is complete.

    `repair` are the names to fetch again if they are not complete. `fetch` fetches them, on a pool of its own.

    Raises:
        NotFound: the store does not exist.
    """
    started, session = time.monotonic(), pool.session
    session.store.require()
    outcomes = _verify_all(pool, notify, progress)
    names, unreadable = session.store.names.read()
    damaged = dict(_find_damaged(session.store, names))
    wanted = damaged if repair == "all" else damaged.keys() & set(repair)
    extra = _count_extra(session.store)
    stopped = session.cancel.reason
    repairs = [] if stopped else _group_repairs(name for name in names if name.name in wanted)
    repaired = tuple(map(fetch, repairs))
    return VerifyReport(
        verified=_total(outcome.value for outcome in outcomes if isinstance(outcome, Ok)),
        extra=extra,
        damaged=damaged,
        repaired=repaired,
        failures=_failures(outcomes, unreadable),
        tasks=pool.runs + sum(run.tasks for run in repaired),
        seconds=time.monotonic() - started,
        stopped=stopped or next((run.stopped for run in repaired if run.stopped), None),
    )


class HashingProgress:
    """The progress of the verification of a store. Other threads read numbers that were right at some time."""

    def __init__(self) -> None:
        self._blobs = self._over = self._failed = self._bytes = self._over_bytes = 0

    def begin(self, chunk: tuple[Info, ...]) -> None:
        """Count blobs that are going to be hashed."""
        self._blobs += len(chunk)
        self._bytes += sum(info.size for info in chunk)

    def end(self, chunk: tuple[Info, ...]) -> None:
        """Count blobs that were hashed."""
        self._over += len(chunk)
        self._over_bytes += sum(info.size for info in chunk)

    def fail(self, chunk: tuple[Info, ...]) -> None:
        """Count blobs that could not be read."""
        self._failed += len(chunk)

    def fraction(self) -> float:
        """Return the fraction of the bytes that were hashed, 0 to 1."""
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
    """Verify all blobs of the store. Return the outcome of each chunk of blobs."""
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


def _find_damaged(store: ContentStore, names: Iterable[Name]) -> Iterator[tuple[str, str]]:
    for name in names:
        try:
            found = presence.check_name(store, name)
        except DistError as exc:
            yield name.name, f"{name.name}: {exc}"
        else:
            if not found.is_complete:
                yield name.name, f"{name.name}: {found.shortage}"


def _group_repairs(names: Iterable[Name]) -> list[Repair]:
    groups: dict[tuple[Platforms, bool], list[str]] = {}
    for name in names:
        groups.setdefault((name.platforms, bool(name.referrers)), []).append(name.name)
    return [Repair(names=tuple(group), platforms=key[0], referrers=key[1]) for key, group in groups.items()]


def _count_extra(store: ContentStore) -> int | None:
    """Return the number of blobs that no name needs, or None if a manifest or a name cannot be read."""
    try:
        needed = reachable_digests(store, [root for name in store.names for root in name.roots])
    except DistError:
        return None
    return sum(info.digest not in needed for info in store.walk())


def _failures(outcomes: Iterable[Outcome[Verified]], unreadable: Iterable[InvalidInput]) -> tuple[str, ...]:
    """Return the errors of tasks, and of names that cannot be read; equal ones once."""
    failed = (outcome.error for outcome in outcomes if isinstance(outcome, Failed))
    return tuple(dict.fromkeys(map(str, (*failed, *unreadable))))


def _total(parts: Iterable[Verified]) -> Verified:
    known = list(parts)
    return Verified(
        sound=sum(part.sound for part in known),
        size=sum(part.size for part in known),
        corrupt=tuple(digest for part in known for digest in part.corrupt),
    )
