"""Repositories that are known to have some content, because this run uploaded it there or found it there.

Content is uploaded once to a registry. Its other repositories mount it from one that has it.
"""

from collections import defaultdict

from prefect_dist.ocispec import Digest, Reference

# Enough to have one that is not the repository itself.
_CANDIDATES = 2


class Whereabouts:
    """The knowledge of one run. Thread-safe: its state is changed in single steps.

    A base layer may be in tens of thousands of repositories, so no method looks at all repositories of some content.
    """

    def __init__(self) -> None:
        self._repositories: defaultdict[tuple[str, Digest], set[str]] = defaultdict(set)
        self._candidates: dict[tuple[str, Digest], tuple[str, ...]] = {}

    def note(self, place: Reference, digest: Digest) -> None:
        """Remember that the repository of `place` has this content."""
        key = place.host, digest
        self._repositories[key].add(place.repository)
        known = self._candidates.get(key, ())
        if len(known) < _CANDIDATES and place.repository not in known:
            self._candidates[key] = (*known, place.repository)

    def has(self, place: Reference, digest: Digest) -> bool:
        """Whether the repository of `place` is known to have it."""
        return place.repository in self._repositories.get((place.host, digest), ())

    def mount_candidate(self, place: Reference, digest: Digest) -> str | None:
        """Another repository of the same registry that is known to have it: one of the first that were noted."""
        known = self._candidates.get((place.host, digest), ())
        return next((repository for repository in known if repository != place.repository), None)
