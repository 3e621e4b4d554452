"""Manifests that are related to a subject, such as signatures and bills of materials."""

import logging
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock
from typing import Generic, TypeVar

from prefect_dist.ocispec import Descriptor, Digest, Reference, manifest
from prefect_dist.ocispec.errors import Corrupt, DistError, InvalidInput, NotFound, Unsupported
from prefect_dist.ocispec.referrers import MAX_REFERRERS, Referrer, ReferrerFilter, is_cosign_tag
from prefect_dist.remotes import Source

K = TypeVar("K")
V = TypeVar("V")
_log = logging.getLogger(__name__)
# A list with more entries that are not about its subject is forged as a whole; each costs a request.
_MAX_UNRELATED = 100
# Of a list with more tags, requesting digest tags one by one costs less.
_MAX_LISTED = 20_000
_Filters = frozenset[ReferrerFilter]
# Source or target, the repository there, and the subject.
_Key = tuple[str, str, Digest]
# Reads the manifest of a descriptor, verified.
Read = Callable[[Descriptor], bytes]


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Related:
    """The related manifests that are wanted with an image. It is false if none are wanted.

    Attributes:
        listed: those in the registry's list of referrers, or under the fallback tag.
        tagged: those under cosign's digest tags.
        filters: conditions, one of which a listed manifest has to meet, at each level of referrers; empty accepts all.
    """

    listed: bool = False
    tagged: bool = False
    filters: _Filters = frozenset()

    def __bool__(self) -> bool:
        """Return whether any are wanted."""
        return self.listed or self.tagged

    @property
    def options(self) -> tuple[str, ...]:
        """Return the options that are set, as a lock file records them."""
        filters = sorted(f"referrerFilters {one}" for one in self.filters)
        return (*(["referrers"] if self.listed else []), *(["digestTags"] if self.tagged else []), *filters)

    def accepts(self, listed: Descriptor) -> bool:
        """Return whether a listed manifest is wanted."""
        return not self.filters or any(one.matches(listed) for one in self.filters)


NOTHING, EVERYTHING = Related(), Related(listed=True, tagged=True)


class SharedAnswers(Generic[K, V]):
    """Answers by key, each computed once; threads that need the same one wait for it. Errors are not kept. Thread-safe."""

    def __init__(self) -> None:
        self._guard = Lock()
        self._answers: dict[K, Future[V]] = {}

    def get(self, key: K, compute: Callable[[], V]) -> V:
        """Return the answer for `key`; `compute` gives it if there is none yet.

        Raises:
            BaseException: the error of `compute`, also in threads that waited for it. The next call computes again.
        """
        with self._guard:
            is_known = key in self._answers
            answer = self._answers.setdefault(key, Future())
        if not is_known:
            try:
                answer.set_result(compute())
            except BaseException as exc:
                with self._guard:
                    del self._answers[key]
                answer.set_exception(exc)
                raise
        return answer.result()


