"""Writes images to archives: `oci-archive:FILE`, and `docker-archive:FILE` for `docker load`."""

from collections.abc import Callable, Sequence

from prefect_dist.ocispec import Descriptor, Digest, Reference, manifest, mediatypes
from prefect_dist.ocispec.children import attested_digest
from prefect_dist.ocispec.errors import Corrupt, InvalidInput, NotFound, Unsupported
from prefect_dist.ocispec.reference import is_tag
from prefect_dist.ocispec.referrers import Referrer, fallback_tag
from prefect_dist.remotes.archive_content import ArchiveContent
from prefect_dist.remotes.archive_place import ArchivePlace
from prefect_dist.remotes.archive_writer import ArchiveChange, ArchiveWriter
from prefect_dist.remotes.remote import Observer, Read, Target
from prefect_dist.remotes.untagged import UntaggedManifests
from prefect_dist.storage.archive.docker import find_platforms


class ArchiveTarget(Target):
    """Writes images to one archive, in the format of `dist export`. Thread-safe.

    An archive that exists is changed as a layout would be: the tags of the run are added or replaced, and all other images of
    the archive stay, also those that another program wrote. If a tag has the wanted digest already, the file is not written.
    A file that is no archive of images is refused.

    A tag writes a new version of the file, which replaces the file as a whole, so a crash or a full disk leaves the previous
    version. Tags that are set concurrently are written together. Equal images give equal bytes. Manifests without a tag, such
    as referrers, are written with the tag of their image, and content that no tag leads to is left out.
    """

    def __init__(
        self,
        reference: Reference,
        writer: ArchiveWriter,
        *,
        keep: Callable[[Descriptor, Read], None],
        is_single: bool,
    ) -> None:
        """Write to the place of `reference`. `keep` keeps content in the store. `is_single` requires images of one platform."""
        self._at, self._place = reference.locator, ArchivePlace.parse(reference)
        self._writer, self._keep, self._is_single = writer, keep, is_single
        self._untagged = UntaggedManifests()

    def has(self, descriptor: Descriptor, *, tag: str | None = None) -> bool:
        """Return True if the archive has the manifest or blob; with `tag`, if the tag leads to the manifest.

        Raises:
            Corrupt: the archive has content of another size under this digest.
            InvalidInput: the file is no archive of images.
        """
        files = self._writer.open_files()
        try:
            size = None if files is None else files.size(descriptor.digest)
        except NotFound:
            return False
        if size is not None and size != descriptor.size:
            raise Corrupt(f"expected {descriptor.size} bytes, {self._at} has {size}; remove the file", subject=descriptor)
        if size is None or tag is None:
            return size is not None
        found = self._writer.read_index(self._place).find(tag)
        return found is not None and found.digest == descriptor.digest

    def check_image(self, content: Sequence[Descriptor]) -> None:
        """Check that an archive for Docker gets images of one platform.

        Raises:
            Unsupported: the content has images of several platforms.
        """
        images = [one for one in content if one.kind == "manifest" and attested_digest(one) is None]
        if self._is_single and len(images) > 1:
            _require_single(content[0], len(images))

    def upload(self, blob: Descriptor, read: Read, *, observer: Observer) -> None:
        """Keep a blob for the next version of the archive."""
        self._keep(blob, read)
        self._writer.pushed[blob.digest] = blob.size
        observer(blob.size, blob.size)

    def put(self, raw: bytes, descriptor: Descriptor, *, tag: str | None = None) -> Digest | None:
        """Keep a manifest for the next version of the archive; write the version if `tag` is the tag of an image.

        Raises:
            NotFound: content of the manifest was not pushed.
            Unsupported: the archive is for Docker, and the image does not have exactly one platform.
        """
        if tag is not None and not is_tag(tag):
            raise InvalidInput(f"bad tag {tag!r}", subject=self._at)
        descriptor.verify(raw, source="the caller")
        self._keep(descriptor, lambda offset: iter((raw[offset:],)))
        self._writer.pushed[descriptor.digest] = descriptor.size
        if tag is None:
            return self._untagged.add(raw, descriptor)
        if not self._untagged.add_tagged(descriptor, tag):
            self._set_tag(descriptor, tag)
        return None

    def list_referrer(self, subject: Digest, referrer: Descriptor) -> None:
        """List `referrer` under the fallback tag of the referrers of `subject`, with the tag of the image if that follows."""
        if not self._untagged.add_referrer(subject, Referrer(referrer)):
            self._writer.change(ArchiveChange(place=self._place, listed=((subject, referrer),)))

    def delete_tag(self, tag: str) -> bool:
        """Delete only a tag, and return True. The archive keeps the content that other tags lead to."""
        if self._writer.read_index(self._place).find(tag) is not None:
            self._writer.change(ArchiveChange(place=self._place, removed=frozenset((tag,))))
        return True

    def delete(self, digest: Digest) -> None:
        """Delete every tag of a manifest."""
        entries = self._writer.read_index(self._place).entries
        tags = frozenset(one.name for one in entries if one.descriptor.digest == digest and one.name is not None)
        if tags:
            self._writer.change(ArchiveChange(place=self._place, removed=tags))

    def _set_tag(self, root: Descriptor, tag: str) -> None:
        content = self._writer.open_content()
        tree = content.walk(root, at=f"{self._at}:{tag}")
        if self._is_single:
            _require_single(root, len(find_platforms(content.read_document, tree)))
        referrers = self._untagged.find_referrers(tree, content.walk)
        is_complete = self.has(root, tag=tag) and all(self.has(one) for one in tree)
        if not (is_complete and all(self._is_listed(subject, one, content) for subject, one in referrers)):
            tags = {one.tag: one.descriptor for _, one in referrers if one.tag is not None}
            listed = tuple((subject, one.descriptor) for subject, one in referrers if one.tag is None)
            self._writer.change(ArchiveChange(place=self._place, tags={**tags, tag: root}, listed=listed))
        self._untagged.discard(tree)

    def _is_listed(self, subject: Digest, referrer: Referrer, content: ArchiveContent) -> bool:
        """Return True if the current version of the archive leads to a referrer."""
        listed = self._writer.read_index(self._place).find(referrer.tag or fallback_tag(subject))
        if listed is None or referrer.tag is not None:
            return listed is not None and listed.digest == referrer.descriptor.digest
        found = manifest.children(content.read_document(listed), mediatypes.OCI_INDEX, at=self._at)
        return any(one.digest == referrer.descriptor.digest for one in found)


def _require_single(root: Descriptor, images: int) -> None:
    if images != 1:
        raise Unsupported(
            f"docker load reads images of one platform, this content has {images} images; "
            "select one platform, or write an oci-archive:",
            subject=root,
        )
