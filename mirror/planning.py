"""Makes the plan of a mirror run: the images that the entries want, and what their tags stand for now.

Each source registry is listed and surveyed by itself, one task at a time, and registries side by side. As soon as the images of
one are surveyed, they are handed over to be brought to their targets. A registry that makes the run wait delays no image of
another one, except for images at whose targets it may have images of its own: these wait until it is listed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Protocol, TypeVar

from prefect_dist.mirror.claims import Claims
from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.lock import Records
from prefect_dist.mirror.plan import Image, Plan, Unnamed, Wish, decided, distinct, extras, failed, is_trusted, wishes
from prefect_dist.mirror.reach import reach
from prefect_dist.mirror.retention import Retention
from prefect_dist.ocispec import Digest, Reference
from prefect_dist.ocispec.errors import DistError
from prefect_dist.transfer import units
from prefect_dist.transfer.events import Notify, Planned
from prefect_dist.transfer.pool import Failed, Outcome, Unit, split_batches
from prefect_dist.transfer.session import Session
from prefect_dist.transfer.survey import Ask, Found
from prefect_dist.transfer.walk_state import RegistryQuery

T = TypeVar("T")
# What one task asks about: a run that has nothing to do makes next to no tasks.
_MOST_ASKS = 100


class QueryLoop(Protocol):
    """The loop that queries run in."""

    def query(self, queries: Iterable[RegistryQuery], /) -> None:
        """Add queries."""


class Receiver(Protocol):
    """Takes what is planned, from the loop that queries run in."""

    def planned(self, images: Sequence[Image], origins: Mapping[Image, units.Surveyed], /) -> None:
        """Some images of a registry are planned; `origins` are the results that they were planned by."""

    def completed(self, plan: Plan, /) -> None:
        """All registries are planned."""


@dataclass(eq=False, slots=True, kw_only=True)
class _Host:
    """A source registry: its entries, what is known of it, and how many answers are awaited.

    `held` are its images that wait for other registries to be listed.
    """

    name: str
    entries: list[Entry]
    repositories: dict[str, list[str]] = field(default_factory=dict)
    tags: dict[str, tuple[str, ...] | DistError] = field(default_factory=dict)
    held: list[Wish] = field(default_factory=list)
    awaited: int = 0


@dataclass(eq=False, slots=True, kw_only=True)
class _Batch:
    """Images of a source registry that are surveyed and handed over together, and how many answers are awaited."""

    name: str
    images: list[Image] = field(default_factory=list)
    origins: dict[Image, units.Surveyed] = field(default_factory=dict)
    awaited: int = 0


Asker = TypeVar("Asker", _Host, _Batch)


class Planning:
    """One run's plan in the making."""

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
        self._images, self._trusted, self._missing = list[Image](), list[Wish](), set[Digest]()
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
                self._ask(host, units.list_repositories, host.name, {host.name}, self._take_catalog)
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
        for chunk in split_batches([Reference.parse(locator) for locator in locators], _MOST_ASKS):
            self._ask(host, units.list_tags, chunk, {host.name}, self._take_tags, workers=self._workers)
        if not locators:
            self._select(host)

    def _take_tags(self, host: _Host, chunk: tuple[Reference, ...], outcome: Outcome) -> None:
        tags = [outcome.error] * len(chunk) if isinstance(outcome, Failed) else outcome.value.found
        host.tags |= {repository.locator: one for repository, one in zip(chunk, tags, strict=True)}
        if not host.awaited:
            self._select(host)

    def _select(self, host: _Host) -> None:
        """Select the images of a registry that is listed."""
        for entry in host.entries:
            chosen = list(self._chosen(entry, host))
            self._selected.update((entry.at, source.locator) for source in chosen)
            named, unnamed = wishes(entry, chosen)
            host.held += named
            self._unnamed += unnamed
            for wish in named:
                self._claims.add(entry, wish.source, wish.targets)
            if not chosen and entry.at not in self._problems:
                held = ", so nothing that it brought is pruned" if entry.prune is not None else ""
                self._idle[entry.at] = f"{entry.at}: nothing of {entry.source} is chosen{held}"
        del self._unlisted[host]
        self._listed.append(host)
        self._release()

    def _chosen(self, entry: Entry, host: _Host) -> Iterator[Reference]:
        """The images that an entry selects of its repositories, whose tags are known or why they cannot be had."""
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
            held = [wish for wish in host.held if any(one.has(target) for one in unlisted for target in wish.targets)]
            waiting = frozenset(map(id, held))
            clear = [wish for wish in host.held if id(wish) not in waiting]
            if held and not clear:
                continue
            batch, host.held = _Batch(name=host.name), held
            self._open.add(batch)
            if not held:
                self._listed.remove(host)
                self._open.remove(host)
            self._survey(batch, clear)

    def _survey(self, batch: _Batch, wishes: Sequence[Wish]) -> None:
        wanted, batch.images = distinct(wishes, self._claims, self._seen)
        trusted = [wish for wish in wanted if is_trusted(wish, self._locked)]
        self._trusted += trusted
        known = frozenset(map(id, trusted))
        asks = {wish.ask(self._locked): wish for wish in wanted if id(wish) not in known}
        self._wanted += len(asks)
        for chunk in split_batches(list(asks), _MOST_ASKS):
            take = partial(self._take_survey, wishes={ask: asks[ask] for ask in chunk})
            self._ask(batch, units.survey, chunk, _places(chunk), take, keep=self._keep, workers=self._workers)
        if not asks:
            self._hand_over(batch)

    def _take_survey(self, batch: _Batch, chunk: tuple[Ask, ...], outcome: Outcome, *, wishes: Mapping[Ask, Wish]) -> None:
        self._looked_into += len(chunk)
        self._notify(Planned(self._looked_into, self._wanted))
        for found in _found(chunk, outcome):
            if (image := decided(wishes[found.ask], found, self._locked)) is not None:
                batch.images.append(image)
                if not isinstance(outcome, Failed):
                    batch.origins[image] = outcome.value
        if not batch.awaited:
            self._hand_over(batch)

    def _hand_over(self, batch: _Batch) -> None:
        """Hand over images, all of which are surveyed. They fail if the store cannot be read."""
        content = {descriptor.digest: descriptor for image in batch.images if image.is_needed for descriptor in image.content}
        try:
            held = list(self._session.store.each(self._session.store.holds, content.values()))
        except DistError as exc:
            batch.images = [failed(image.wish, exc) if image.is_needed else image for image in batch.images]
        else:
            self._missing.update(digest for digest, there in zip(content, held, strict=True) if not there)
        self._images += batch.images
        self._open.discard(batch)
        plan = None if self._open else self._plan()  # before anything of this registry is brought
        self._receiver.planned(batch.images, batch.origins)
        if plan is not None:
            self._receiver.completed(plan)

    def _plan(self) -> Plan:
        order = {id(entry): number for number, entry in enumerate(self._entries)}
        images = tuple(sorted(self._images, key=lambda image: order[id(image.wish.entry)]))
        trusted = [target for wish in self._trusted for target in wish.targets]
        # That nothing is chosen is a mistake, or an upstream that was emptied: no reason to remove everything.
        held = self._problems.keys() | self._idle.keys() | {entry.at for entry in self._others}
        retention = Retention(held, self._selected)
        extra = extras(images, trusted, (*self._entries, *self._others), self._locked, retention=retention)
        return Plan(
            images=images,
            extras=extra,
            problems=self._in_order(self._problems),
            unnamed=tuple(self._unnamed),
            idle=tuple(self._in_order({**retention.notes, **self._idle}).values()),
            settled=sum(len(wish.targets) for wish in self._trusted),
            missing=frozenset(self._missing),
            quotas=self._session.registries.quotas(),
            is_dry=not self._keep,
        )

    def _in_order(self, told: Mapping[str, str]) -> dict[str, str]:
        return {entry.at: told[entry.at] for entry in self._entries if entry.at in told}

    def _ask(
        self,
        asker: Asker,
        work: Callable[..., Any],
        argument: T,
        hosts: Iterable[str],
        take: Callable[[Asker, T, Outcome], None],
        **options: object,
    ) -> None:
        """Add a query. `take` gets its outcome, once the asker awaits one less."""

        def take_outcome(outcome: Outcome) -> None:
            asker.awaited -= 1
            take(asker, argument, outcome)

        asker.awaited += 1
        unit = Unit(work=work, arguments=(argument,), options=options, hosts=frozenset(hosts))
        self._loop.query([RegistryQuery(lane=asker.name, unit=unit, take=take_outcome)])


def _found(chunk: tuple[Ask, ...], outcome: Outcome) -> Sequence[Found]:
    """Return what a survey found. If it failed, its error is the result for each image."""
    if not isinstance(outcome, Failed):
        found: Sequence[Found] = outcome.value.found
        return found
    error = outcome.error
    return [Found(ask=ask, image=error, standing=(error,) * len(ask.targets)) for ask in chunk]


def _places(asks: Iterable[Ask]) -> set[str]:
    return {reference.host for ask in asks for reference in (ask.source, *ask.targets)}
