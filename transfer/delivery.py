"""Publishes images from the store in many repositories: blobs as they arrive, then manifests.

Content is uploaded to a registry once and mounted into its other repositories. A second upload of
content to a registry waits until the first one ends. The CNCF registry 2.8 requires that: it refuses a manifest (400
DIGEST_INVALID) while a blob that the manifest names is uploaded once more.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock

from prefect_dist.ocispec import Descriptor, Digest, Platform, Reference
from prefect_dist.ocispec.children import Children, children_reader, walk_tree, without_foreign
from prefect_dist.ocispec.errors import Conflict, NotFound
from prefect_dist.ocispec.index_filter import filter_index
from prefect_dist.ocispec.platform import Platforms
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.remotes import Pusher, RegistryError, Source
from prefect_dist.storage import presence
from prefect_dist.storage.presence import present_children
from prefect_dist.transfer import content as transfer
from prefect_dist.transfer.content import Receipt
from prefect_dist.transfer.events import Notify
from prefect_dist.transfer.push_order import push_order
from prefect_dist.transfer.recorder import ImageRecorder
from prefect_dist.transfer.stats import ReceiptCounter

# The number of candidates per content: one of them is not the repository itself.
_CANDIDATES = 2
# The error code of a registry that lacks content of an index (distribution-spec 1.1, "Error Codes").
_INCOMPLETE = "MANIFEST_BLOB_UNKNOWN"
_NO_SPARSE = (
    "this registry takes no index of which some platforms are missing: mirror all of them, or have a new index made of those "
    "that are wanted (rewriteIndex)"
)
# By the keys of descriptors.
Receipts = dict[object, tuple[Descriptor, Receipt]]
# The receipt of content that the run uploaded or found there before.
_KNOWN = Receipt("existed")
# `transfer.content.put`, or `push`, which looks the manifest up first.
_Put = Callable[..., Receipt]


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Publication:
    """An image of the store, and the tag to publish it under.

    `replaces` is the digest that the tag had when this was planned, None if there was no such tag. `platforms` are the wanted
    platforms of an index, None for all; with `rewritten`, an index of only these is made. `referrers` are published, too. The
    manifest that the tag had before is kept under the name `backup`.

    If the target was not `surveyed`, manifests are looked up there before they are sent, and its tag is set whatever it
    resolves to.
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
    """Add a receipt, also one of content that has one already."""
    _, known = receipts.get(descriptor.key, (None, None))
    receipts[descriptor.key] = descriptor, receipt if known is None else known.with_more(receipt)


