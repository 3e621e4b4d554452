"""Writes images to a layout: blobs and manifests as files, tags as entries of `index.json` (image-spec 1.1, image-layout.md).

Referrers are listed under fallback tags, as in registries without a referrers API. Readers that scan `index.json` reach them
through the index under the fallback tag.
"""

from collections.abc import Callable, Iterator, Sequence

from prefect_dist.ocispec import Descriptor, Digest, manifest, mediatypes
from prefect_dist.ocispec.errors import InvalidInput, NotFound, Unsupported
from prefect_dist.ocispec.image_layout import INDEX
from prefect_dist.ocispec.reference import is_tag
from prefect_dist.ocispec.referrers import add_entry, fallback_tag, is_index
from prefect_dist.remotes.layout_files import require_version
from prefect_dist.remotes.layout_index import LayoutIndex, remove_entries, set_tag
from prefect_dist.remotes.layout_source import read_verified
from prefect_dist.remotes.layout_writer import LayoutWriter
from prefect_dist.remotes.remote import Observer, Read, Target

_Selection = Callable[[str | None, Digest], bool]


class LayoutTarget(Target):
    """Writes to one layout. Thread-safe, and safe against other processes that write to the same layout."""

    def __init__(self, writer: LayoutWriter) -> None:
        self._writer, self._files = writer, writer.files

    def has(self, descriptor: Descriptor, *, tag: str | None = None) -> bool:
        """Return True if the layout has the manifest or blob; with `tag`, if the tag leads to the manifest.

        Raises:
            Corrupt: the layout has content of another size under this digest.
        """
        if not self._writer.has(descriptor):
            return False
        if tag is None:
            return True
        index = self._read_index()
        found = None if index is None else index.find(tag)
        return found is not None and found.digest == descriptor.digest

    def check_image(self, content: Sequence[Descriptor]) -> None:  # noqa: ARG002 - a layout accepts every image
        """Check that the location has a layout, or that a layout may begin there.

        Raises:
            InvalidInput, Unsupported, Denied: see `LayoutWriter.check_place`.
        """
        self._writer.check_place()

    def upload(self, blob: Descriptor, read: Read, *, observer: Observer) -> None:
        """Write a blob. The blob becomes visible only after its size and digest were checked."""
        self._writer.write(blob, read, observer=observer)

    def put(self, raw: bytes, descriptor: Descriptor, *, tag: str | None = None) -> Digest | None:
        """Write a manifest, byte for byte, and set `tag` if given. The result is None: the caller lists referrers."""
        if tag is not None and not is_tag(tag):
            raise InvalidInput(f"bad tag {tag!r}", subject=self._files.at)
        descriptor.verify(raw, source="the caller")
        self._write(raw, descriptor)
        if tag is not None:
            self._writer.change_index(lambda old: set_tag(old, tag, descriptor, at=self._files.at))
        return None

    def list_referrer(self, subject: Digest, referrer: Descriptor) -> None:
        """List `referrer` under the fallback tag of the referrers of `subject`.

        Raises:
            Unsupported: the fallback tag has other content, or the list would exceed the size limit of manifests.
        """
        tag = fallback_tag(subject)
        at = f"{self._files.at}:{tag}"

        def add(old: bytes | None) -> bytes:
            """Write the longer list as a blob, and return the index with the list under its tag."""
            known = None if old is None else LayoutIndex.parse(old, at=self._files.at).find(tag)
            listing = None if known is None else read_verified(self._files, known)
            if listing is not None and not is_index(listing):
                raise Unsupported(f"expected an OCI index of referrers of {subject}, the tag has other content", subject=at)
            extended = add_entry(listing, referrer, at=at)
            if extended is None:
                return old or b""
            if len(extended) > manifest.MAX_BYTES:
                raise Unsupported(f"expected at most {manifest.MAX_BYTES} bytes, got {len(extended)}", subject=at)
            listed = Descriptor(media_type=mediatypes.OCI_INDEX, digest=Digest.of(extended), size=len(extended))
            self._write(extended, listed)
            return set_tag(old, tag, listed, at=self._files.at)

        self._writer.change_index(add)

    def delete_tag(self, tag: str) -> bool:
        """Delete only a tag, and return True. The content stays."""
        if not is_tag(tag):
            raise InvalidInput(f"bad tag {tag!r}", subject=self._files.at)
        self._remove(lambda name, _digest: name == tag)
        return True

    def delete(self, digest: Digest) -> None:
        """Delete every tag of a manifest. The content stays."""
        self._remove(lambda _name, found: found == digest)

    def _remove(self, is_removed: _Selection) -> None:
        def remove(old: bytes | None) -> bytes:
            if old is None:
                raise NotFound("no index.json", subject=self._files.at)
            entries = LayoutIndex.parse(old, at=self._files.at).entries
            is_found = any(is_removed(one.name, one.descriptor.digest) for one in entries)
            return remove_entries(old, is_removed, at=self._files.at) if is_found else old

        if self._read_index() is not None:  # otherwise a deletion would create a layout
            self._writer.change_index(remove)

    def _read_index(self) -> LayoutIndex | None:
        try:
            raw = self._files.read_document(INDEX)
        except NotFound:
            return None
        require_version(self._files)
        return LayoutIndex.parse(raw, at=self._files.at)

    def _write(self, raw: bytes, descriptor: Descriptor) -> None:
        def read(offset: int) -> Iterator[bytes]:
            yield raw[offset:]

        self._writer.write(descriptor, read, observer=lambda _offset, _gained: None)
