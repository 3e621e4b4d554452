"""The first stage of planning: list a source registry, and select the images of each entry."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.plan import SyncItem, Unnamed
from prefect_dist.mirror.queries import Stage, ask
from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import DistError, InvalidInput
from prefect_dist.transfer import units
from prefect_dist.transfer.pool import Failed, Unit, split_batches

# The number of repositories per task: few tasks for an unchanged mirror.
_BATCH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """The images that an entry selects.

    Attributes:
        sources: the selected images.
        items: the images with valid target names.
        unnamed: the images with an invalid target name.
        problem: the first error of a required list; None if `sources` is complete.
    """

    entry: Entry
    sources: tuple[Reference, ...]
    items: tuple[SyncItem, ...]
    unnamed: tuple[Unnamed, ...]
    problem: DistError | None


def list_registry(host: str, entries: Sequence[Entry], *, workers: int) -> Stage[tuple[Selected, ...]]:
    """List the repositories and tags of a source registry that the entries need. Return the selection of each entry."""
    catalog: tuple[str, ...] | DistError = ()
    if any(entry.type == "registry" for entry in entries):
        outcome = yield from ask(Unit(work=units.list_repositories, arguments=(host,), hosts=frozenset({host})))
        catalog = outcome.error if isinstance(outcome, Failed) else outcome.value.found
    repositories = [_choose_repositories(entry, catalog) for entry in entries]
    tags = yield from _list_tags(host, sorted({one for chosen in repositories for one in chosen}), workers)
    return tuple(_select(entry, chosen, catalog, tags) for entry, chosen in zip(entries, repositories, strict=True))


def _choose_repositories(entry: Entry, catalog: Sequence[str] | DistError) -> list[str]:
    """Return the locators of the repositories that an entry selects tags from."""
    if entry.type == "repository":
        return [entry.source]
    if entry.type != "registry" or isinstance(catalog, DistError):
        return []
    return [f"{entry.source}/{name}" for name in entry.repositories.choose(catalog)]


def _list_tags(host: str, locators: Sequence[str], workers: int) -> Stage[dict[str, tuple[str, ...] | DistError]]:
    """Return the tags of each repository, or the error of the list."""
    tags = dict[str, tuple[str, ...] | DistError]()
    for batch in split_batches([Reference(locator) for locator in locators], _BATCH):
        unit = Unit(work=units.list_tags, arguments=(batch,), options={"workers": workers}, hosts=frozenset({host}))
        outcome = yield from ask(unit)
        found = [outcome.error] * len(batch) if isinstance(outcome, Failed) else outcome.value.found
        tags |= {repository.locator: one for repository, one in zip(batch, found, strict=True)}
    return tags


def _select(
    entry: Entry,
    repositories: Sequence[str],
    catalog: Sequence[str] | DistError,
    tags: Mapping[str, tuple[str, ...] | DistError],
) -> Selected:
    sources = [entry.image] if entry.type == "image" else []
    problem = catalog if entry.type == "registry" and isinstance(catalog, DistError) else None
    for repository in repositories:
        found = tags[repository]
        if isinstance(found, DistError):
            problem = problem or found
        else:
            sources += [Reference(repository).with_tag(tag) for tag in entry.select_tags(found)]
    items, unnamed = list[SyncItem](), list[Unnamed]()
    for source in sources:
        targets = entry.list_targets_and_errors(source)
        unnamed += [Unnamed(entry=entry, source=source, error=one) for one in targets if isinstance(one, InvalidInput)]
        if valid := tuple(one for one in targets if isinstance(one, Reference)):
            items.append(SyncItem(entry=entry, source=source, targets=valid))
    return Selected(entry=entry, sources=tuple(sources), items=tuple(items), unnamed=tuple(unnamed), problem=problem)