class MountCandidates:
    """The repositories that have some content, because this run uploaded it there or found it there.

    Thread-safe: the state is changed in single steps. A base layer may be in tens of thousands of repositories, so no method
    iterates over all repositories of some content.
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
        """Return another repository of the same registry that has the content: one of the first that were noted."""
        known = self._candidates.get((place.host, digest), ())
        return next((repository for repository in known if repository != place.repository), None)


class Delivery:
    """One run's deliveries. `source` and `pusher` give access to the repository of a reference. Thread-safe."""

    def __init__(
        self,
        recorder: ImageRecorder,
        *,
        source: Callable[[Reference], Source],
        pusher: Callable[[Reference], Pusher],
        received: Notify,
        sent: Notify,
    ) -> None:
        self.counter = ReceiptCounter()
        self._recorder, self._store = recorder, recorder.store
        self._source, self._pusher, self._received, self._sent = source, pusher, received, sent
        self._turns: dict[tuple[str, Digest], Lock] = {}
        self._mount_candidates = MountCandidates()
        self._receipts: dict[Publication, Receipts] = {}

    def has_image(self, root: Descriptor, target: Reference) -> bool:
        """Return whether `target` resolves to `root`. If it does, no other content of the image is looked up there.

        Raises:
            DistError: an error of the registry, or of the store, which has to have the image.
        """
        if not self._pusher(target).has(root, tag=target.tag):
            return False
        for descriptor in walk_tree(without_foreign(children_reader(self._store.manifest)), root):
            self._mount_candidates.note(target, descriptor.digest)
        return True

    def deliver(self, blob: Descriptor, place: Reference, *, origin: Reference | None = None) -> Receipt:
        """Put a blob into the repository of `place`. It is mounted from `origin` or elsewhere, if the registry has it.

        Raises:
            DistError: see `transfer.content.push`.
        """
        with self._turn(place, blob):
            if self._mount_candidates.has(place, blob.digest):
                return _KNOWN
            mounted_from = self._mount_candidates.mount_candidate(place, blob.digest)
            if mounted_from is None and origin is not None and origin.host == place.host and origin.locator != place.locator:
                mounted_from = origin.repository
            receipt = transfer.push(self._store, self._pusher(place), blob, source=mounted_from, notify=self._sent)
            self.counter.count(blob, receipt)
            self._mount_candidates.note(place, blob.digest)
            return receipt

    def publish(self, wanted: Publication) -> Receipts:
        """Push what the repository lacks of an image, in order, and set its tag last.

        Return the receipts of content that was not known to be there. After a failure they are kept for the next attempt, and
        for `receipts`.

        Raises:
            NotFound: content of the image is not in the store.
            Conflict: the tag moved since this was planned. It stays unchanged.
            DistError: see `transfer.content`; content that was pushed before need not be sent again.
        """
        root, platforms = wanted.root, wanted.platforms
        receipts = self._receipts.setdefault(wanted, {})
        if wanted.rewritten and platforms is not None:
            root, platforms = self._select_platforms(wanted, platforms), None
        if wanted.backup is not None:
            self._back_up(self._require_unmoved(wanted, root), wanted.target, root, wanted.backup)
        children = self._recorder.children(platforms)
        try:
            for descriptor, receipt in self._steps(wanted, root, children):
                if receipt is not _KNOWN:
                    add_receipt(receipts, descriptor, receipt)
        except RegistryError as exc:
            is_incomplete = not exc.retryable and any(code.startswith(_INCOMPLETE) for code in exc.exchange.codes)
            if platforms is None or not is_incomplete:
                raise
            raise type(exc)(f"{exc}; {_NO_SPARSE}", exc.exchange) from exc
        return self._receipts.pop(wanted)

    def receipts(self, wanted: Publication) -> Receipts:
        """Return the receipts of a publication that failed."""
        return self._receipts.get(wanted, {})

    def resolve(self, target: Reference) -> Descriptor | None:
        """Return what a tag resolves to; None if there is no such tag.

        Raises:
            DistError: an error of the registry.
        """
        try:
            return self._source(target).resolve(target)
        except NotFound:
            return None

    def _select_platforms(self, wanted: Publication, platforms: tuple[Platform, ...]) -> Descriptor:
        """Return the root of a tree with these platforms only. Its new indexes are in the store until the run ends."""
        selected = filter_index(wanted.root, platforms, self._store.manifest, is_missing=self._recorder.is_missing)
        unused = self._source(wanted.target)  # the descriptors of new indexes contain their bytes
        self._recorder.keep(selected.root)
        for index in selected.indexes:
            transfer.fetch(self._store, unused, index, notify=self._received)
        return replace(selected.root, data=None)

    def _require_unmoved(self, wanted: Publication, root: Descriptor) -> Descriptor | None:
        """Return the descriptor that the target tag resolves to now, None if there is no such tag.

        Raises:
            Conflict: it is neither `root` nor the descriptor of the plan.
        """
        found = self.resolve(wanted.target)
        if found is not None and found.digest not in (wanted.replaces, root.digest):
            before = wanted.replaces or "no manifest"
            raise Conflict(f"{wanted.target}: target tag moved from {before} to {found.digest} since it was planned; run again")
        return found

    def _back_up(self, old: Descriptor | None, target: Reference, new: Descriptor, backup: Reference) -> None:
        """Set the tag `backup` to `old`, to which the target tag resolves, unless that stays unchanged."""
        if old is None or old.digest == new.digest or self._pusher(backup).has(old, tag=backup.tag):
            return
        self._recorder.keep(old)
        source = self._source(target)
        if backup.locator == target.locator:
            transfer.fetch(self._store, source, old, notify=self._received)
            transfer.put(self._store, self._pusher(backup), old, tag=backup.tag, notify=self._sent)
            return
        self._take(old, source)
        for _ in self._push_tree(old, backup, present_children(self._store)):
            pass

    def _take(self, root: Descriptor, source: Source) -> None:
        """Fetch a tree into the store. Manifests in an index may be missing: a target may have only some platforms."""
        read, missing = children_reader(self._store.manifest), set[object]()

        def children(descriptor: Descriptor) -> Sequence[Descriptor]:
            return () if descriptor.key in missing else read(descriptor)

        for descriptor in walk_tree(children, root):
            try:
                transfer.fetch(self._store, source, descriptor, notify=self._received)
            except NotFound:
                if descriptor is root or not descriptor.is_manifest:
                    raise
                missing.add(descriptor.key)

    def _steps(self, wanted: Publication, root: Descriptor, children: Children) -> Iterator[tuple[Descriptor, Receipt]]:
        if not wanted.surveyed:
            return self._push_tree(root, wanted.target, children, wanted.referrers, put=transfer.push)
        check = partial(self._require_unmoved, wanted, root)
        return self._push_tree(root, wanted.target, children, wanted.referrers, before_last=check)

    def _push_tree(
        self,
        root: Descriptor,
        target: Reference,
        children: Children,
        referrers: Sequence[Referrer] = (),
        *,
        put: _Put = transfer.put,
        before_last: Callable[[], object] = lambda: None,
    ) -> Iterator[tuple[Descriptor, Receipt]]:
        """Push a tree and its referrers. Yield the receipt of each step, the last of which sets the target tag."""
        wanted = without_foreign(children)
        roots = (root, *(referrer.descriptor for referrer in referrers))
        content = presence.require(self._store, *roots, children=wanted, name=str(target))
        *others, last = push_order(self._store, content, wanted, root=root, tag=target.tag, referrers=referrers)
        for descriptor, tag in others:
            yield descriptor, self._push(descriptor, target, tag, put)
        before_last()
        descriptor, tag = last
        yield descriptor, self._push(descriptor, target, tag, put)

    def _push(self, descriptor: Descriptor, target: Reference, tag: str | None, put: _Put) -> Receipt:
        if not descriptor.is_manifest:
            return self.deliver(descriptor, target)
        with self._turn(target, descriptor):
            if tag is None and self._mount_candidates.has(target, descriptor.digest):
                return _KNOWN
            receipt = put(self._store, self._pusher(target), descriptor, tag=tag, notify=self._sent)
            self._mount_candidates.note(target, descriptor.digest)
            return receipt

    def _turn(self, place: Reference, content: Descriptor) -> Lock:
        """Return the lock of the thread that uploads this content to this registry. The run keeps it until it ends."""
        return self._turns.setdefault((place.host, content.digest), Lock())
