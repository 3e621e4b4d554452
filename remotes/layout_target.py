"""Writes images to a layout: blobs and manifests as files, tags as entries of `index.json` (image-spec 1.1, image-layout.md).

Referrers are listed under fallback tags, as in registries without a referrers API. Readers that scan `index.json` reach them
through the index under the fallback tag.
"""

from collections.abc import Callable, Iterator

from prefect_dist.ocispec import Descriptor, Digest, manifest, mediatypes
from prefect_dist.ocispec.errors import Corrupt, InvalidInput, NotFound, Unsupported
from prefect_dist.ocispec.reference import is_tag
from prefect_dist.ocispec.referrers import add_entry, fallback_tag
from prefect_dist.remotes.layout_files import INDEX, StoredFiles
from prefect_dist.remotes.layout_index import LayoutIndex, remove_entries, set_tag
from prefect_dist.remotes.remote import Observer, Read, Target

# The statuses of deletions, as a registry would answer.
_ACCEPTED, _NOT_FOUND = 202, 404
_Selection = Callable[[str | None, Digest], bool]


class LayoutTarget(Target):
    """Writes to one layout. Thread-safe, and safe against other processes that write to the same layout."""

    def __init__(self, files: StoredFiles) -> None:
        self._files = files

    def has(self, descriptor: Descriptor, *, tag: str | None = None) -> bool:
        """Return True if the layout has the manifest or blob; with `tag`, if the tag leads to the manifest.

        Raises:
            Corrupt: the layout has content of another size under this digest.
        """
        try:
            size = self._files.size(descriptor.digest)
        except NotFound:
            return False
        if size != descriptor.size:
            remedy = "remove this file from the layout"
            raise Corrupt(f"expected {descriptor.size} bytes, {self._files.at} has {size}; {remedy}", subject=descriptor)
        if tag is None:
            return True
        try:
            found = LayoutIndex.parse(self._files.read_document(INDEX), at=self._files.at).find(tag)
        except NotFound:
            return False
        return found is not None and found.digest == descriptor.digest

    def upload(self, blob: Descriptor, read: Read, *, observer: Observer) -> None:
        """Write a blob. The blob becomes visible only after its size and digest were checked."""
        self._files.write(blob, read, observer=observer)

    def put(self, raw: bytes, descriptor: Descriptor, *, tag: str | None = None) -> Digest | None:
        """Write a manifest, byte for byte, and set `tag` if given. The result is None: the caller lists referrers."""
        if tag is not None and not is_tag(tag):
            raise InvalidInput(f"bad tag {tag!r}", subject=self._files.at)
        if len(raw) != descriptor.size or Digest.of(raw, algorithm=descriptor.digest.algorithm) != descriptor.digest:
            raise Corrupt(f"expected {descriptor.size} bytes with this digest, got {len(raw)} other bytes", subject=descriptor)
        self._write(raw, descriptor)
        if tag is not None:
            self._files.change_index(lambda old: set_tag(old, tag, descriptor, at=self._files.at))
        return None

    def list_referrer(self, subject: Digest, referrer: Descriptor) -> None:
        """List `referrer` under the fallback tag of the referrers of `subject`.

        Raises:
            Unsupported: the list would exceed the size limit of manifests.
        """
        tag = fallback_tag(subject)
        at = f"{self._files.at}:{tag}"

        def add(old: bytes | None) -> bytes:
            """Write the longer list as a blob, and return the index with the list under its tag."""
            known = None if old is None else LayoutIndex.parse(old, at=self._files.at).find(tag)
            extended = add_entry(None if known is None else self._read(known), referrer, at=at)
            if extended is None:
                return old or b""
            if len(extended) > manifest.MAX_BYTES:
                raise Unsupported(f"expected at most {manifest.MAX_BYTES} bytes, got {len(extended)}", subject=at)
            listed = Descriptor(media_type=mediatypes.OCI_INDEX, digest=Digest.of(extended), size=len(extended))
            self._write(extended, listed)
            return set_tag(old, tag, listed, at=self._files.at)

        self._files.change_index(add)

    def delete_tag(self, tag: str) -> int | None:
        """Delete only a tag. The content stays. Return 202, or 404 for a missing tag."""
        if not is_tag(tag):
            raise InvalidInput(f"bad tag {tag!r}", subject=self._files.at)
        return self._remove(lambda name, _digest: name == tag)

    def delete(self, digest: Digest) -> int:
        """Delete every tag of a manifest. The content stays. Return 202, or 404 if no tag leads to the manifest."""
        return self._remove(lambda _name, found: found == digest)

    def _remove(self, is_removed: _Selection) -> int:
        status = _NOT_FOUND

        def remove(old: bytes | None) -> bytes:
            nonlocal status
            new = remove_entries(old, is_removed, at=self._files.at)
            entries = [] if old is None else LayoutIndex.parse(old, at=self._files.at).entries
            found = any(is_removed(one.name, one.descriptor.digest) for one in entries)
            status = _ACCEPTED if found else _NOT_FOUND
            return new if found or old is None else old

        self._files.change_index(remove)
        return status

    def _write(self, raw: bytes, descriptor: Descriptor) -> None:
        def read(offset: int) -> Iterator[bytes]:
            yield raw[offset:]

        self._files.write(descriptor, read, observer=lambda _offset, _gained: None)

    def _read(self, descriptor: Descriptor) -> bytes:
        raw = b"".join(self._files.read(descriptor, 0))
        if (found := Digest.of(raw, algorithm=descriptor.digest.algorithm)) != descriptor.digest:
            raise Corrupt(f"expected {descriptor.digest}, {self._files.at} has {found}", subject=descriptor)
        return raw
