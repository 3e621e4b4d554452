"""Tracks the content of each repository, and the repositories that are new in this run."""

from collections import defaultdict
from collections.abc import Iterable
from threading import Lock

from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.errors import DistError
from prefect_dist.remotes import Source
from prefect_dist.transfer.session import Session

# The number of candidates per content: at least one differs from the repository that needs the content. There are several,
# because a registry may mount only between the repositories of one project.
_CANDIDATES = 4
# A repository that had the content stays a candidate after this number of failed mounts in a row.
_PATIENCE = 2


class MountCandidates:
    """The repositories that have some content, because this run uploaded or found the content there.

    Another process may suggest a candidate. A suggestion is not trusted: after one failed mount, it is forgotten for good.

    Thread-safe. Tens of thousands of repositories may have the same base layer, so no method iterates over the repositories of
    some content.
    """

    def __init__(self) -> None:
        self._repositories: defaultdict[tuple[str, Digest], set[str]] = defaultdict(set)
        # The candidates, each with the number of failed mounts after which it stays a candidate.
        self._candidates: defaultdict[tuple[str, Digest], dict[str, int]] = defaultdict(dict)
        self._refused: set[tuple[str, Digest, str]] = set()
        self._guard = Lock()

    def note(self, place: Reference, digest: Digest) -> None:
        """Record that the repository of `place` has this content."""
        with self._guard:
            self._repositories[place.host, digest].add(place.repository)
            self._add(place.host, digest, place.repository, patience=_PATIENCE)

    def suggest(self, host: str, digest: Digest, repository: str) -> None:
        """Add a candidate that another process has recorded, unless a mount from the repository has failed before."""
        with self._guard:
            if (host, digest, repository) not in self._refused and repository not in self._candidates[host, digest]:
                self._add(host, digest, repository, patience=0)

    def note_mount(self, host: str, digest: Digest, source: str, *, is_mounted: bool) -> None:
        """Record the result of a mount from the repository `source`. After a failure, another candidate is preferred."""
        with self._guard:
            known = self._candidates[host, digest]
            if is_mounted:
                self._add(host, digest, source, patience=_PATIENCE)
            elif known.get(source, 0) > 0:
                known[source] -= 1
            else:
                known.pop(source, None)
                self._refused.add((host, digest, source))

    def has(self, place: Reference, digest: Digest) -> bool:
        """Return whether the repository of `place` is known to have this content."""
        return place.repository in self._repositories.get((place.host, digest), ())

    def mount_candidate(self, place: Reference, digest: Digest) -> str | None:
        """Return another repository of the same registry that probably has the content; None if none is known.

        A repository of the same project is preferred, and then a repository without failed mounts.
        """
        with self._guard:
            known, project = self._candidates.get((place.host, digest), {}), _project_of(place.repository)
            others = [repository for repository in known if repository != place.repository]
            return max(others, key=lambda one: (_project_of(one) == project, known[one]), default=None)

    def can_mount(self, host: str, digest: Digest, source: str) -> bool:
        """Return False if mounts of this content from the repository `source` have failed."""
        return (host, digest, source) not in self._refused

    def _add(self, host: str, digest: Digest, repository: str, *, patience: int) -> None:
        known = self._candidates[host, digest]
        if repository in known or len(known) < _CANDIDATES:
            known[repository] = patience


def _project_of(repository: str) -> str:
    """Return the first component of a name of several components."""
    return repository.partition("/")[0] if "/" in repository else ""


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

    def note_upload(self, blob: Descriptor, place: Reference) -> None:
        """Record that a process of this run has probably uploaded a blob to the repository of `place`."""
        self._tried.add((place.locator, blob.digest))


def _is_unknown(source: Source) -> bool:
    """Return True if a registry does not know a repository. A registry that refuses to list tags may still accept a push."""
    try:
        return not source.exists()
    except DistError:
        return False
