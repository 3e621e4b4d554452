"""Claims of entries on targets, and the conflicts between claims on the same target.

Several entries may claim a target only for the same source and with the same options. In a conflict, the run publishes no image
at the target: any choice would skip the gate, the platforms or the referrers of an entry.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from prefect_dist.mirror.entry import Entry
from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import InvalidInput

# A message names at most this many claims on a target.
_MOST_NAMED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The claim of an entry on a target, for an image."""

    entry: Entry
    source: Reference


class Claims:
    """The claims of entries, by target."""

    def __init__(self) -> None:
        self._by_target = defaultdict[Reference, list[Claim]](list)

    def add(self, entry: Entry, source: Reference, targets: Iterable[Reference]) -> None:
        """Add the claims of an entry on the targets of an image."""
        for target in targets:
            self._by_target[target].append(Claim(entry=entry, source=source))

    def find_conflicts(self) -> dict[Reference, InvalidInput]:
        """Return the targets with a conflict. The error of each target names the claims."""
        found = ((target, _describe_conflict(claims)) for target, claims in self._by_target.items() if len(claims) > 1)
        return {target: InvalidInput(why) for target, why in found if why is not None}

    def find_overlaps(self) -> Iterator[tuple[str, Sequence[Entry]]]:
        """Return the targets that several entries claim without a conflict, with the entries."""
        for target, claims in self._by_target.items():
            entries = list({claim.entry.at: claim.entry for claim in claims}.values())
            if len(entries) > 1 and _describe_conflict(claims) is None:
                yield str(target), entries


class EntryIndex:
    """The entries of a configuration, by source."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._by_source = defaultdict[str, list[Entry]](list)
        for entry in entries:
            self._by_source[entry.source].append(entry)

    def find_first(self, target: Reference, source: Reference) -> Entry | None:
        """Return the first entry that can have mirrored an image from `source` to `target`, None if no entry can."""
        return next(self.find_all(target, source), None)

    def find_all(self, target: Reference, source: Reference) -> Iterator[Entry]:
        """Return the entries that can have mirrored an image from `source` to `target`, with any tags selected now."""
        places = {"image": str(source), "repository": source.locator, "registry": source.host}
        found = (entry for type_, place in places.items() for entry in self._by_source.get(place, ()) if entry.type == type_)
        return (entry for entry in found if target in entry.list_valid_targets(source))


def list_known_conflicts(entries: Sequence[Entry]) -> list[str]:
    """Return a line for each conflict that is certain without a request to a registry.

    The comparison covers entries for single images, entries for the repositories and registries of these images, and entries
    that select equal sets of images.
    """
    lines = [f"{target}: {why}" for target, why in _collect_known_claims(entries).find_conflicts().items()]
    several = (
        (target, _describe_differences(found, found[0].source, None)) for target, found in _group_equal_selections(entries)
    )
    return [*lines, *(f"{target}: {why}" for target, why in several if why is not None)]


def list_known_overlaps(entries: Sequence[Entry]) -> list[str]:
    """Return a line for each target that several entries certainly claim with equal options."""
    several = (
        (target, found)
        for target, found in _group_equal_selections(entries)
        if len({entry.at for entry in found}) > 1 and _describe_differences(found, found[0].source, None) is None
    )
    overlaps = (
        (target, [entry.at for entry in found]) for target, found in (*_collect_known_claims(entries).find_overlaps(), *several)
    )
    return [
        f"{target}: {len(places)} entries publish the same to this target: {_join(places)}; one is enough"
        for target, places in overlaps
    ]


def _collect_known_claims(entries: Sequence[Entry]) -> Claims:
    """Return the claims for single images that are certain without a request to a registry."""
    single = [entry for entry in entries if entry.type == "image"]
    several = [entry for entry in entries if entry.type != "image"]
    by_source = defaultdict[str, list[Entry]](list)
    for entry in several:
        by_source[entry.source].append(entry)
    claims = Claims()
    for entry in single:
        source = Reference.parse(entry.source)
        claims.add(entry, source, entry.list_valid_targets(source))
        for other in (*by_source[source.locator], *by_source[source.host]):
            if _is_certain_to_select(other, source):
                claims.add(other, source, other.list_valid_targets(source))
    return claims


def _describe_conflict(claims: Sequence[Claim]) -> str | None:
    """Return the reason for a conflict between the claims on a target, or None if the claims agree."""
    sources = list({claim.source: claim for claim in claims}.values())
    if len(sources) > 1:
        named = [f"{claim.source} ({claim.entry.at})" for claim in sources]
        return f"expected one source for this target, got {len(named)}: {_join(named)}"
    return _describe_differences([claim.entry for claim in claims], str(claims[0].source), claims[0].source.tag)


def _describe_differences(entries: Sequence[Entry], source: str, tag: str | None) -> str | None:
    """Return a line with the different options of entries with the same source and target, or None for equal options."""
    differing = {name for entry in entries for name in entries[0].list_differing_options(entry, tag)}
    if not differing:
        return None
    places = _join(list(dict.fromkeys(entry.at for entry in entries)))
    return (
        f"expected equal options for {source}, which several entries publish to this target; different: "
        f"{', '.join(sorted(differing))} in {places}; make them equal, or keep only one of these entries"
    )


def _is_certain_to_select(entry: Entry, source: Reference) -> bool:
    """Return whether an entry selects an image, whatever tags the repository has."""
    if source.tag is None or source.digest is not None or entry.tags.is_relative:
        return False
    return entry.repositories.holds(source.repository) and bool(entry.select_tags([source.tag]))


def _group_equal_selections(entries: Sequence[Entry]) -> Iterator[tuple[str, list[Entry]]]:
    """Return the entries that select the same images of a registry or repository for the same target, with the target."""
    groups = defaultdict[object, list[tuple[str, Entry]]](list)
    for entry in entries:
        for naming in entry.targets if entry.type != "image" else ():
            selected = entry.source, entry.type, entry.repositories, entry.tags.sets
            groups[(*selected, naming.template.text, naming.renames)].append((naming.template.text, entry))
    for found in groups.values():
        yield found[0][0], [entry for _, entry in found]


def _join(texts: Sequence[str]) -> str:
    """Return the enumeration of at least two texts."""
    shown = list(texts[:_MOST_NAMED])
    shown += [f"{len(texts) - _MOST_NAMED} more"] if len(texts) > _MOST_NAMED else []
    return f"{', '.join(shown[:-1])} and {shown[-1]}"
