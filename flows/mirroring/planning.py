"""Making the plan of a mirror run: what the entries want, what stands for it now."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from prefect import Task
from prefect.utilities.annotations import quote

from flows.limits import Limits
from flows.mirroring.entry import Entry
from flows.mirroring.lock import Records
from flows.mirroring.plan import Image, Plan, Wish, decided, distinct, extras, is_settled, wishes
from flows.progress import Listener
from flows.runner import message, outcome
from ocispec import Reference
from ocispec.errors import DistError
from ocispec.frontier import Frontier
from tasks import mirror as tasks
from tasks.session import Session

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture

T = TypeVar("T")
# What one task looks into: a run that has nothing to do makes next to no tasks.
_MOST_ASKS = 100


class Planning:
    """One run's plan in the making. `tasks` counts the task runs that ended, `origins` are what images were found out by."""

    def __init__(
        self, session: Session, listener: Listener, locked: Records, *, keep: bool, workers: int, retries: int
    ) -> None:
        self.tasks = 0
        self.origins: dict[Image, tasks.Surveyed] = {}
        self._session, self._listener, self._locked = session, listener, locked
        self._keep, self._workers = keep, workers
        self._limits = Limits(retries=retries)
        self._problems: dict[str, str] = {}

    def plan(self, entries: Sequence[Entry]) -> Plan:
        """What is to be done about the entries. What cannot be told is part of it.

        Raises:
            InvalidInput: the entries contradict each other.
        """
        wanted = distinct(self._wanted(entries))
        settled = [wish for wish in wanted if is_settled(wish, self._locked)]
        known = frozenset(map(id, settled))
        images = self._surveyed([wish for wish in wanted if id(wish) not in known])
        content = {d.digest: d for image in images if image.due for d in image.content}
        held = self._session.store.each(self._session.store.holds, content.values())
        still = [*(step.target for image in images for step in image.steps), *(t for wish in settled for t in wish.targets)]
        return Plan(
            images=images,
            extras=extras(still, entries, self._locked, unknown=self._problems),
            problems=self._problems,
            settled=sum(len(wish.targets) for wish in settled),
            missing=frozenset(digest for digest, there in zip(content, held, strict=True) if not there),
            quotas=self._session.registries.quotas(),
        )

    def _wanted(self, entries: Sequence[Entry]) -> list[Wish]:
        repositories = self._repositories(entries)
        tags = self._tags({locator for locators in repositories.values() for locator in locators})
        wanted = list[Wish]()
        for entry in entries:
            if entry.type == "image":
                wanted += wishes(entry, (Reference.parse(entry.source),))
            for locator in repositories.get(entry.at, ()):
                found = tags[locator]
                if isinstance(found, str):
                    self._fail(entry, found)
                else:
                    wanted += wishes(entry, (Reference.parse(f"{locator}:{tag}") for tag in entry.tags.choose(found)))
        return wanted

    def _repositories(self, entries: Iterable[Entry]) -> Mapping[str, Sequence[str]]:
        """The repositories that entries take from, by where the entries stand."""
        asked = [entry for entry in entries if entry.type == "registry"]
        catalogs = self._asked(tasks.repositories, {entry.source: entry.source for entry in asked}, lambda host: host)
        found = {entry.at: [entry.source] for entry in entries if entry.type == "repository"}
        for entry in asked:
            listed = catalogs[entry.source]
            if isinstance(listed, tasks.Repositories):
                found[entry.at] = [f"{entry.source}/{name}" for name in entry.repositories.choose(listed.names)]
            else:
                self._fail(entry, message(listed))
        return found

    def _tags(self, locators: Iterable[str]) -> dict[str, tuple[str, ...] | str]:
        """The tags of repositories, or why they cannot be had."""
        wanted = {locator: Reference.parse(locator) for locator in sorted(locators)}
        found = self._asked(tasks.tags, wanted, lambda reference: reference.host)
        return {key: result.tags if isinstance(result, tasks.Tags) else message(result) for key, result in found.items()}

    def _fail(self, entry: Entry, told: str) -> None:
        """Take note of what an entry's images cannot be told for; with the first reason, if there are several."""
        self._problems.setdefault(entry.at, f"{entry.at}: {told}")

    def _asked(self, task: Task[..., Any], wanted: Mapping[str, T], host: Callable[[T], str]) -> dict[str, object]:
        """What a task answers for each of some arguments, by key, or the error that it ended with."""

        def start(item: tuple[str, T]) -> "PrefectFuture[Any]":
            return self._limits.ready(task, host(item[1])).submit(quote(item[1]))

        frontier: Frontier[tuple[str, T], PrefectFuture[Any]] = Frontier(start, window=self._workers)
        frontier.add(wanted.items())
        found = dict[str, object]()
        for (key, _), future in frontier:
            self.tasks += 1
            found[key] = outcome(future)
        return found

    def _surveyed(self, wanted: Sequence[Wish]) -> tuple[Image, ...]:
        chunks = [tuple(wanted[first : first + _MOST_ASKS]) for first in range(0, len(wanted), _MOST_ASKS)]

        def start(chunk: tuple[Wish, ...]) -> "PrefectFuture[Any]":
            asks = tuple(wish.ask(self._locked) for wish in chunk)
            hosts = {reference.host for ask in asks for reference in (ask.source, *ask.targets)}
            return self._limits.ready(tasks.survey, *hosts).submit(quote(asks), keep=self._keep, workers=self._workers)

        frontier: Frontier[tuple[Wish, ...], PrefectFuture[Any]] = Frontier(start, window=1)  # it works on several by itself
        frontier.add(chunks)
        images, looked_into = list[Image](), 0
        for chunk, future in frontier:
            self.tasks += 1
            looked_into += len(chunk)
            self._listener.planned(looked_into, len(wanted))
            result = outcome(future)
            if not isinstance(result, tasks.Surveyed):
                raise result if isinstance(result, DistError) else RuntimeError(message(result))
            for wish, found in zip(chunk, result.found, strict=True):
                if (image := decided(wish, found, self._locked)) is not None:
                    self.origins[image] = result
                    images.append(image)
        return tuple(images)
