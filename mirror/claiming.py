"""The second stage of planning: claim the targets of images, and admit images after the claims on their targets are complete.

An entry for a whole registry or repository may claim the same targets as a different entry. The claims are complete only after
the source registry is listed. So an image waits for each unlisted registry with a possible claim on a target of the image.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from prefect_dist.mirror.claims import Claims
from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.naming import Naming
from prefect_dist.mirror.plan import PlannedImage, SyncItem
from prefect_dist.mirror.plan_image import fail_image
from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.ocispec.reference import expand

# The sample has two components, because `library/` is added to a single one on Docker Hub.
_REPOSITORY, _TAG = "name/name", "tag"


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """Admitted images of a source registry: `items` are free to be mirrored, `refused` fail because of conflicting claims."""

    host: str
    items: tuple[SyncItem, ...]
    refused: tuple[PlannedImage, ...]


class Claiming:
    """The claims of the entries, by source registry."""

    def __init__(self, entries: Mapping[str, Sequence[Entry]]) -> None:
        self._reach = cache(lambda host: Reach(entries[host]))
        self._unlisted = set(entries)
        self._claims = Claims()
        self._waiting: dict[str, list[SyncItem]] = {}
        self._admitted = set[tuple[Reference, Reference]]()

    @property
    def is_complete(self) -> bool:
        """Return whether every registry is listed, so no image waits."""
        return not self._unlisted

    def claim(self, host: str, items: Sequence[SyncItem]) -> list[Admitted]:
        """Claim the targets of the images of a listed registry. Return the newly admitted images, by registry.

        A later call admits the images that wait for an unlisted registry. The calls return each registry at least once.
        """
        self._unlisted.remove(host)
        self._waiting[host] = list(items)
        for item in items:
            self._claims.add(item.entry, item.source, item.targets)
        admitted = list[Admitted]()
        for name, candidates in tuple(self._waiting.items()):
            clear, waiting = self._divide(candidates)
            if clear or not waiting:
                admitted.append(self._admit(name, clear))
            if waiting:
                self._waiting[name] = waiting
            else:
                del self._waiting[name]
        if self.is_complete:  # no later call needs the claims, which take memory for each target
            self._claims, self._admitted = Claims(), set()
        return admitted

    def _divide(self, items: Iterable[SyncItem]) -> tuple[list[SyncItem], list[SyncItem]]:
        """Return the images without a possible claim of an unlisted registry, and the waiting images."""
        unlisted = [self._reach(host) for host in self._unlisted]
        clear, waiting = list[SyncItem](), list[SyncItem]()
        for item in items:
            is_waiting = any(reach.has(target) for reach in unlisted for target in item.targets)
            (waiting if is_waiting else clear).append(item)
        return clear, waiting

    def _admit(self, host: str, items: Iterable[SyncItem]) -> Admitted:
        """Return the items without targets of earlier items with the same source, and without targets in conflict."""
        conflicts = self._claims.find_conflicts()
        admitted, refused = list[SyncItem](), list[PlannedImage]()
        for item in items:
            new = [target for target in item.targets if (item.source, target) not in self._admitted]
            self._admitted.update((item.source, target) for target in new)
            if clear := tuple(target for target in new if target not in conflicts):
                admitted.append(item if clear == item.targets else replace(item, targets=clear))
            refused += [
                fail_image(replace(item, targets=(target,)), conflicts[target]) for target in new if target in conflicts
            ]
        return Admitted(host=host, items=tuple(admitted), refused=tuple(refused))


class Reach:
    """The target names that entries can claim, as far as the configuration shows before the source registry is listed.

    The reach may be too large, never too small: no entry claims a name out of reach.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._names, prefixes = set[Reference](), set[str]()
        for entry in entries:
            if entry.type == "image":
                self._names.update(entry.list_valid_targets(entry.image))
            else:
                prefixes.update(_list_prefixes(entry))
        self._prefixes = tuple(prefixes)

    def has(self, target: Reference) -> bool:
        """Return whether the name is within reach."""
        return target in self._names or str(target).startswith(self._prefixes)


def _list_prefixes(entry: Entry) -> Iterator[str]:
    for naming in entry.targets:
        if naming.template.refers_to("Ref"):
            yield _literal_prefix(naming)
        else:
            yield _sample_prefix(naming, entry.source, f"/{_REPOSITORY}:{_TAG}" if entry.type == "registry" else f":{_TAG}")


def _sample_prefix(naming: Naming, source: str, varying: str) -> str:
    """Return the common prefix of the names that a naming makes by appending the source's repository or tag."""
    try:
        target = naming.make_name(Reference.parse(f"{source}{varying}"))
    except InvalidInput:  # a rename may make an invalid name of the sample
        return ""
    # Rules of `renames` do not apply to locators with a scheme.
    if str(target).endswith(varying) and (target.scheme or not naming.renames):
        return str(target)[: 1 - len(varying)]
    return "" if target.scheme else f"{target.host}/"


def _literal_prefix(naming: Naming) -> str:
    """Return the common prefix of the names that a template makes: the text before the first action, if the text has a host."""
    host, slash, path = naming.template.text.partition("{{")[0].lstrip().partition("/")
    if not slash:
        return ""
    known = expand(f"{host}/{_REPOSITORY}:{_TAG}")
    is_kept = known.startswith(f"{host}/") and host != "docker.io" and not naming.renames
    return f"{known.partition('/')[0]}/{path if is_kept else ''}"
