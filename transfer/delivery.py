"""Publishes images from the store in many repositories: blobs as they arrive, then manifests.

Content is uploaded to a registry once and mounted into the other repositories. A second upload of the same content to a
registry waits until the first upload ends. The CNCF registry 2.8 requires this order: it refuses a manifest (400
DIGEST_INVALID) while a blob of the manifest is uploaded once more.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock

from prefect_dist.ocispec import Descriptor, Digest, Platform, Reference
from prefect_dist.ocispec.children import Children, children_reader, walk_tree, without_foreign
from prefect_dist.ocispec.errors import Conflict, DistError, NotFound
from prefect_dist.ocispec.index_filter import filter_index
from prefect_dist.ocispec.platform import Platforms
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.remotes import RegistryError
from prefect_dist.storage import presence
from prefect_dist.storage.presence import present_children
from prefect_dist.transfer import content
from prefect_dist.transfer.attempts import has_another
from prefect_dist.transfer.content import Receipt
from prefect_dist.transfer.fetching import fetch_content
from prefect_dist.transfer.push_order import push_order
from prefect_dist.transfer.session import Session

# The number of candidates per content: at least one differs from the repository that needs the content.
_CANDIDATES = 2
# The error code of a registry that lacks content of an index (distribution-spec 1.1, "Error Codes").
_INCOMPLETE = "MANIFEST_BLOB_UNKNOWN"
_NO_SPARSE = (
    "this registry accepts no sparse index; mirror all platforms, or set rewriteIndex to publish a new index of the wanted "
    "platforms"
)
# By the keys of descriptors.
Receipts = dict[object, tuple[Descriptor, Receipt]]
# The receipt of content that the run uploaded or found at the target before. Compared by identity, since new receipts can be
# equal.
_KNOWN = Receipt("existed")
# `transfer.content.put` or `push`; `push` looks the manifest up first.
_Put = Callable[..., Receipt]


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Publication:
    """An image of the store, and the tag to publish the image under.

    Attributes:
        replaces: the digest of the tag when the publication was planned; None if the tag did not exist.
        platforms: the wanted platforms of an index; None is every platform.
        rewritten: the target gets a new index of the wanted platforms.
        referrers: the referrers to publish with the image.
        backup: the tag for the previous manifest of the target tag.
        surveyed: the target was surveyed before. Otherwise manifests are looked up at the target before the upload, and the
            publication sets the tag regardless of its digest.
    """

    root: Descriptor
    target: Reference
    replaces: Digest | None = None
    platforms: Platforms = None
    rewritten: bool = False
    referrers: tuple[Referrer, ...] = ()
    backup: Reference | None = None
    surveyed: bool = True


def add_receipt(receipts: Receipts, descriptor: Descriptor, receipt: Receipt) -> None:
    """Add a receipt. If the content has a receipt already, combine both."""
    _, known = receipts.get(descriptor.key, (None, None))
    receipts[descriptor.key] = descriptor, receipt if known is None else known.with_more(receipt)


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


class _Deliveries:
    """The state of the deliveries of a run. Thread-safe: the state is changed in single steps.

    Attributes:
        turns: a lock for each piece of content and registry.
        receipts: the receipts of publications without success so far.
        failing_hosts: the registries that refused a blob in all attempts.
    """

    def __init__(self) -> None:
        self.turns: dict[tuple[str, Digest], Lock] = {}
        self.mount_candidates = MountCandidates()
        self.receipts: dict[Publication, Receipts] = {}
        self.failing_hosts: set[str] = set()


def resolve_tag(session: Session, target: Reference) -> Descriptor | None:
    """Return the descriptor of a tag at its own registry, or None if the tag does not exist.

    Raises:
        DistError: an error of the registry.
    """
    try:
        return session.registries.origin_fetcher(target).resolve(target)
    except NotFound:
        return None


def has_image(session: Session, root: Descriptor, target: Reference) -> bool:
    """Return whether `target` resolves to `root`. If so, the run assumes that the repository has the whole image.

    Raises:
        DistError: an error of the registry, or of the store, which has to have the image.
    """
    if not session.registries.pusher(target).has(root, tag=target.tag):
        return False
    candidates = session.memo(_Deliveries).mount_candidates
    for descriptor in walk_tree(without_foreign(children_reader(session.store.manifest)), root):
        candidates.note(target, descriptor.digest)
    return True


def deliver(session: Session, blob: Descriptor, place: Reference, *, origin: Reference | None = None) -> Receipt:
    """Put a blob into the repository of `place`. If possible, the registry mounts the blob from `origin` or elsewhere.

    Raises:
        DistError: see `transfer.content.push`.
    """
    candidates = session.memo(_Deliveries).mount_candidates
    with _turn(session, place, blob):
        if candidates.has(place, blob.digest):
            return _KNOWN
        mounted_from = candidates.mount_candidate(place, blob.digest)
        if mounted_from is None and origin is not None and origin.host == place.host and origin.locator != place.locator:
            mounted_from = origin.repository
        pusher, sent = session.registries.pusher(place), session.counter.sent
        receipt = content.push(session.store, pusher, blob, source=mounted_from, notify=sent)
        session.counter.count(blob, receipt)
        candidates.note(place, blob.digest)
        return receipt


def deliver_to_places(session: Session, blob: Descriptor, places: Iterable[Reference], *, origin: Reference) -> None:
    """Put a blob into several repositories. After the failure of one place, the other places still get the blob.

    The publication at a place delivers the blob again, and reports the error. A registry that has refused a blob in all
    attempts gets one attempt per blob until it accepts a blob. Otherwise a full registry would cost each blob all attempts and
    the delays between them.

    Raises:
        DistError: the error of a place, if another attempt follows.
    """
    failing, again = session.memo(_Deliveries).failing_hosts, list[DistError]()
    for place in places:
        try:
            with session.cancel.raise_stopped():
                deliver(session, blob, place, origin=origin)
        except DistError as exc:
            if place.host not in failing and has_another(exc):
                again.append(exc)
            elif exc.retryable:
                failing.add(place.host)
        else:
            failing.discard(place.host)
    if again:
        raise again[-1]


def publish(session: Session, wanted: Publication) -> Receipts:
    """Push the missing content of an image, in order, and set the tag last.

    Return the receipts of content that was not known to exist at the target. After a failure, the run keeps the receipts for
    the next attempt, and for `failed_receipts`.

    Raises:
        NotFound: content of the image is not in the store.
        Conflict: the tag moved since the publication was planned. The tag stays unchanged.
        DistError: see `transfer.content`. The next attempt skips pushed content.
    """
    root, platforms, kept = wanted.root, wanted.platforms, session.memo(_Deliveries).receipts
    receipts = kept.setdefault(wanted, {})
    if wanted.rewritten and platforms is not None:
        root, platforms = _select_platforms(session, wanted, platforms), None
    if wanted.backup is not None:
        _back_up(session, _require_unmoved(session, wanted, root), wanted.target, root, wanted.backup)
    try:
        for descriptor, receipt in _push_image(session, wanted, root, session.recorder.children(platforms)):
            if receipt is not _KNOWN:
                add_receipt(receipts, descriptor, receipt)
    except RegistryError as exc:
        is_incomplete = not exc.retryable and any(code.startswith(_INCOMPLETE) for code in exc.exchange.codes)
        if platforms is None or not is_incomplete:
            raise
        raise type(exc)(f"{exc}; {_NO_SPARSE}", exc.exchange) from exc
    return kept.pop(wanted)


def failed_receipts(session: Session, wanted: Publication) -> Receipts:
    """Return the receipts of a publication that failed."""
    return session.memo(_Deliveries).receipts.get(wanted, {})


def _select_platforms(session: Session, wanted: Publication, platforms: tuple[Platform, ...]) -> Descriptor:
    """Return the root of a tree with only these platforms. The store keeps the new indexes until the run ends."""
    selected = filter_index(wanted.root, platforms, session.store.manifest, is_missing=session.recorder.is_missing)
    unused = session.registries.origin_fetcher(wanted.target)  # the descriptors of new indexes contain their bytes
    session.recorder.keep(selected.root)
    for index in selected.indexes:
        fetch_content(session, index, unused, place=wanted.target)
    return replace(selected.root, data=None)


def _require_unmoved(session: Session, wanted: Publication, root: Descriptor) -> Descriptor | None:
    """Return the current descriptor of the target tag, or None if the tag does not exist.

    Raises:
        Conflict: the descriptor is neither `root` nor the descriptor of the plan.
    """
    found = resolve_tag(session, wanted.target)
    if found is not None and found.digest not in (wanted.replaces, root.digest):
        before = wanted.replaces or "no manifest"
        raise Conflict(
            f"target tag moved from {before} to {found.digest} since the plan was made; run again", subject=wanted.target
        )
    return found


def _back_up(session: Session, old: Descriptor | None, target: Reference, new: Descriptor, backup: Reference) -> None:
    """Set the tag `backup` to `old`, the current manifest of the target tag, unless the target tag stays unchanged."""
    pusher = session.registries.pusher(backup)
    if old is None or old.digest == new.digest or pusher.has(old, tag=backup.tag):
        return
    session.recorder.keep(old)
    if backup.locator == target.locator:
        fetch_content(session, old, session.registries.origin_fetcher(target), place=target)
        content.put(session.store, pusher, old, tag=backup.tag, notify=session.counter.sent)
        return
    _fetch_tree(session, old, target)
    for _ in _push_tree(session, old, backup, present_children(session.store)):
        pass


def _fetch_tree(session: Session, root: Descriptor, target: Reference) -> None:
    """Fetch a tree from a target. Manifests in an index may be missing: a target may have only some platforms."""
    source = session.registries.origin_fetcher(target)
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


def _push_image(
    session: Session, wanted: Publication, root: Descriptor, children: Children
) -> Iterator[tuple[Descriptor, Receipt]]:
    if not wanted.surveyed:
        return _push_tree(session, root, wanted.target, children, wanted.referrers, put=content.push)
    check = partial(_require_unmoved, session, wanted, root)
    return _push_tree(session, root, wanted.target, children, wanted.referrers, before_last=check)


def _push_tree(
    session: Session,
    root: Descriptor,
    target: Reference,
    children: Children,
    referrers: Sequence[Referrer] = (),
    *,
    put: _Put = content.put,
    before_last: Callable[[], object] = lambda: None,
) -> Iterator[tuple[Descriptor, Receipt]]:
    """Push a tree and the referrers. Yield the receipt of each step. The last step sets the target tag."""
    wanted = without_foreign(children)
    roots = (root, *(referrer.descriptor for referrer in referrers))
    found = presence.require(session.store, *roots, children=wanted, name=str(target))
    *others, last = push_order(session.store, found, wanted, root=root, tag=target.tag, referrers=referrers)
    for descriptor, tag in others:
        yield descriptor, _push(session, descriptor, target, tag, put)
    before_last()
    descriptor, tag = last
    yield descriptor, _push(session, descriptor, target, tag, put)


def _push(session: Session, descriptor: Descriptor, target: Reference, tag: str | None, put: _Put) -> Receipt:
    if not descriptor.is_manifest:
        return deliver(session, descriptor, target)
    candidates = session.memo(_Deliveries).mount_candidates
    with _turn(session, target, descriptor):
        if tag is None and candidates.has(target, descriptor.digest):
            return _KNOWN
        pusher, sent = session.registries.pusher(target), session.counter.sent
        receipt = put(session.store, pusher, descriptor, tag=tag, notify=sent)
        candidates.note(target, descriptor.digest)
        return receipt


def _turn(session: Session, place: Reference, descriptor: Descriptor) -> Lock:
    """Return the lock for uploads of this content to this registry. The lock object exists until the run ends."""
    return session.memo(_Deliveries).turns.setdefault((place.host, descriptor.digest), Lock())
