"""Tags that no entry wants and that a run keeps, because their source may only have been emptied."""

from collections.abc import Collection, Sequence

from prefect_dist.mirror.entry import Entry
from prefect_dist.ocispec import Reference

# A message names at most this many repositories.
_MOST_NAMED = 4


class Retention:
    """Decides which unwanted tags are kept, and remembers the source repositories for whose absence they are.

    All tags of the entries in `held` are kept; an entry is identified by its `at`. `selected` has the source repositories
    of which an entry selected a tag: pairs of `at` and a locator.
    """

    def __init__(self, held: Collection[str] = (), selected: Collection[tuple[str, str]] = ()) -> None:
        self._held, self._selected = held, selected
        self._emptied: dict[str, tuple[Entry, set[str]]] = {}

    def keeps(self, origins: Sequence[Entry], source: Reference) -> bool:
        """Return whether an unwanted tag is kept. `origins` are the entries that can have mirrored it from `source`."""
        if any(entry.at in self._held for entry in origins):
            return True
        if any((entry.at, source.locator) in self._selected for entry in origins):
            return False
        takers = [one for one in origins if one.type == "registry" and one.repositories.holds(source.repository)]
        for entry in takers[:1]:
            self._emptied.setdefault(entry.at, (entry, set()))[1].add(source.locator)
        return bool(takers)

    @property
    def notes(self) -> dict[str, str]:
        """Return a line for each entry, by its `at`, of which source repositories were emptied or are missing."""
        return {at: f"{at}: {_note(entry, found)}" for at, (entry, found) in self._emptied.items()}


def _note(entry: Entry, locators: Collection[str]) -> str:
    shown = sorted(locators)[:_MOST_NAMED]
    more = f" and {len(locators) - len(shown)} more" if len(locators) > len(shown) else ""
    note = f"nothing of {', '.join(shown)}{more} is chosen any more"
    if entry.prune is None:
        return note
    return f"{note}, so nothing of that is pruned; to have it pruned, exclude it with repos.deny"
