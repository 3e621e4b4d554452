"""Finds the entries of a configuration that can have mirrored an image to a target."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.lock import Locked
from prefect_dist.ocispec import Reference


class EntryIndex:
    """The entries of a configuration, by their source."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._by_source = defaultdict[str, list[Entry]](list)
        for entry in entries:
            self._by_source[entry.source].append(entry)

    def first(self, target: Reference, record: Locked) -> Entry | None:
        """Return the first entry that can have mirrored the image to the target, None if there is none."""
        return next(self.all(target, record), None)

    def all(self, target: Reference, record: Locked) -> Iterator[Entry]:
        """Return all entries whose source has the image, chosen or not, and whose names for it include the target."""
        source = Reference.parse(record.source)
        places = {"image": str(source), "repository": source.locator, "registry": source.host}
        found = (entry for type_, place in places.items() for entry in self._by_source.get(place, ()) if entry.type == type_)
        return (entry for entry in found if target in entry.valid_targets(source))
