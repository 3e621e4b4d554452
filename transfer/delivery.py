"""Publishes images from the store in many repositories: blobs as they arrive, then manifests.

Content is uploaded to a registry once and mounted into the other repositories. A second upload of the same content to a
registry waits until the first upload ends. The CNCF registry 2.8 requires this order: it refuses a manifest (400
DIGEST_INVALID) while a blob of the manifest is uploaded once more.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock

from prefect_dist.ocispec import Descriptor, Digest, Platform, Reference
from prefect_dist.ocispec.children import Children, children_reader, walk_tree, without_foreign
from prefect_dist.ocispec.errors import Conflict, DistError, NotFound
from prefect_dist.ocispec.index_filter import filter_index
from prefect_dist.ocispec.platform import Platforms
from prefect_dist.ocispec.reference import is_repository
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.remotes import RegistryError, Source
from prefect_dist.storage import presence
from prefect_dist.storage.presence import present_children
from prefect_dist.transfer import content
from prefect_dist.transfer.attempts import has_another
from prefect_dist.transfer.claiming import claim_upload
from prefect_dist.transfer.content import Receipt
from prefect_dist.transfer.fetching import fetch_content
from prefect_dist.transfer.push_order import push_order
from prefect_dist.transfer.session import Session

# The number of candidates per content: at least one differs from the repository that needs the content.
_CANDIDATES = 2
# The error codes of a registry that lacks content of an index (distribution-spec 1.1, "Error Codes").
_INCOMPLETE = ("MANIFEST_BLOB_UNKNOWN", "MANIFEST_UNKNOWN")
_NO_SPARSE = "this registry accepts no sparse index, but demands the missing manifests"
_SELECTED_REMEDY = "publish all platforms, or a new index of the selected platforms (rewriteIndex, --rewrite-index)"
_STORED_REMEDY = "push the image of one platform (--platform), or fetch all platforms and push the whole index"


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Publication:
    """An image of the store, and the tag to publish the image under.

    Attributes:
        replaces: the digest of the tag when the publication was planned; None if the tag did not exist.
        platforms: the wanted platforms of an index; None is every platform.
        rewritten: the target gets a new index of the wanted platforms.
        referrers: the referrers to publish with the image.
        backup: the tag for the previous manifest of the target tag.
        is_stored: the platforms are those in the store, which the user did not select.
    """

    root: Descriptor
    target: Reference
    replaces: Digest | None = None
    platforms: Platforms = None
    rewritten: bool = False
    referrers: tuple[Referrer, ...] = ()
    backup: Reference | None = None
    is_stored: bool = False


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

    def has(self, session: Session, place: Reference) -> bool:
        """Return True if the repository of `place` is new. The first call for a repository sends a request."""
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


class _Deliveries:
    """The state of the deliveries of a run. Thread-safe: the state is changed in single steps.

    Attributes:
        turns: a lock for each piece of content and registry.
        failing_hosts: the registries that refused a blob in all attempts.
    """

    def __init__(self) -> None:
        self.turns: dict[tuple[str, Digest], Lock] = {}
        self.mount_candidates = MountCandidates()
        self.failing_hosts: set[str] = set()


def resolve_target(session: Session, target: Reference) -> Descriptor | None:
    """Return the descriptor of a target at its own registry, or None if the target does not exist.

    A target with both a tag and a digest is resolved by the tag, because a publication has to set the tag.

    Raises:
        DistError: an error of the registry.
    """
    by_tag = target if target.tag is None else target.with_tag(target.tag)
    try:
        return session.remotes.open_origin(target).resolve(by_tag)
    except NotFound:
        return None


def note_content(session: Session, place: Reference, found: Iterable[Descriptor]) -> None:
    """Record that the repository of `place` has some content, so that the run does not upload the content there."""
    candidates = session.memo(_Deliveries).mount_candidates
    for descriptor in found:
        candidates.note(place, descriptor.digest)


def deliver(session: Session, blob: Descriptor, place: Reference, *, origin: Reference | None = None) -> Receipt:
    """Put a blob into the repository of `place`. If possible, the registry mounts the blob from `origin` or elsewhere.

    Raises:
        DistError: see `transfer.content.push`.
    """
    candidates = session.memo(_Deliveries).mount_candidates
    with _turn(session, place, blob):
        if candidates.has(place, blob.digest):
            return Receipt("existed")
        with claim_upload(session, blob, place.host) as claim:
            if is_repository(claim.note or ""):  # another process has uploaded the blob to the repository in the note
                candidates.note(Reference(f"{place.host}/{claim.note}"), blob.digest)
            receipt = _deliver(session, blob, place, origin)
            # The repository of an old note may have lost the blob. A place with a scheme has no repositories.
            claim.note = place.repository or None
        return receipt


def _deliver(session: Session, blob: Descriptor, place: Reference, origin: Reference | None) -> Receipt:
    """Put a blob into a repository that is not known to have the blob."""
    candidates = session.memo(_Deliveries).mount_candidates
    mounted_from = candidates.mount_candidate(place, blob.digest)
    if mounted_from is None and origin is not None and origin.host == place.host and origin.locator != place.locator:
        mounted_from = origin.repository
    pusher, sent = session.remotes.open_target(place), session.counter.sent
    is_absent = session.memo(NewRepositories).lacks(session, blob, place)
    receipt = content.push(session.store, pusher, blob, source=mounted_from, is_absent=is_absent, notify=sent)
    session.counter.count(blob, receipt)
    candidates.note(place, blob.digest)
    return receipt


def deliver_to_places(session: Session, blob: Descriptor, places: Iterable[Reference], *, origin: Reference) -> Receipt:
    """Put a blob into several repositories, and return one receipt for all places.

    After the failure of one place, the other places still get the blob.

    The publication at a place delivers the blob again, and reports the error. A registry that has refused a blob in all
    attempts gets one attempt per blob until it accepts a blob. Otherwise a full registry would cost each blob all attempts and
    the delays between them.

    Raises:
        DistError: the error of a place, if another attempt follows.
    """
    failing, again = session.memo(_Deliveries).failing_hosts, list[DistError]()
    receipt = Receipt("existed")
    for place in places:
        try:
            with session.cancel.raise_stopped():
                receipt = receipt.with_more(deliver(session, blob, place, origin=origin))
        except DistError as exc:
            if place.host not in failing and has_another(exc):
                again.append(exc)
            elif exc.retryable:
                failing.add(place.host)
        else:
            failing.discard(place.host)
    if again:
        raise again[-1]
    return receipt


def publish(session: Session, wanted: Publication) -> Descriptor:
    """Push the missing content of an image, in order, and set the tag last. Return the root at the target.

    Raises:
        NotFound: content of the image is not in the store.
        Conflict: the tag moved since the publication was planned. The tag stays unchanged.
        DistError: see `transfer.content`. The next attempt skips pushed content.
    """
    root, platforms = wanted.root, wanted.platforms
    if wanted.rewritten and platforms is not None:
        root, platforms = _select_platforms(session, wanted, platforms), None
    if wanted.backup is not None:
        _back_up(session, _require_unmoved(session, wanted, root), wanted.target, root, wanted.backup)
    try:
        check = partial(_require_unmoved, session, wanted, root)
        children = session.recorder.children(platforms)
        _push_tree(session, root, wanted.target, children, wanted.referrers, before_last=check)
    except RegistryError as exc:
        is_incomplete = not exc.retryable and any(code.startswith(_INCOMPLETE) for code in exc.exchange.codes)
        if platforms is None or not is_incomplete:
            raise
        remedy = _STORED_REMEDY if wanted.is_stored else _SELECTED_REMEDY
        raise type(exc)(f"{exc}; {_NO_SPARSE}; {remedy}", exc.exchange) from exc
    return root


def _select_platforms(session: Session, wanted: Publication, platforms: tuple[Platform, ...]) -> Descriptor:
    """Return the root of a tree with only these platforms. The store keeps the new indexes until the run ends."""
    selected = filter_index(wanted.root, platforms, session.store.manifest, is_missing=session.recorder.is_missing)
    unused = session.remotes.open_origin(wanted.target)  # the descriptors of new indexes contain their bytes
    session.recorder.keep(selected.root)
    for index in selected.indexes:
        fetch_content(session, index, unused, place=wanted.target)
    return replace(selected.root, data=None)


def _require_unmoved(session: Session, wanted: Publication, root: Descriptor) -> Descriptor | None:
    """Return the current descriptor of the target tag, or None if the tag does not exist.

    Raises:
        Conflict: the descriptor is neither `root` nor the descriptor of the plan.
    """
    found = resolve_target(session, wanted.target)
    if found is not None and found.digest not in (wanted.replaces, root.digest):
        before = wanted.replaces or "no manifest"
        raise Conflict(
            f"target tag moved from {before} to {found.digest} since the plan was made; run again", subject=wanted.target
        )
    return found


def _back_up(session: Session, old: Descriptor | None, target: Reference, new: Descriptor, backup: Reference) -> None:
    """Set the tag `backup` to `old`, the current manifest of the target tag, unless the target tag stays unchanged."""
    pusher = session.remotes.open_target(backup)
    if old is None or old.digest == new.digest or pusher.has(old, tag=backup.tag):
        return
    session.recorder.keep(old)
    if backup.locator == target.locator:
        fetch_content(session, old, session.remotes.open_origin(target), place=target)
        content.put(session.store, pusher, old, tag=backup.tag, notify=session.counter.sent)
        return
    _fetch_tree(session, old, target)
    _push_tree(session, old, backup, present_children(session.store))


def _fetch_tree(session: Session, root: Descriptor, target: Reference) -> None:
    """Fetch a tree from a target. Manifests in an index may be missing: a target may have only some platforms."""
    source = session.remotes.open_origin(target)
    read, missing = children_reader(session.store.manifest), set[object]()

    def children(descriptor: Descriptor) -> Sequence[Descriptor]:
        return () if descriptor.key in missing else read(descriptor)

    for descriptor in walk_tree(children, root):
        try:
            fetch_content(session, descriptor, source, place=target)
        except NotFound:
            if descriptor is root or not descriptor.is_manifest:
                raise
            missing.add(descriptor.key)


def _push_tree(
    session: Session,
    root: Descriptor,
    target: Reference,
    children: Children,
    referrers: Sequence[Referrer] = (),
    *,
    before_last: Callable[[], object] = lambda: None,
) -> None:
    """Push a tree and the referrers. The last step sets the target tag."""
    wanted = without_foreign(children)
    roots = (root, *(referrer.descriptor for referrer in referrers))
    found = presence.require(session.store, *roots, children=wanted, name=str(target))
    *others, last = push_order(session.store, found, wanted, root=root, tag=target.tag, referrers=referrers)
    for descriptor, tag in others:
        _push(session, descriptor, target, tag)
    before_last()
    descriptor, tag = last
    _push(session, descriptor, target, tag)


def _push(session: Session, descriptor: Descriptor, target: Reference, tag: str | None) -> None:
    if not descriptor.is_manifest:
        deliver(session, descriptor, target)
        return
    candidates = session.memo(_Deliveries).mount_candidates
    with _turn(session, target, descriptor):
        if tag is None and candidates.has(target, descriptor.digest):
            return
        pusher, sent = session.remotes.open_target(target), session.counter.sent
        content.put(session.store, pusher, descriptor, tag=tag, notify=sent)
        candidates.note(target, descriptor.digest)


def _turn(session: Session, place: Reference, descriptor: Descriptor) -> Lock:
    """Return the lock for uploads of this content to this registry. The lock object exists until the run ends."""
    return session.memo(_Deliveries).turns.setdefault((place.host, descriptor.digest), Lock())
