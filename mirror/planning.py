"""Makes the plan of a mirror run: the images that the entries want, and what their tags resolve to now.

Each source registry is listed and surveyed by itself, one task at a time; several registries are in progress at a time. As soon
as the images of a registry are surveyed, they are handed over to be mirrored. A registry that makes the run wait delays no
image of another one, except for images at whose targets it may have images of its own: these wait until it is listed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Protocol, TypeVar

from prefect_dist.mirror.claims import Claims
from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.lock import Records
from prefect_dist.mirror.plan import (
    Plan,
    PlannedImage,
    SyncItem,
    Unnamed,
    distinct,
    fail_image,
    find_orphans,
    is_trusted,
    list_sync_items,
    plan_image,
)
from prefect_dist.mirror.reach import reach
from prefect_dist.mirror.retention import Retention
from prefect_dist.ocispec import Digest, Reference
from prefect_dist.ocispec.errors import DistError
from prefect_dist.transfer import units
from prefect_dist.transfer.events import Notify, Planned
from prefect_dist.transfer.pool import Failed, Outcome, Unit, split_batches
from prefect_dist.transfer.session import Session
from prefect_dist.transfer.survey import ImageQuery, QueryResult
from prefect_dist.transfer.walk_state import RegistryQuery

T = TypeVar("T")
# The number of images or repositories of one task: a run that has nothing to do makes next to no tasks.
_MOST_QUERIED = 100


class QueryLoop(Protocol):
    """The loop that queries run in."""

    def query(self, queries: Iterable[RegistryQuery], /) -> None:
        """Add queries."""


class Receiver(Protocol):
    """Takes planned images, from the loop that queries run in."""

    def take_images(self, images: Sequence[PlannedImage], origins: Mapping[PlannedImage, units.Surveyed], /) -> None:
        """Take images of a registry that are planned; `origins` are the results that they were planned by."""

    def take_plan(self, plan: Plan, /) -> None:
        """Take the plan of all registries."""


@dataclass(eq=False, slots=True, kw_only=True)
class _Host:
    """A source registry: its entries, its tags as far as they are known, and the number of open queries.

    `held` are its images that wait for other registries to be listed.
    """

    name: str
    entries: list[Entry]
    repositories: dict[str, list[str]] = field(default_factory=dict)
    tags: dict[str, tuple[str, ...] | DistError] = field(default_factory=dict)
    held: list[SyncItem] = field(default_factory=list)
    open_queries: int = 0


@dataclass(eq=False, slots=True, kw_only=True)
class _Batch:
    """Images of a source registry that are surveyed and handed over together, and the number of open queries."""

    name: str
    images: list[PlannedImage] = field(default_factory=list)
    origins: dict[PlannedImage, units.Surveyed] = field(default_factory=dict)
    open_queries: int = 0


Requester = TypeVar("Requester", _Host, _Batch)


class Planning:
    """Makes the plan of one run."""

    def __init__(
        self,
        session: Session,
        notify: Notify,
        locked: Records,
        *,
        loop: QueryLoop,
        receiver: Receiver,
        keep: bool,
        workers: int,
    ) -> None:
        self._session, self._notify, self._locked = session, notify, locked
        self._loop, self._receiver = loop, receiver
        self._keep, self._workers = keep, workers
        self._entries: Sequence[Entry] = ()
        self._others: Sequence[Entry] = ()
        self._claims = Claims()
        self._unlisted, self._listed, self._open = dict[_Host, None](), list[_Host](), set[_Host | _Batch]()
        self._reach = cache(lambda host: reach(host.entries))
        self._seen = set[tuple[Reference, Reference]]()
        self._images, self._trusted, self._missing = list[PlannedImage](), list[SyncItem](), set[Digest]()
        self._wanted = self._looked_into = 0
        self._problems: dict[str, str] = {}
        self._idle: dict[str, str] = {}
        self._selected = set[tuple[str, str]]()
        self._unnamed: list[Unnamed] = []

    def begin(self, entries: Sequence[Entry], others: Sequence[Entry] = ()) -> None:
        """Begin to plan the entries. Images and entries that cannot be planned are part of the plan, with the reason.

        `others` are entries that share the lock file and that another run carries out: they want all that they ever had.
        """
        self._entries, self._others = entries, others
        hosts = dict[str, _Host]()
        for entry in entries:
            hosts.setdefault(entry.source_host, _Host(name=entry.source_host, entries=[])).entries.append(entry)
        self._unlisted, self._open = dict.fromkeys(hosts.values()), set(hosts.values())
        for host in hosts.values():
            host.repositories = {entry.at: [entry.source] for entry in host.entries if entry.type == "repository"}
            if any(entry.type == "registry" for entry in host.entries):
                self._add_query(host, units.list_repositories, host.name, {host.name}, self._take_catalog)
            else:
                self._list_tags(host)

    def _take_catalog(self, host: _Host, _: str, outcome: Outcome) -> None:
        for entry in (one for one in host.entries if one.type == "registry"):
            if isinstance(outcome, Failed):
                self._fail(entry, outcome.error)
            else:
                chosen = entry.repositories.choose(outcome.value.names)
                host.repositories[entry.at] = [f"{entry.source}/{name}" for name in chosen]
        self._list_tags(host)

    def _list_tags(self, host: _Host) -> None:
        locators = sorted({locator for found in host.repositories.values() for locator in found})
        for chunk in split_batches([Reference.parse(locator) for locator in locators], _MOST_QUERIED):
            self._add_query(host, units.list_tags, chunk, {host.name}, self._take_tags, workers=self._workers)
        if not locators:
            self._select(host)

    def _take_tags(self, host: _Host, chunk: tuple[Reference, ...], outcome: Outcome) -> None:
        tags = [outcome.error] * len(chunk) if isinstance(outcome, Failed) else outcome.value.found
        host.tags |= {repository.locator: one for repository, one in zip(chunk, tags, strict=True)}
        if not host.open_queries:
            self._select(host)

    def _select(self, host: _Host) -> None:
        """Select the images of a registry that is listed."""
        for entry in host.entries:
            chosen = list(self._chosen(entry, host))
            self._selected.update((entry.at, source.locator) for source in chosen)
            named, unnamed = list_sync_items(entry, chosen)
            host.held += named
            self._unnamed += unnamed
            for item in named:
                self._claims.add(entry, item.source, item.targets)
            if not chosen and entry.at not in self._problems:
                held = ", so nothing that it brought is pruned" if entry.prune is not None else ""
                self._idle[entry.at] = f"{entry.at}: nothing of {entry.source} is chosen{held}"
        del self._unlisted[host]
        self._listed.append(host)
        self._release()

    def _chosen(self, entry: Entry, host: _Host) -> Iterator[Reference]:
        """Return the images that an entry selects. The error of a list is kept as the problem of the entry."""
        if entry.type == "image":
            yield Reference.parse(entry.source)
        for locator in host.repositories.get(entry.at, ()):
            found = host.tags[locator]
            if isinstance(found, DistError):
                self._fail(entry, found)
            else:
                yield from (Reference.parse(f"{locator}:{tag}") for tag in entry.chosen(found))

    def _fail(self, entry: Entry, error: DistError) -> None:
        """Keep the reason why an entry's images are not known; the first one, if there are several."""
        self._problems.setdefault(entry.at, f"{entry.at}: {error}")

    def _release(self) -> None:
        """Survey the images of listed registries, except at targets where an unlisted registry may have images of its own."""
        unlisted = [self._reach(host) for host in self._unlisted]
        for host in tuple(self._listed):
            held = [item for item in host.held if any(one.has(target) for one in unlisted for target in item.targets)]
            waiting = frozenset(map(id, held))
            clear = [item for item in host.held if id(item) not in waiting]
            if held and not clear:
                continue
            batch, host.held = _Batch(name=host.name), held
            self._open.add(batch)
            if not held:
                self._listed.remove(host)
                self._open.remove(host)
            self._survey(batch, clear)

    def _survey(self, batch: _Batch, items: Sequence[SyncItem]) -> None:
        wanted, batch.images = distinct(items, self._claims, self._seen)
        trusted = [item for item in wanted if is_trusted(item, self._locked)]
        self._trusted += trusted
        known = frozenset(map(id, trusted))
        queries = {item.query(self._locked): item for item in wanted if id(item) not in known}
        self._wanted += len(queries)
        for chunk in split_batches(list(queries), _MOST_QUERIED):
            take = partial(self._take_survey, items={query: queries[query] for query in chunk})
            self._add_query(batch, units.survey, chunk, _places(chunk), take, keep=self._keep, workers=self._workers)
        if not queries:
            self._hand_over(batch)

    def _take_survey(
        self, batch: _Batch, chunk: tuple[ImageQuery, ...], outcome: Outcome, *, items: Mapping[ImageQuery, SyncItem]
    ) -> None:
        self._looked_into += len(chunk)
        self._notify(Planned(self._looked_into, self._wanted))
        for found in _found(chunk, outcome):
            if (image := plan_image(items[found.query], found, self._locked)) is not None:
                batch.images.append(image)
                if not isinstance(outcome, Failed):
                    batch.origins[image] = outcome.value
        if not batch.open_queries:
            self._hand_over(batch)

    def _hand_over(self, batch: _Batch) -> None:
        """Hand over images, all of which are surveyed. They fail if the store cannot be read."""
        content = {descriptor.digest: descriptor for image in batch.images if image.is_needed for descriptor in image.content}
        try:
            held = list(self._session.store.each(self._session.store.holds, content.values()))
        except DistError as exc:
            batch.images = [fail_image(image.item, exc) if image.is_needed else image for image in batch.images]
        else:
            self._missing.update(digest for digest, there in zip(content, held, strict=True) if not there)
        self._images += batch.images
        self._open.discard(batch)
        plan = None if self._open else self._plan()  # before any content of this registry is uploaded
        self._receiver.take_images(batch.images, batch.origins)
        if plan is not None:
            self._receiver.take_plan(plan)

    def _plan(self) -> Plan:
        order = {id(entry): number for number, entry in enumerate(self._entries)}
        images = tuple(sorted(self._images, key=lambda image: order[id(image.item.entry)]))
        trusted = [target for item in self._trusted for target in item.targets]
        # That nothing is chosen is a mistake, or an upstream that was emptied: no reason to remove everything.
        held = self._problems.keys() | self._idle.keys() | {entry.at for entry in self._others}
        retention = Retention(held, self._selected)
        orphans = find_orphans(images, trusted, (*self._entries, *self._others), self._locked, retention=retention)
        return Plan(
            images=images,
            orphans=orphans,
            problems=self._in_order(self._problems),
            unnamed=tuple(self._unnamed),
            idle=tuple(self._in_order({**retention.notes, **self._idle}).values()),
            settled=sum(len(item.targets) for item in self._trusted),
            missing=frozenset(self._missing),
            quotas=self._session.registries.quotas(),
            is_dry=not self._keep,
        )

    def _in_order(self, lines: Mapping[str, str]) -> dict[str, str]:
        return {entry.at: lines[entry.at] for entry in self._entries if entry.at in lines}

    def _add_query(
        self,
        requester: Requester,
        work: Callable[..., Any],
        argument: T,
        hosts: Iterable[str],
        take: Callable[[Requester, T, Outcome], None],
        **options: object,
    ) -> None:
        """Add a query. `take` gets its outcome, after the number of open queries is updated."""

        def take_outcome(outcome: Outcome) -> None:
            requester.open_queries -= 1
            take(requester, argument, outcome)

        requester.open_queries += 1
        unit = Unit(work=work, arguments=(argument,), options=options, hosts=frozenset(hosts))
        self._loop.query([RegistryQuery(lane=requester.name, unit=unit, take=take_outcome)])


def _found(chunk: tuple[ImageQuery, ...], outcome: Outcome) -> Sequence[QueryResult]:
    """Return what a survey found. If it failed, its error is the result for each image."""
    if not isinstance(outcome, Failed):
        found: Sequence[QueryResult] = outcome.value.found
        return found
    error = outcome.error
    return [QueryResult(query=query, image=error, standing=(error,) * len(query.targets)) for query in chunk]


def _places(queries: Iterable[ImageQuery]) -> set[str]:
    return {reference.host for query in queries for reference in (query.source, *query.targets)}
