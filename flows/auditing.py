"""Looking into what a mirror brought, and finding where what is missing of it can be had."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from prefect import Task
from prefect.utilities.annotations import quote

from prefect_dist.flows.api import CALL_ERRORS, client
from prefect_dist.flows.limits import Limits
from prefect_dist.flows.runner import Unsubmitted, message, outcome
from prefect_dist.mirror.check_report import Audits
from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.entry_index import Origins
from prefect_dist.mirror.lock import Locked, Records
from prefect_dist.mirror.plan import Image, Step, Wish, with_backup
from prefect_dist.mirror.progress import Listener
from prefect_dist.ocispec import Descriptor, Reference
from prefect_dist.ocispec.frontier import Frontier
from prefect_dist.tasks import mirror as tasks
from prefect_dist.transfer.audit import Expected, Finding
from prefect_dist.transfer.cancellation import Stopped, ending
from prefect_dist.transfer.session import Session

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture

# What one task looks into, of one repository.
_MOST_TAGS = 100


class Auditing:
    """One run's audits. `tasks` counts the task runs that ended."""

    def __init__(self, session: Session, listener: Listener, entries: Sequence[Entry], *, workers: int, retries: int) -> None:
        self.tasks = 0
        self._session, self._listener, self._workers = session, listener, workers
        self._origins = Origins(entries)
        self._limits = Limits(retries=retries)

    def look(self, locked: Records) -> Audits:
        """Look into all that is locked and still wanted."""
        wanted = {target: record for target, record in locked.items() if self._is_wanted(target, record)}
        chunks = list(_chunked(_expected(target, record) for target, record in wanted.items()))

        def start(chunk: tuple[Expected, ...]) -> "PrefectFuture[Any] | Unsubmitted":
            return self._begin(tasks.audit, chunk[0].target.host, chunk)

        frontier: Frontier[tuple[Expected, ...], PrefectFuture[Any] | Unsubmitted] = Frontier(start, window=self._workers)
        frontier.add(chunks)
        damaged, untold, looked_into = dict[Reference, Finding](), dict[Reference, str](), 0
        for chunk, future in frontier:
            self.tasks += 1
            looked_into += len(chunk)
            self._listener.planned(looked_into, len(wanted))
            result = outcome(future)
            findings = result.findings if isinstance(result, tasks.Audited) else [result] * len(chunk)
            for expected, found in zip(chunk, findings, strict=True):
                if not isinstance(found, Finding):
                    untold[expected.target] = f"{expected.target}: {message(found)}"
                elif found.faults:
                    damaged[expected.target] = found
        return Audits(
            right=len(wanted) - len(damaged) - len(untold),
            damaged={target: found.faults for target, found in damaged.items()},
            roots={target: found.root for target, found in damaged.items()},
            untold=untold,
            unlooked=len(locked) - len(wanted),
        )

    def located(self, found: Audits, locked: Records) -> tuple[dict[Image, tasks.Located], dict[Reference, str]]:
        """What has to be brought to damaged targets, with what was found of where it is; and why some cannot be had."""

        def start(target: Reference) -> "PrefectFuture[Any] | Unsubmitted":
            record, entry = locked[target], self._origins.of(target, locked[target])
            origin, expected = Reference.parse(record.source), _expected(target, record)
            is_rewritten = entry is not None and entry.rewrite_index
            return self._begin(tasks.locate, origin.host, origin, expected, rewritten=is_rewritten)

        frontier: Frontier[Reference, PrefectFuture[Any] | Unsubmitted] = Frontier(start, window=self._workers)
        frontier.add(found.damaged)
        images, lost = dict[Image, tasks.Located](), dict[Reference, str]()
        for target, future in frontier:
            self.tasks += 1
            result = outcome(future)
            if not isinstance(result, tasks.Located):
                lost[target] = f"{target}: {message(result)}"
                continue
            image = self._image(target, locked[target], found.roots[target], result.root)
            if image.due:
                images[image] = result
            else:
                lost[target] = image.steps[0].note or f"{target}: cannot be repaired"
        return images, lost

    def _begin(
        self, task: Task[..., Any], host: str, *arguments: object, **options: object
    ) -> "PrefectFuture[Any] | Unsubmitted":
        """Submit a task, unless the run is to stop. It is to stop if Prefect's API cannot be reached for that."""
        stopping = self._session.stopping
        try:
            stopping.check()
            future: PrefectFuture[Any] = self._limits.ready(task, host).submit(*map(quote, arguments), **options)
        except Stopped as exc:
            return Unsubmitted(exc)
        except CALL_ERRORS as exc:
            stopping.set(f"Prefect API {client().api_url}: {exc}")
            return Unsubmitted(Stopped(ending(str(stopping.reason))))
        return future

    def _image(self, target: Reference, record: Locked, old: Descriptor | None, root: Descriptor) -> Image:
        entry = self._origins.of(target, record)
        if entry is None:
            raise ValueError(f"{target}: only what an entry wants is looked into")
        wish = Wish(entry=entry, source=Reference.parse(record.source), targets=(target,))
        step = with_backup(Step(wish=wish, target=target, change="repair", old=old, new=root))
        return Image(wish=wish, root=root, content=(), sent=(), steps=(step,))

    def _is_wanted(self, target: Reference, record: Locked) -> bool:
        return record.mirrored is not None and record.unwanted is None and self._origins.of(target, record) is not None


def _expected(target: Reference, record: Locked) -> Expected:
    """What should be there. Of an index that was made for some platforms, all that it names should be."""
    return Expected(target=target, digest=record.digest, platforms=record.platforms, referrers=record.referrers)


def _chunked(expected: Iterable[Expected]) -> Iterable[tuple[Expected, ...]]:
    """Tags of one repository together, whose content they share."""
    by_repository = defaultdict[str, list[Expected]](list)
    for one in expected:
        by_repository[one.target.locator].append(one)
    for tags in by_repository.values():
        yield from (tuple(tags[first : first + _MOST_TAGS]) for first in range(0, len(tags), _MOST_TAGS))
