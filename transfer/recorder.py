"""What the store has of images, and the names that are recorded for those that are whole."""

from collections.abc import Callable

from prefect_dist.ocispec import Descriptor, Reference
from prefect_dist.ocispec.children import Children, children_reader, filter_platforms, without_missing_attestations
from prefect_dist.ocispec.errors import InvalidInput, NotFound
from prefect_dist.ocispec.platform import Platforms
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.storage import ContentStore, Name, presence
from prefect_dist.storage.leases import Lease
from prefect_dist.storage.presence import Presence


class Keeper:
    """Keeps images in a store: the `lease` protects them from gc until the run ends. Thread-safe.

    `offline` runs take images as the store has them: with platforms selected, missing attestation manifests are left out.
    """

    def __init__(self, store: ContentStore, lease: Lease, *, offline: bool = False) -> None:
        self.store, self._lease, self._offline = store, lease, offline

    def keep(self, root: Descriptor) -> None:
        """Keep gc from all that is below a root, be it there or still to come, until the run ends."""
        self._lease.take(root)

    def look(self, reference: Reference, root: Descriptor, *, platforms: Platforms = None) -> Presence:
        """Return the content of an image that is present and missing; a whole image gets its name, any other a lease.

        `platforms` are those that are wanted of an index; None is all of them.

        Raises:
            NotFound: it is all there but for other platforms.
        """
        self._protect(root)
        with self.store.unswept():
            found = presence.check(self.store, root, children=self.children(platforms))
            if found.is_complete:
                self._name(reference, root, platforms=platforms)
        if not found.is_complete:
            self._lease.take(root)
        return found

    def hold(self, root: Descriptor, *, platforms: Platforms = None) -> Presence:
        """What the store has of a tree, all of which gc is kept from until the run ends."""
        self._lease.take(root)
        with self.store.unswept():
            return presence.check(self.store, root, children=self.children(platforms))

    def record(
        self,
        reference: Reference,
        root: Descriptor,
        *,
        platforms: Platforms = None,
        referrers: tuple[Referrer, ...] | None = None,
    ) -> None:
        """Record the name of an image with its `referrers`, after a last look that nothing of them is missing.

        No referrers, None, says that nobody asked for them: those that are known of the same content stay.

        Raises:
            NotFound: something is, or it is all there but for other platforms; the name is not recorded.
        """
        roots = (root, *(referrer.descriptor for referrer in referrers or ()))
        self._protect(*roots)
        with self.store.unswept():
            presence.require(self.store, *roots, children=self.children(platforms), name=str(reference))
            # In an order of their own: they are found in another one each time, which would make it another record.
            ordered = None if referrers is None else tuple(sorted(referrers, key=lambda one: str(one.descriptor.digest)))
            self._name(reference, root, platforms=platforms, referrers=ordered)

    def _protect(self, *roots: Descriptor) -> None:
        """Record leases where no lock keeps gc out during a look: there they have to be on record before it."""
        if not self.store.locks:
            self._lease.take(*roots)

    def _name(
        self, reference: Reference, root: Descriptor, *, platforms: Platforms, referrers: tuple[Referrer, ...] | None = None
    ) -> None:
        if platforms is not None:
            presence.require_platform(self.store, root, platforms)
        known, is_lacking = self._known(str(reference), root), False
        if known is not None:
            is_complete = not self._offline and _joined(known.platforms, platforms) == platforms
            is_lacking = known.lacks_attestations and not is_complete
            platforms = _joined(known.platforms, platforms)
            referrers = known.referrers if referrers is None else referrers
        self.store.names.put(
            str(reference),
            root,
            source=reference.locator,
            platforms=platforms,
            lacks_attestations=is_lacking,
            referrers=referrers or (),
        )

    def _known(self, name: str, root: Descriptor) -> Name | None:
        """The record of a name, if it stands for this content already."""
        try:
            known = self.store.names.get(name)
        except (NotFound, InvalidInput):
            return None
        return known if known.descriptor.digest == root.digest else None

    def children(self, platforms: Platforms) -> Children:
        """Return a handler for the children of manifests: of an index, the manifests for `platforms`."""
        children = children_reader(self.store.manifest)
        if self.is_missing is not None and platforms is not None:
            children = without_missing_attestations(children, self.is_missing)
        return filter_platforms(children, platforms)

    @property
    def is_missing(self) -> Callable[[Descriptor], bool] | None:
        """Tell which attestation manifests are left out; None if all are needed."""
        return (lambda descriptor: not self.store.holds(descriptor)) if self._offline else None


def _joined(one: Platforms, other: Platforms) -> Platforms:
    """The platforms of two runs; None is all."""
    return None if one is None or other is None else tuple(dict.fromkeys((*one, *other)))