class RelatedLookup:
    """Looks up related manifests at sources and targets: once per subject and repository of a run. Thread-safe.

    `source` and `target` give access to the repository of a reference. `tags` lists the tags of a repository as its registry
    does, not as a mirror of that registry does: a mirror may list only the tags that somebody requested there. An `offline`
    source is the store, which has its own related manifests for each name.
    """

    def __init__(
        self,
        source: Callable[[Reference], Source],
        target: Callable[[Reference], Source],
        tags: Callable[[Reference], Iterable[str]],
        *,
        offline: bool,
    ) -> None:
        self._source, self._target, self._tags, self._offline = source, target, tags, offline
        self._listed: SharedAnswers[tuple[_Key, _Filters], tuple[Descriptor, ...]] = SharedAnswers()
        self._tagged: SharedAnswers[_Key, tuple[Referrer, ...]] = SharedAnswers()
        self._digest_tags: SharedAnswers[str, frozenset[str] | None] = SharedAnswers()

    def at_source(
        self,
        subject: Descriptor,
        place: Reference,
        related: Related,
        *,
        read: Read,
        verified: frozenset[Digest] = frozenset(),
    ) -> tuple[Referrer, ...]:
        """Return the wanted manifests in a source repository that refer to `subject`.

        A list can be forged: anyone who may push to the repository can write its fallback index. A listed manifest counts
        only if its own `subject` is the one asked for; all others are ignored with a warning. `read` reads a manifest, and
        `verified` has the digests of manifests that need not be read again. Cosign's manifests have no subject: there the
        name of the tag is the only link.

        Raises:
            Unsupported: a list with more than a hundred manifests that do not refer to the subject.
            DistError: an error of the source.
        """
        source = self._source(place)

        def list_verified() -> tuple[Descriptor, ...]:
            listed = tuple(filter(related.accepts, source.referrers(subject)))
            ignored = _find_unrelated([one for one in listed if one.digest not in verified], subject, read)
            return tuple(one for one in listed if one.digest not in ignored)

        key = "source", str(place) if self._offline else place.locator, subject.digest
        listed = self._listed.get((key, related.filters), list_verified) if related.listed else ()
        tags = None if self._offline else self._digest_tags_of
        return _combine(listed, self._find_tagged(key, subject, source, place, tags) if related.tagged else ())

    def at_target(self, subject: Descriptor, place: Reference, related: Related) -> tuple[Referrer, ...]:
        """Return the same at a target, where listed manifests are not read.

        Raises:
            DistError: an error of the target.
        """
        target, key = self._target(place), ("target", place.locator, subject.digest)

        def list_accepted() -> tuple[Descriptor, ...]:
            return tuple(filter(related.accepts, target.referrers(subject)))

        listed = self._listed.get((key, related.filters), list_accepted) if related.listed else ()
        tagged = self._find_tagged(key, subject, target, place, self._digest_tags_of) if related.tagged else ()
        return _combine(listed, tagged)

    def _find_tagged(
        self,
        key: "_Key",
        subject: Descriptor,
        source: Source,
        place: Reference,
        tags_of: Callable[[Reference], frozenset[str] | None] | None,
    ) -> tuple[Referrer, ...]:
        """Return the manifests under digest tags of `subject`."""

        def find() -> tuple[Referrer, ...]:
            tags = None if tags_of is None else tags_of(place)
            return tuple(Referrer(one, tag) for tag, one in source.signatures(subject, tags=tags))

        return self._tagged.get(key, find)

    def _digest_tags_of(self, place: Reference) -> frozenset[str] | None:
        """Return the digest tags of a repository. None: they have to be requested one by one, which finds them, too."""

        def select() -> frozenset[str] | None:
            found = set[str]()
            try:
                for number, tag in enumerate(self._tags(place)):
                    if number == _MAX_LISTED:
                        return None
                    if is_cosign_tag(tag):
                        found.add(tag)
            except DistError as exc:
                _log.info("%s: digest tags are requested one by one, the list of tags failed: %s", place.locator, exc)
                return None
            return frozenset(found)

        return self._digest_tags.get(place.locator, select)


def _combine(listed: Iterable[Descriptor], tagged: tuple[Referrer, ...]) -> tuple[Referrer, ...]:
    known = {referrer.descriptor.digest for referrer in tagged}
    return (*(Referrer(one) for one in listed if one.digest not in known), *tagged)


def _find_unrelated(listed: Iterable[Descriptor], subject: Descriptor, read: Read) -> set[Digest]:
    ignored = set[Digest]()
    for one in listed:
        if not _refers_to(one, subject, read):
            ignored.add(one.digest)
            if len(ignored) > _MAX_UNRELATED:
                raise Unsupported(f"{subject}: more than {_MAX_UNRELATED} manifests are listed as its referrers and are not")
    return ignored


def _refers_to(listed: Descriptor, subject: Descriptor, read: Read) -> bool:
    try:
        found = manifest.subject(read(listed), listed.media_type, at=str(listed)) if listed.is_manifest else None
    except (Corrupt, InvalidInput, NotFound, Unsupported) as exc:
        reason = str(exc)
    else:
        if found is not None and found.digest == subject.digest:
            return True
        reason = f"expected the subject {subject.digest}, got {found.digest if found else 'none'}"
    _log.warning("%s is listed as a referrer of %s and ignored: %s", listed, subject, reason)
    return False


def find_all_related(
    subjects: Iterable[Descriptor],
    find: Callable[[Descriptor], Iterable[Referrer]],
    manifests_of: Callable[[Descriptor], Iterable[Descriptor]],
    *,
    at: str,
) -> dict[Digest, Referrer]:
    """Return the referrers of `subjects`, the referrers of those, and so on, by digest.

    `find` returns the referrers of one subject, and `manifests_of` the manifests in the tree of a referrer. Each manifest is
    passed to `find` once, so circles end. `at` names the image in errors.

    Raises:
        Unsupported: more than MAX_REFERRERS.
        DistError: an error of `find` or `manifests_of`.
    """
    found: dict[Digest, Referrer] = {}
    pending, asked = deque(subjects), set[Digest]()
    while pending:
        subject = pending.popleft()
        if subject.digest in asked:
            continue
        asked.add(subject.digest)
        for referrer in find(subject):
            if referrer.descriptor.digest in found:
                continue
            if len(found) == MAX_REFERRERS:
                raise Unsupported(f"{at}: expected at most {MAX_REFERRERS} referrers, there are more")
            found[referrer.descriptor.digest] = referrer
            pending.extend(manifests_of(referrer.descriptor))
    return found
