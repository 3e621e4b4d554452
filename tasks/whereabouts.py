"""Which repositories are known to have which content, because this run brought it there or saw it there. No Prefect here.

Content goes once to a registry; its other repositories get it from the one that has it.
"""

from collections import defaultdict

from ocispec import Digest, Reference


class Whereabouts:
    """What was learned in one run. Thread-safe: single steps on sets."""

    def __init__(self) -> None:
        self._repositories: defaultdict[tuple[str, Digest], set[str]] = defaultdict(set)

    def note(self, place: Reference, digest: Digest) -> None:
        """The repository of `place` has this content."""
        self._repositories[place.host, digest].add(place.repository)

    def has(self, place: Reference, digest: Digest) -> bool:
        """Whether the repository of `place` is known to have it."""
        return place.repository in self._repositories.get((place.host, digest), ())

    def beside(self, place: Reference, digest: Digest) -> str | None:
        """Another repository of the same registry that is known to have it."""
        others = self._repositories.get((place.host, digest), ())
        return min((repository for repository in tuple(others) if repository != place.repository), default=None)
