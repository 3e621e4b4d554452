"""Bringing images from the store to many repositories: blobs as they come, then manifests. No Prefect here.

Content goes to a registry once, and is mounted into its other repositories (`tasks.whereabouts`).
"""

from collections.abc import Callable, Sequence

from ocispec import Descriptor, Reference
from ocispec.handlers import Handler, without_foreign
from ocispec.referrers import Referrer
from remotes import Pusher
from storage import ContentStore, completeness
from tasks import transfer
from tasks.precedence import Order
from tasks.transfer import Observer, Receipt
from tasks.whereabouts import Whereabouts


class Delivery:
    """One run's deliveries. Thread-safe."""

    def __init__(self, store: ContentStore, pusher: Callable[[Reference], Pusher], observer: Observer) -> None:
        self._store, self._pusher, self._observer = store, pusher, observer
        self.whereabouts = Whereabouts()

    def deliver(self, blob: Descriptor, place: Reference) -> Receipt | None:
        """Bring a blob to the repository of `place`, mounted if the registry is known to have it; None if that is known, too.

        Raises:
            DistError: see `tasks.transfer.push`.
        """
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

    def _bring(self, descriptor: Descriptor, target: Reference, tag: str | None) -> Receipt | None:
        if not descriptor.is_manifest:
            return self.deliver(descriptor, target)
        if tag is None and self.whereabouts.has(target, descriptor.digest):
            return None
        receipt = transfer.put(self._store, self._pusher(target), descriptor, tag=tag)
        self.whereabouts.note(target, descriptor.digest)
        return receipt
