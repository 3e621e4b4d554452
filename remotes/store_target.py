"""Records images in the content store under names: `store:NAME`."""

from collections.abc import Sequence

from prefect_dist.ocispec import Descriptor, Digest, Platform, Reference, manifest
from prefect_dist.ocispec.children import attested_digest, children_reader
from prefect_dist.ocispec.errors import InvalidInput, NotFound, Unsupported
from prefect_dist.ocispec.reference import is_tag
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.remotes.remote import Observer, Read, Target
from prefect_dist.remotes.store_content import keep_content
from prefect_dist.remotes.untagged import UntaggedManifests
from prefect_dist.storage import ContentStore, Name, presence
from prefect_dist.storage.archive.related import merge_referrers
from prefect_dist.storage.leases import Lease


class StoreTarget(Target):
    """Records names of one repository in the content store. Thread-safe.

    The content of a run is in the store already, so only the tag of an image changes anything: `repository:tag` becomes the
    name of the image, with its present platforms and the referrers that the run pushed. `lease` protects content that is
    written without a run.
    """

    def __init__(self, store: ContentStore, reference: Reference, *, lease: Lease) -> None:
        self._store, self._repository, self._lease = store, reference.without_object().name, lease
        self._untagged = UntaggedManifests()

    def has(self, descriptor: Descriptor, *, tag: str | None = None) -> bool:
        """Return True if the store has the manifest or blob; with `tag`, if the name leads to the manifest.

        Raises:
            Corrupt: the store has content of another size under this digest.
        """
        if not self._store.holds(descriptor):
            return False
        if tag is None:
            return True
        known = self._find_name(self._name(tag))
        return known is not None and known.descriptor.digest == descriptor.digest

    def upload(self, blob: Descriptor, read: Read, *, observer: Observer) -> None:
        """Ensure that the store has a blob."""
        keep_content(self._store, self._lease, blob, read)
        observer(blob.size, blob.size)

    def put(self, raw: bytes, descriptor: Descriptor, *, tag: str | None = None) -> Digest | None:
        """Ensure that the store has a manifest; record the name if `tag` is the tag of an image.

        Raises:
            NotFound: content of the image is missing.
        """
        if tag is not None and not is_tag(tag):
            raise InvalidInput(f"bad tag {tag!r}", subject=self._repository)
        keep_content(self._store, self._lease, descriptor, lambda offset: iter((raw[offset:],)))
        if tag is None:
            return self._untagged.add(raw, descriptor)
        if not self._untagged.add_tagged(descriptor, tag):
            self._record(descriptor, tag)
        about = manifest.subject(raw, descriptor.media_type, at=str(descriptor))
        return None if about is None else about.digest

    def list_referrer(self, subject: Digest, referrer: Descriptor) -> None:
        """Note a referrer for the name of its image, which is recorded later in the run."""
        self._untagged.add_referrer(subject, Referrer(referrer))

    def delete_tag(self, tag: str) -> bool:
        """Remove a name, and return True. The content stays until gc."""
        name = self._name(tag)
        if name in self._store.names:
            self._store.names.delete(name)
        return True

    def delete(self, digest: Digest) -> None:
        """Raise an error: the store removes names, and gc removes content.

        Raises:
            Unsupported: always.
        """
        raise Unsupported("the store removes names, not manifests; dist gc removes content without a name", subject=digest)

    def _name(self, tag: str) -> str:
        return f"{self._repository}:{tag}"

    def _find_name(self, name: str) -> Name | None:
        """Return the record of a name; None for a missing or damaged record, which a new record replaces."""
        try:
            return self._store.names.get(name)
        except (NotFound, InvalidInput):
            return None

    def _record(self, root: Descriptor, tag: str) -> None:
        store, name = self._store, self._name(tag)
        children = presence.present_children(store)

        def walk(referrer: Descriptor) -> Sequence[Descriptor]:
            return presence.require(store, referrer, children=children, name=name)

        with store.leases.hold() as lease:
            lease.take(root)
            with store.exclude_gc():
                platforms, is_lacking, tree = self._find_platforms(root, name)
                pushed = [one for _, one in self._untagged.find_referrers(tree, walk)]
                lease.take(*(one.descriptor for one in pushed))
                known = self._find_name(name)
                recorded = known.referrers if known is not None and known.descriptor.key == root.key else ()
                store.names.put(
                    name,
                    root,
                    source=self._repository,
                    platforms=platforms,
                    lacks_attestations=is_lacking,
                    referrers=merge_referrers(recorded, pushed),
                )
        self._untagged.discard(tree)

    def _find_platforms(self, root: Descriptor, name: str) -> tuple[tuple[Platform, ...] | None, bool, tuple[Descriptor, ...]]:
        """Return the platforms of the complete images of an index, whether attestations are missing, and the present tree.

        The platforms are None for an index without missing content, and for an image of one platform.
        """
        children = children_reader(self._store.manifest)
        if root.kind != "index":
            return None, False, presence.require(self._store, root, children=children, name=name)
        found = {one.digest: presence.check(self._store, one, children=children) for one in children(root)}
        complete = [one for one in children(root) if found[one.digest].is_complete]
        images = [one for one in complete if attested_digest(one) is None]
        if not images:
            raise NotFound("the store has no complete image of this index", subject=name)
        tree = (root, *(one for child in complete for one in found[child.digest].present))
        if len(complete) == len(children(root)):
            return None, False, tree
        subjects, held = {str(one.digest) for one in images}, {one.digest for one in complete}
        is_lacking = any(attested_digest(one) in subjects and one.digest not in held for one in children(root))
        return tuple(dict.fromkeys(one.platform for one in images if one.platform is not None)), is_lacking, tree
