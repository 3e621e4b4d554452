"""Checks images in the store, and records the names of whole images."""

from collections.abc import Callable

from prefect_dist.ocispec import Descriptor, Reference
from prefect_dist.ocispec.children import (
    Children,
    children_reader,
    filter_platforms,
    without_foreign,
    without_missing_attestations,
)
from prefect_dist.ocispec.errors import InvalidInput, NotFound
from prefect_dist.ocispec.platform import Platforms
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.ocispec.schemes import STORE
from prefect_dist.storage import ContentStore, Name, presence
from prefect_dist.storage.leases import Lease
from prefect_dist.storage.presence import Presence


class ImageRecorder:
    """Records images in a store. The `lease` protects the images from gc until the run ends. Thread-safe.

    An `offline` run takes images as the store has them: with selected platforms, attestation manifests may be missing, and
    non-distributable layers are not needed. The run records no name, because it reads each image from its name.
    """

    def __init__(self, store: ContentStore, lease: Lease, *, offline: bool = False) -> None:
        self.store, self._lease, self._offline = store, lease, offline

    def keep(self, *roots: Descriptor) -> None:
        """Protect all content below some roots from gc until the run ends, also content that arrives later."""
        self._lease.take(*roots)

    def check_and_name(self, reference: Reference, root: Descriptor, *, platforms: Platforms = None) -> Presence:
        """Return the present and the missing content of an image. A whole image gets the name, any other image a lease.

        `platforms` are the wanted platforms of an index; None is every platform.

        Raises:
            NotFound: the image is whole, but only for other platforms.
        """
        self._protect(root)
        with self.store.exclude_gc():
            found = presence.check(self.store, root, children=self.children(platforms))
            if found.is_complete:
                self._name(reference, root, platforms=platforms)
        if not found.is_complete:
            self._lease.take(root)
        return found

    def pin(self, root: Descriptor, *, platforms: Platforms = None) -> Presence:
        """Protect a tree from gc until the run ends. Return the present and the missing content of the tree."""
        self._lease.take(root)
        with self.store.exclude_gc():
            return presence.check(self.store, root, children=self.children(platforms))

    def record(
        self,
        reference: Reference,
        root: Descriptor,
        *,
        platforms: Platforms = None,
        referrers: tuple[Referrer, ...] | None = None,
    ) -> None:
        """Record the name of an image with its `referrers`, after a check for missing content.

        With `referrers` None, the recorded referrers of the same content stay. An offline run only checks the content.

        Raises:
            NotFound: content is missing, or the image is only for other platforms; the name is not recorded.
        """
        roots = (root, *(referrer.descriptor for referrer in referrers or ()))
        self._protect(*roots)
        with self.store.exclude_gc():
            presence.require(self.store, *roots, children=self.children(platforms), name=str(reference))
            # Registries list referrers in any order. A fixed order keeps the record unchanged.
            ordered = None if referrers is None else tuple(sorted(referrers, key=lambda one: str(one.descriptor.digest)))
            self._name(reference, root, platforms=platforms, referrers=ordered)

    def _protect(self, *roots: Descriptor) -> None:
        """Take leases before a check, in a store without locks: only a lease keeps gc from the content."""
        if not self.store.has_locks:
            self._lease.take(*roots)

    def _name(
        self, reference: Reference, root: Descriptor, *, platforms: Platforms, referrers: tuple[Referrer, ...] | None = None
    ) -> None:
        if platforms is not None:
            presence.require_platform(self.store, root, platforms)
        if self._offline or reference.scheme == STORE:
            return
        known, is_lacking = self._recorded_name(reference.name, root), False
        if known is not None:
            is_complete = _union(known.platforms, platforms) == platforms
            is_lacking = known.lacks_attestations and not is_complete
            platforms = _union(known.platforms, platforms)
            referrers = known.referrers if referrers is None else referrers
        self.store.names.put(
            reference.name,
            root,
            source=reference.locator,
            platforms=platforms,
            lacks_attestations=is_lacking,
            referrers=referrers or (),
        )

    def _recorded_name(self, name: str, root: Descriptor) -> Name | None:
        """Return the record of a name, if the record has this content."""
        try:
            known = self.store.names.get(name)
        except (NotFound, InvalidInput):
            return None
        return known if known.descriptor.digest == root.digest else None

    def children(self, platforms: Platforms, *, read: Callable[[Descriptor], bytes] | None = None) -> Children:
        """Return a handler for the children of manifests: of an index, the manifests for `platforms`.

        `read` reads a manifest; the default reads the store.
        """
        children = children_reader(read or self.store.manifest)
        if self.is_missing is not None:
            children = without_foreign(children)
            children = children if platforms is None else without_missing_attestations(children, self.is_missing)
        return filter_platforms(children, platforms)

    @property
    def is_missing(self) -> Callable[[Descriptor], bool] | None:
        """The test for attestation manifests to leave out, or None if all attestation manifests are needed."""
        return (lambda descriptor: not self.store.holds(descriptor)) if self._offline else None


def _union(one: Platforms, other: Platforms) -> Platforms:
    """Return the platforms of two runs; None is every platform."""
    return None if one is None or other is None else tuple(dict.fromkeys((*one, *other)))
