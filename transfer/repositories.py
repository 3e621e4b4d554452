"""Tracks the content of each repository, and the repositories that are new in this run."""

from collections import defaultdict
from collections.abc import Iterable
from threading import Lock

from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.errors import DistError
from prefect_dist.remotes import Source
from prefect_dist.transfer.session import Session

# The number of candidates per content: at least one differs from the repository that needs the content.
_CANDIDATES = 2


class MountCandidates:
    """The repositories that have some content, because this run uploaded or found the content there.

    Thread-safe: the state is changed in single steps. Tens of thousands of repositories may have the same base layer, so no
    method iterates over the repositories of some content.
    """

    def __init__(self) -> None:
        self._repositories: defaultdict[tuple[str, Digest], set[str]] = defaultdict(set)
        self._candidates: dict[tuple[str, Digest], tuple[str, ...]] = {}

    def note(self, place: Reference, digest: Digest) -> None:
        """Record that the repository of `place` has this content."""
        key = place.host, digest
        self._repositories[key].add(place.repository)
        known = self._candidates.get(key, ())
        if len(known) < _CANDIDATES and place.repository not in known:
            self._candidates[key] = (*known, place.repository)

    def has(self, place: Reference, digest: Digest) -> bool:
        """Return whether the repository of `place` is known to have this content."""
        return place.repository in self._repositories.get((place.host, digest), ())

    def mount_candidate(self, place: Reference, digest: Digest) -> str | None:
        """Return another repository of the same registry with the content: one of the first in the record."""
        known = self._candidates.get((place.host, digest), ())
        return next((repository for repository in known if repository != place.repository), None)


class NewRepositories:
    """The repositories that had no content before this run. A run sends no HEAD for the tags and blobs of such a repository.

    A repository is new if the registry does not know the repository, and if no run may have uploaded to the repository before.
    The second condition is needed because some registries know a repository only by its tags, and an earlier run may have ended
    before it set a tag.

    Thread-safe.
    """

    def __init__(self) -> None:
        self._known: frozenset[str] | None = None
        self._new: dict[str, bool] = {}
        self._tried: set[tuple[str, Digest]] = set()
        self._locks: dict[str, Lock] = {}

    def exclude(self, known: Iterable[Reference]) -> None:
        """Exclude the repositories of all targets that earlier runs recorded. Without this call, no repository is new."""
        self._known = frozenset(target.locator for target in known)

    def list_new(self) -> frozenset[str]:
        """Return the locators of the repositories that are known to be new."""
        return frozenset(locator for locator, is_new in self._new.items() if is_new)

    def accept(self, new: Iterable[str]) -> None:
        """Record new repositories that the parent of a divided run has found, by their locators."""
        self._new = dict.fromkeys(new, True)

    def has(self, session: Session, place: Reference) -> bool:
        """Return True if the repository of `place` is new. The first call for a repository sends a request."""
        if (is_new := self._new.get(place.locator)) is not None:
            return is_new
        if self._known is None or place.locator in self._known:
            return False
        with self._locks.setdefault(place.locator, Lock()):
            if place.locator not in self._new:
                self._new[place.locator] = _is_unknown(session.remotes.open_origin(place))
            return self._new[place.locator]

    def lacks(self, session: Session, blob: Descriptor, place: Reference) -> bool:
        """Return True if the repository of `place` is new, and this run has not tried to upload the blob."""
        if (place.locator, blob.digest) in self._tried or not self.has(session, place):
            return False
        self._tried.add((place.locator, blob.digest))
        return True


def _is_unknown(source: Source) -> bool:
    """Return True if a registry does not know a repository. A registry that refuses to list tags may still accept a push."""
    try:
        return not source.exists()
    except DistError:
        return False
