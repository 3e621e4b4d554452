"""Bringing images from the store to many repositories: blobs as they come, then manifests.

Content is uploaded to a registry once and mounted into its other repositories (`transfer.mount_candidates`). A second upload of
content to a registry waits until the first one ends. The CNCF registry 2.8 requires that: it refuses a manifest (400
DIGEST_INVALID) while a blob that the manifest names is uploaded once more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from prefect_dist.transfer.events import Notify
from prefect_dist.transfer.mount_candidates import Whereabouts
from prefect_dist.transfer.push_graph import Order
from prefect_dist.transfer.recorder import Keeper
from prefect_dist.transfer.stats import Counter

# How a registry refuses an index that names what it has not (distribution-spec 1.1, "Error Codes").
_INCOMPLETE = "MANIFEST_BLOB_UNKNOWN"
_NO_SPARSE = (
    "this registry takes no index of which some platforms are missing: mirror all of them, or have a new index made of those "
    "that are wanted (rewriteIndex)"
)


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Publication:
    """An image of the store, and the tag to publish it under.

    `replaces` is the digest that the tag had when this was planned, None if there was no such tag. `platforms` are the wanted
    platforms of an index, None for all; with `rewritten`, an index of only these is made. `referrers` are published, too. The
    manifest that the tag had before is kept under the name `backup`.
    """

    root: Descriptor
    target: Reference
    replaces: Digest | None = None
    platforms: Platforms = None
    rewritten: bool = False
    referrers: tuple[Referrer, ...] = ()
    backup: Reference | None = None


class Delivery:
    """One run's deliveries. `source` and `pusher` give access to the repository of a reference. Thread-safe."""

    def __init__(
        self,
        keeper: Keeper,
        *,
        source: Callable[[Reference], Source],
        pusher: Callable[[Reference], Pusher],
        received: Notify,
        sent: Notify,
    ) -> None:
        self.counter = Counter()
        self._keeper, self._store = keeper, keeper.store
        self._source, self._pusher, self._received, self._sent = source, pusher, received, sent
        self._turns: dict[tuple[str, Digest], Lock] = {}
        self._whereabouts = Whereabouts()

    def deliver(self, blob: Descriptor, place: Reference, *, origin: Reference | None = None) -> None:
        """Put a blob into the repository of `place`. It is mounted from `origin` or elsewhere, if the registry has it.

        Raises:
            DistError: see `transfer.content.push`.
        """
        with self._turn(place, blob):
            if self._whereabouts.has(place, blob.digest):
                return
            mounted_from = self._whereabouts.mount_candidate(place, blob.digest)
            if mounted_from is None and origin is not None and origin.host == place.host and origin.locator != place.locator:
                mounted_from = origin.repository
            receipt = transfer.push(self._store, self._pusher(place), blob, source=mounted_from, notify=self._sent)
            self.counter.count(blob, receipt)
            self._whereabouts.note(place, blob.digest)

    def publish(self, wanted: Publication) -> None:
        """Push what the repository lacks of an image, in order, and set its tag last.

        Raises:
            NotFound: content of the image is not in the store.
            Conflict: the tag resolves to something else than when this was planned. It is left as it is.
            DistError: see `transfer.content`; content that was pushed before need not be sent again.
        """
        root, platforms = wanted.root, wanted.platforms
        if wanted.rewritten and platforms is not None:
            root, platforms = self._selected(wanted, platforms), None
        if wanted.backup is not None:
            self._back_up(self._unmoved(wanted, root), wanted.target, root, wanted.backup)
        children = self._keeper.children(platforms)
        try:
            self._bring_all(root, wanted.target, children, wanted.referrers, before_tag=lambda: self._unmoved(wanted, root))
        except RegistryError as exc:
            is_incomplete = not exc.retryable and any(code.startswith(_INCOMPLETE) for code in exc.exchange.codes)
            if platforms is None or not is_incomplete:
                raise
            raise type(exc)(f"{exc}; {_NO_SPARSE}", exc.exchange) from exc

    def standing(self, target: Reference) -> Descriptor | None:
        """What a tag stands for; None for nothing.

        Raises:
            DistError: what the registry says.
        """
        try:
            return self._source(target).resolve(target)
        except NotFound:
            return None

    def _selected(self, wanted: Publication, platforms: tuple[Platform, ...]) -> Descriptor:
        """Return the root of a tree with these platforms only. Its new indexes are in the store until the run ends."""
        selected = filter_index(wanted.root, platforms, self._store.manifest, is_missing=self._keeper.is_missing)
        unused = self._source(wanted.target)  # the descriptors of new indexes contain their bytes
        self._keeper.keep(selected.root)
        for index in selected.indexes:
            transfer.fetch(self._store, unused, index, notify=self._received)
        return replace(selected.root, data=None)

    def _unmoved(self, wanted: Publication, root: Descriptor) -> Descriptor | None:
        """Return what the target tag resolves to now: what it did when this was planned, `root`, or nothing.

        Raises:
            Conflict: it resolves to something else.
        """
        found = self.standing(wanted.target)
        if found is not None and found.digest not in (wanted.replaces, root.digest):
            before = wanted.replaces or "no manifest"
            raise Conflict(f"{wanted.target}: target tag moved from {before} to {found.digest} since it was planned; run again")
        return found

    def _back_up(self, old: Descriptor | None, target: Reference, new: Descriptor, backup: Reference) -> None:
        """Set the tag `backup` to `old`, to which the target tag resolves, unless that is about to stay as it is."""
        if old is None or old.digest == new.digest or self._pusher(backup).has(old, tag=backup.tag):
            return
        self._keeper.keep(old)
        source = self._source(target)
        if backup.locator == target.locator:
            transfer.fetch(self._store, source, old, notify=self._received)
            transfer.put(self._store, self._pusher(backup), old, tag=backup.tag, notify=self._sent)
            return
        self._take(old, source)
        self._bring_all(old, backup, present_children(self._store), ())

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

    def _bring_all(
        self,
        root: Descriptor,
        target: Reference,
        children: Children,
        referrers: Sequence[Referrer],
        *,
        before_tag: Callable[[], object] | None = None,
    ) -> None:
        """Push a tree and its referrers. `before_tag` is called right before the request that sets the target tag."""
        wanted = without_foreign(children)
        roots = (root, *(referrer.descriptor for referrer in referrers))
        content = presence.require(self._store, *roots, children=wanted, name=str(target))
        order = Order(self._store, content, wanted)
        tagged = order.tag(root, target.tag, after=order.refer(referrers))
        for node in order.in_turn():
            if node is tagged and before_tag is not None:
                before_tag()
            self._bring(node.descriptor, target, node.tag)

    def _bring(self, descriptor: Descriptor, target: Reference, tag: str | None) -> None:
        if not descriptor.is_manifest:
            self.deliver(descriptor, target)
            return
        with self._turn(target, descriptor):
            if tag is not None or not self._whereabouts.has(target, descriptor.digest):
                transfer.put(self._store, self._pusher(target), descriptor, tag=tag, notify=self._sent)
                self._whereabouts.note(target, descriptor.digest)

    def _turn(self, place: Reference, content: Descriptor) -> Lock:
        """Held by the one who brings this content to this registry. It is forgotten with the run, as whereabouts are."""
        return self._turns.setdefault((place.host, content.digest), Lock())
