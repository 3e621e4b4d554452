"""Bringing images from the store to many repositories: blobs as they come, then manifests. No Prefect here.

Content goes to a registry once, and is mounted into its other repositories (`tasks.whereabouts`). Who wants the same content at
the same registry at the same time waits for the one who brings it. Beside what that spares, the CNCF registry 2.8 wants it so:
it refuses a manifest (400 DIGEST_INVALID) while a blob that this names is brought there once more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock

from ocispec import Descriptor, Digest, Reference
from ocispec.errors import NotFound
from ocispec.handlers import Handler, children_handler, visit, without_foreign
from ocispec.platform import Platforms
from ocispec.referrers import Referrer
from remotes import Pusher, Source
from storage import ContentStore, completeness
from storage.completeness import held_children
from tasks import transfer
from tasks.precedence import Order
from tasks.transfer import Observer, Receipt
from tasks.whereabouts import Whereabouts


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Publication:
    """An image of the store that a tag is to stand for.

    `platforms` are those that are wanted of an index, None is all; with `rewritten` an index of these alone is made.
    `referrers` go along. What the tag stands for until then is kept as `backup`.
    """

    root: Descriptor
    target: Reference
    platforms: Platforms = None
    rewritten: bool = False
    referrers: tuple[Referrer, ...] = ()
    backup: Reference | None = None


class Delivery:
    """One run's deliveries. `source` and `pusher` give access to the repository of a reference. Thread-safe."""

    def __init__(
        self,
        store: ContentStore,
        *,
        source: Callable[[Reference], Source],
        pusher: Callable[[Reference], Pusher],
        observer: Observer,
    ) -> None:
        self._store, self._source, self._pusher, self._observer = store, source, pusher, observer
        self._turns: dict[tuple[str, Digest], Lock] = {}
        self.whereabouts = Whereabouts()

    def deliver(self, blob: Descriptor, place: Reference) -> Receipt | None:
        """Bring a blob to the repository of `place`, mounted if the registry is known to have it; None if that is known, too.

        Raises:
            DistError: see `tasks.transfer.push`.
        """
        with self._turns.setdefault(
            (place.host, blob.digest), Lock()
        ):  # who waits here has it mounted then, instead of sending it, too
            if self.whereabouts.has(place, blob.digest):
                return None
            beside = self.whereabouts.beside(place, blob.digest)
            receipt = transfer.push(self._store, self._pusher(place), blob, source=beside, observer=self._observer)
            self.whereabouts.note(place, blob.digest)
        return receipt

    def publish(
        self, root: Descriptor, target: Reference, *, children: Handler, referrers: Sequence[Referrer] = ()
    ) -> tuple[Receipt, ...]:
        """Bring what is missing of an image to the repository of `target`, in order, and set its tag last.

        Raises:
            NotFound: something of it is not in the store.
            DistError: see `tasks.transfer`; what is there already need not be sent again.
        """
        wanted = without_foreign(children)
        roots = (root, *(referrer.descriptor for referrer in referrers))
        content = completeness.require(self._store, *roots, children=wanted, name=str(target))
        order = Order(self._store, content, wanted)
        order.tag(root, target.tag, after=order.refer(referrers))
        return tuple(filter(None, (self._bring(node.descriptor, target, node.tag) for node in order.in_turn())))

    def standing(self, target: Reference) -> Descriptor | None:
        """What a tag stands for; None for nothing.

        Raises:
            DistError: what the registry says.
        """
        try:
            return self._source(target).resolve(target)
        except NotFound:
            return None

    def back_up(self, old: Descriptor, target: Reference, backup: Reference) -> tuple[Receipt, ...]:
        """Have `backup` stand for what `target` stands for; nothing is sent where it does.

        Raises:
            DistError: see `tasks.transfer`.
        """
        if self._pusher(backup).has(old, tag=backup.tag):
            return ()
        source = self._source(target)
        if backup.locator == target.locator:
            transfer.fetch(self._store, source, old, observer=self._observer)
            return (transfer.put(self._store, self._pusher(backup), old, tag=backup.tag),)
        self._take(old, source)
        return self.publish(old, backup, children=held_children(self._store))

    def _take(self, root: Descriptor, source: Source) -> None:
        """Bring a tree into the store, as far as it is there: of an index, a target may have some platforms alone."""
        children = children_handler(self._store.manifest)
        pending = [(root, False)]
        while pending:
            descriptor, optional = pending.pop()
            try:
                transfer.fetch(self._store, source, descriptor, observer=self._observer)
            except NotFound:
                if not optional:
                    raise
                continue
            below = visit(children, descriptor)
            pending += [(child, descriptor.kind == "index" and child.is_manifest) for child in below]

    def _bring(self, descriptor: Descriptor, target: Reference, tag: str | None) -> Receipt | None:
        if not descriptor.is_manifest:
            return self.deliver(descriptor, target)
        with self._turn(target, descriptor):
            if tag is None and self.whereabouts.has(target, descriptor.digest):
                return None
            receipt = transfer.put(self._store, self._pusher(target), descriptor, tag=tag)
            self.whereabouts.note(target, descriptor.digest)
        return receipt

    def _turn(self, place: Reference, content: Descriptor) -> Lock:
        """Held by the one who brings this content to this registry. It is forgotten with the run, as whereabouts are."""
        return self._turns.setdefault((place.host, content.digest), Lock())
