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
from prefect_dist.transfer.listing import list_own_tags
from prefect_dist.transfer.session import Session

K = TypeVar("K")
V = TypeVar("V")
_log = logging.getLogger(__name__)
# A list with more manifests that do not refer to its subject is forged as a whole; each manifest costs a request.
_MAX_UNRELATED = 100
# If a repository has more tags, requests for single digest tags cost less than the list.
_MAX_LISTED = 20_000
_Filters = frozenset[ReferrerFilter]
# "source" or "target", the repository there, and the subject.
_Key = tuple[str, str, Digest]
# Reads the manifest of a descriptor, verified.
Read = Callable[[Descriptor], bytes]


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Related:
    """The related manifests to mirror with an image. The value is false if none are wanted.

    Attributes:
        listed: manifests in the registry's list of referrers, or under the fallback tag, are wanted.
        tagged: manifests under digest tags of cosign are wanted.
        filters: a listed manifest has to meet one of the conditions, at each level of referrers; empty accepts every manifest.
    """

    listed: bool = False
    tagged: bool = False
    filters: _Filters = frozenset()

    def __bool__(self) -> bool:
        """Return whether any are wanted."""
        return self.listed or self.tagged

    @property
    def options(self) -> tuple[str, ...]:
        """Return the selected options, as a lock file records them."""
        filters = sorted(f"referrerFilters {one}" for one in self.filters)
        return (*(["referrers"] if self.listed else []), *(["digestTags"] if self.tagged else []), *filters)

    def accepts(self, listed: Descriptor) -> bool:
        """Return whether a listed manifest is wanted."""
        return not self.filters or any(one.matches(listed) for one in self.filters)


NOTHING, EVERYTHING = Related(), Related(listed=True, tagged=True)


class SharedAnswers(Generic[K, V]):
    """Answers by key, each computed once. Threads wait for an answer in progress. Thread-safe.

    Errors are not kept.
    """

    def __init__(self) -> None:
        self._guard = Lock()
        self._answers: dict[K, Future[V]] = {}

    def get(self, key: K, compute: Callable[[], V]) -> V:
        """Return the answer for `key`; call `compute` if the answer is unknown.

        Raises:
            BaseException: the error of `compute`, also in waiting threads. The next call computes again.
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


class _Answers:
    """The related manifests known in a run, by subject and repository. Thread-safe."""

    def __init__(self) -> None:
        self.listed: SharedAnswers[tuple[_Key, _Filters], tuple[Descriptor, ...]] = SharedAnswers()
        self.tagged: SharedAnswers[_Key, tuple[Referrer, ...]] = SharedAnswers()
        self.digest_tags: SharedAnswers[str, frozenset[str] | None] = SharedAnswers()


def list_at_source(
    session: Session,
    subject: Descriptor,
    place: Reference,
    related: Related,
    *,
    read: Read,
    verified: frozenset[Digest] = frozenset(),
) -> tuple[Referrer, ...]:
    """Return the wanted manifests in a source repository that refer to `subject`.

    A list can be forged: any client with push access to the repository can write the fallback index. A listed manifest counts
    only if its own `subject` is the requested subject; other manifests are ignored with a warning. `read` reads a manifest, and
    `verified` has the digests of manifests to accept unread. Manifests of cosign have no subject: the name of the digest tag is
    their only link.

    The source of an offline run is the store, with the related manifests of each name.

    Raises:
        Unsupported: a list has more than a hundred manifests without a reference to the subject.
        DistError: an error of the source.
    """
    source, is_offline = session.open_source(place), session.spec.offline

    def list_verified() -> tuple[Descriptor, ...]:
        listed = tuple(filter(related.accepts, source.referrers(subject)))
        ignored = _find_unrelated([one for one in listed if one.digest not in verified], subject, read)
        return tuple(one for one in listed if one.digest not in ignored)

    def list_tagged() -> tuple[Referrer, ...]:
        return _list_tagged(source, subject, None if is_offline else _list_digest_tags(session, place))

    key = "source", str(place) if is_offline else place.locator, subject.digest
    return _list(session, key, related, list_verified, list_tagged)


def list_at_target(session: Session, subject: Descriptor, place: Reference, related: Related) -> tuple[Referrer, ...]:
    """Return the wanted manifests in a target repository that refer to `subject`. Listed manifests are not read.

    Raises:
        DistError: an error of the target.
    """
    target = session.remotes.open_origin(place)

    def list_accepted() -> tuple[Descriptor, ...]:
        return tuple(filter(related.accepts, target.referrers(subject)))

    def list_tagged() -> tuple[Referrer, ...]:
        return _list_tagged(target, subject, _list_digest_tags(session, place))

    return _list(session, ("target", place.locator, subject.digest), related, list_accepted, list_tagged)


def _list(
    session: Session,
    key: _Key,
    related: Related,
    list_referrers: Callable[[], tuple[Descriptor, ...]],
    list_tagged: Callable[[], tuple[Referrer, ...]],
) -> tuple[Referrer, ...]:
    """Return the wanted related manifests from the registry's list and under digest tags."""
    answers = session.memo(_Answers)
    listed = answers.listed.get((key, related.filters), list_referrers) if related.listed else ()
    tagged = answers.tagged.get(key, list_tagged) if related.tagged else ()
    known = {referrer.descriptor.digest for referrer in tagged}
    return (*(Referrer(one) for one in listed if one.digest not in known), *tagged)


def _list_tagged(source: Source, subject: Descriptor, tags: frozenset[str] | None) -> tuple[Referrer, ...]:
    return tuple(Referrer(one, tag) for tag, one in source.signatures(subject, tags=tags))


def _list_digest_tags(session: Session, place: Reference) -> frozenset[str] | None:
    """Return the digest tags of a repository, or None if each tag has to be requested."""

    def select() -> frozenset[str] | None:
        found = set[str]()
        try:
            for number, tag in enumerate(list_own_tags(session, place)):
                if number == _MAX_LISTED:
                    return None
                if is_cosign_tag(tag):
                    found.add(tag)
        except DistError as exc:
            _log.info("%s: digest tags are requested one by one, the list of tags failed: %s", place.locator, exc)
            return None
        return frozenset(found)

    return session.memo(_Answers).digest_tags.get(place.locator, select)


def _find_unrelated(listed: Iterable[Descriptor], subject: Descriptor, read: Read) -> set[Digest]:
    ignored = set[Digest]()
    for one in listed:
        if not _refers_to(one, subject, read):
            ignored.add(one.digest)
            if len(ignored) > _MAX_UNRELATED:
                raise Unsupported(
                    f"its list of referrers has more than {_MAX_UNRELATED} manifests that do not refer to it",
                    subject=subject,
                )
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
    """Return the referrers of `subjects`, the referrers of these referrers, and so on, by digest.

    `find` returns the referrers of one subject, and `manifests_of` the manifests in the tree of a referrer. Each manifest is
    passed to `find` once, so cycles end. `at` names the image in errors.

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
                raise Unsupported(f"expected at most {MAX_REFERRERS} referrers, there are more", subject=at)
            found[referrer.descriptor.digest] = referrer
            pending.extend(manifests_of(referrer.descriptor))
    return found
