"""Making the plan of a mirror run: what the entries want, what stands for it now."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from prefect import Task
from prefect.utilities.annotations import quote

from flows.limits import Limits
from flows.mirroring.entry import Entry
from flows.mirroring.lock import Records
from flows.mirroring.plan import Image, Plan, Unnamed, Wish, decided, distinct, extras, is_trusted, wishes
from flows.progress import Listener
from flows.runner import message, outcome
from ocispec import Reference
from ocispec.errors import DistError
from ocispec.frontier import Frontier
from tasks import mirror as tasks
from tasks.session import Session
from tasks.survey import Ask

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture

T = TypeVar("T")
# What one task asks about: a run that has nothing to do makes next to no tasks.
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
        self._idle: dict[str, str] = {}
        self._unnamed: list[Unnamed] = []

    def plan(self, entries: Sequence[Entry]) -> Plan:
        """The plan for the entries. Images and entries that cannot be planned are part of it, with the reason."""
        wanted, refused = distinct(self._wanted(entries))
        settled = [wish for wish in wanted if is_trusted(wish, self._locked)]
        known = frozenset(map(id, settled))
        images = (*self._surveyed([wish for wish in wanted if id(wish) not in known]), *refused)
        content = {d.digest: d for image in images if image.is_needed for d in image.content}
        held = self._session.store.each(self._session.store.holds, content.values())
        still = [*(step.target for image in images for step in image.steps), *(t for wish in settled for t in wish.targets)]
        return Plan(
            images=images,
            # That nothing at all is chosen is a mistake, or an upstream that was emptied: no reason to remove everything.
            extras=extras(still, entries, self._locked, held=self._problems.keys() | self._idle.keys()),
            problems=self._problems,
            unnamed=tuple(self._unnamed),
            idle=tuple(self._idle.values()),
            settled=sum(len(wish.targets) for wish in settled),
            missing=frozenset(digest for digest, there in zip(content, held, strict=True) if not there),
            quotas=self._session.registries.quotas(),
        )

    def _wanted(self, entries: Sequence[Entry]) -> list[Wish]:
        repositories = self._repositories(entries)
        tags = self._tags({locator for locators in repositories.values() for locator in locators})
        wanted = list[Wish]()
        for entry in entries:
            chosen = list(self._chosen(entry, repositories.get(entry.at, ()), tags))
            named, unnamed = wishes(entry, chosen)
            wanted += named
            self._unnamed += unnamed
            if not chosen and entry.at not in self._problems:
                held = ", so nothing that it brought is pruned" if entry.prune is not None else ""
                self._idle[entry.at] = f"{entry.at}: nothing of {entry.source} is chosen{held}"
        return wanted

    def _chosen(self, entry: Entry, locators: Iterable[str], tags: Mapping[str, tuple[str, ...] | str]) -> Iterator[Reference]:
        """The images that an entry chooses of its repositories, whose tags are known or why they cannot be had."""
        if entry.type == "image":
            yield Reference.parse(entry.source)
        for locator in locators:
            found = tags[locator]
            if isinstance(found, str):
                self._fail(entry, found)
            else:
                yield from (Reference.parse(f"{locator}:{tag}") for tag in entry.chosen(found))

    def _repositories(self, entries: Iterable[Entry]) -> Mapping[str, Sequence[str]]:
        """The repositories that entries take from, by where the entries stand."""
        asked = [entry for entry in entries if entry.type == "registry"]
        hosts = dict.fromkeys(entry.source for entry in asked)
        catalogs = dict(self._answers(tasks.repositories, hosts, lambda host: (host,), window=self._workers))
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
        chunks = _chunked([Reference.parse(locator) for locator in sorted(locators)])
        found = dict[str, tuple[str, ...] | str]()
        for chunk, result in self._answers(tasks.tags, chunks, _hosts, window=1, workers=self._workers):
            tags = result.found if isinstance(result, tasks.Tags) else [result] * len(chunk)
            for repository, one in zip(chunk, tags, strict=True):
                found[repository.locator] = one if isinstance(one, tuple) else message(one)
        return found

    def _fail(self, entry: Entry, told: str) -> None:
        """Take note of what an entry's images cannot be told for; with the first reason, if there are several."""
        self._problems.setdefault(entry.at, f"{entry.at}: {told}")

    def _surveyed(self, wanted: Sequence[Wish]) -> tuple[Image, ...]:
        asks = {wish.ask(self._locked): wish for wish in wanted}
        images, looked_into = list[Image](), 0
        for chunk, result in self._answers(
            tasks.survey, _chunked(list(asks)), _places, window=1, keep=self._keep, workers=self._workers
        ):
            looked_into += len(chunk)
            self._listener.planned(looked_into, len(wanted))
            if not isinstance(result, tasks.Surveyed):
                raise result if isinstance(result, DistError) else RuntimeError(message(result))
            for found in result.found:
                if (image := decided(asks[found.ask], found, self._locked)) is not None:
                    self.origins[image] = result
                    images.append(image)
        return tuple(images)

    def _answers(
        self, task: Task[..., Any], asks: Iterable[T], hosts: Callable[[T], Iterable[str]], *, window: int, **options: Any
    ) -> Iterator[tuple[T, Any]]:
        """What a task answers to each of some questions, or the error that it ended with, as these come.

        A task that works on several things by itself is given to one worker at a time.
        """

        def start(ask: T) -> "PrefectFuture[Any]":
            future: PrefectFuture[Any] = self._limits.ready(task, *hosts(ask)).submit(quote(ask), **options)
            return future

        frontier: Frontier[T, PrefectFuture[Any]] = Frontier(start, window=window)
        frontier.add(asks)
        for ask, future in frontier:
            self.tasks += 1
            yield ask, outcome(future)


def _chunked(things: Sequence[T]) -> list[tuple[T, ...]]:
    return [tuple(things[first : first + _MOST_ASKS]) for first in range(0, len(things), _MOST_ASKS)]


def _hosts(repositories: Iterable[Reference]) -> set[str]:
    return {repository.host for repository in repositories}


def _places(asks: Iterable[Ask]) -> set[str]:
    return {reference.host for ask in asks for reference in (ask.source, *ask.targets)}
