"""Reads images from a layout: resolve tags, fetch blobs, list tags and referrers (image-spec 1.1, image-layout.md).

Referrers are found in two ways: the fallback tag of their subject, as in registries without a referrers API, and entries of
`index.json` whose manifests have the subject, as written by oras.
"""

import threading
from collections.abc import Container, Iterator
from dataclasses import replace

from prefect_dist.ocispec import Descriptor, Digest, Reference, manifest, mediatypes
from prefect_dist.ocispec.errors import Corrupt, InvalidInput, NotFound, Unsupported
from prefect_dist.ocispec.image_layout import INDEX
from prefect_dist.ocispec.referrers import MAX_REFERRERS, cosign_tags, fallback_tag, is_index, make_entry
from prefect_dist.remotes.layout_files import LayoutFiles, require_version
from prefect_dist.remotes.layout_index import LayoutIndex
from prefect_dist.remotes.remote import Source

_MISSING = "no image layout found; check the location"


class LayoutSource(Source):
    """The images of one layout. Thread-safe. Each call reads the index again; its entries and their subjects are kept."""

    def __init__(self, files: LayoutFiles, *, has_short_names: bool = True, missing: str = _MISSING) -> None:
        """Read from `files`. With `has_short_names`, a tag also leads to the only image with a full name of this tag.

        `missing` is the message about a layout without `index.json`.
        """
        self._files, self._has_short_names, self._missing = files, has_short_names, missing
        self._guard = threading.Lock()
        self._parsed: tuple[bytes, LayoutIndex] | None = None
        self._subjects: dict[Digest, Digest | None] = {}

    def resolve(self, reference: Reference, *, media_type: str | None = None) -> Descriptor:
        """Return the descriptor of a tag or digest. A layout with a single image needs neither.

        Raises:
            InvalidInput: the layout has several images, and the reference names none.
            NotFound: the layout or the image does not exist.
        """
        index, pinned = self._read_index(), reference.pinned_digest()
        if pinned is not None:
            return index.find_digest(pinned) or self._describe(pinned, reference, media_type)
        if reference.tag is None:
            return index.find_only(lambda listed: self._subject_of(listed) is not None)
        found = index.find(reference.tag)
        if found is None:
            raise NotFound(
                f"the layout has no image with this tag; dist tags {reference.locator} lists the tags", subject=reference
            )
        return found

    def fetch(self, descriptor: Descriptor, *, offset: int = 0) -> Iterator[bytes]:
        """Yield the bytes of `descriptor` from `offset` to its size, unverified."""
        return self._files.read(descriptor, offset)

    def exists(self) -> bool:
        """Return False if the layout does not exist."""
        try:
            self._files.read_document(INDEX)
        except NotFound:
            return False
        return True

    @property
    def has_referrers_api(self) -> bool:
        """True: the index lists referrers that no fallback tag lists."""
        return True

    def tags(self) -> Iterator[str]:
        """Yield the tags, each once, in the order of the index."""
        return self._read_index().tags()

    def referrers(self, descriptor: Descriptor, *, artifact_type: str | None = None) -> Iterator[Descriptor]:
        """Yield the referrers of `descriptor`, each once, with artifact type and annotations.

        Raises:
            Unsupported: more than MAX_REFERRERS manifests are listed.
            DistError: the layout cannot be read.
        """
        index, seen = self._read_index(), set[Digest]()
        for found in (*self._list_fallback(index, descriptor.digest), *self._list_entries(index, descriptor.digest)):
            if found.digest in seen:
                continue
            seen.add(found.digest)
            if artifact_type is None or found.artifact_type == artifact_type:
                yield found

    def signatures(self, descriptor: Descriptor, *, tags: Container[str] | None = None) -> Iterator[tuple[str, Descriptor]]:
        """Yield cosign's existing digest tags of `descriptor` with their descriptors; only from `tags`, if given."""
        index = self._read_index()
        for tag in cosign_tags(descriptor.digest):
            if (tags is None or tag in tags) and (found := index.find(tag)) is not None:
                yield tag, found

    def _read_index(self) -> LayoutIndex:
        try:
            raw = self._files.read_document(INDEX)
        except NotFound as exc:
            raise NotFound(f"{self._missing} ({INDEX}: {exc.message})", subject=self._files.at) from exc
        if (known := self._parsed) is None or known[0] != raw:
            require_version(self._files)
            parsed = LayoutIndex.parse(raw, at=self._files.at, has_short_names=self._has_short_names)
            self._parsed = known = raw, parsed
        return known[1]

    def _describe(self, digest: Digest, reference: Reference, media_type: str | None) -> Descriptor:
        """Return the descriptor of a blob that the index does not list."""
        size = self._files.size(digest)
        if media_type is not None:
            return Descriptor(media_type=media_type, digest=digest, size=size)
        bare = Descriptor(media_type=mediatypes.OCTET_STREAM, digest=digest, size=size)
        if size > manifest.MAX_BYTES:
            return bare
        raw = read_verified(self._files, bare)
        try:
            found = manifest.media_type_of(raw, at=str(reference))
            manifest.children(raw, found, at=str(reference))  # a config has the field `config`, too, but is no manifest
        except (InvalidInput, Unsupported):
            return bare
        return replace(bare, media_type=found)

    def _list_fallback(self, index: LayoutIndex, subject: Digest) -> tuple[Descriptor, ...]:
        found = index.find(fallback_tag(subject))
        if found is None:
            return ()
        raw, tag = read_verified(self._files, found), fallback_tag(subject)
        if not is_index(raw):
            raise Unsupported(
                f"expected an OCI index of referrers of {subject}, the tag has other content", subject=f"{self._files.at}:{tag}"
            )
        listed = manifest.children(raw, mediatypes.OCI_INDEX, at=f"{self._files.at}:{tag}")
        if len(listed) > MAX_REFERRERS:
            raise Unsupported(f"expected at most {MAX_REFERRERS} referrers, there are more", subject=found)
        return listed

    def _list_entries(self, index: LayoutIndex, subject: Digest) -> Iterator[Descriptor]:
        """Yield the listed manifests with a subject. Manifests under a tag are images or reached by their digest tags."""
        candidates = [one.bare for one in index.entries if one.tag is None and one.descriptor.is_manifest]
        if len(candidates) > MAX_REFERRERS:
            raise Unsupported(
                f"expected at most {MAX_REFERRERS} manifests without a tag, there are more", subject=self._files.at
            )
        for candidate in candidates:
            if self._subject_of(candidate) == subject:
                yield make_entry(read_verified(self._files, candidate), candidate, at=str(candidate))

    def _subject_of(self, listed: Descriptor) -> Digest | None:
        with self._guard:
            if listed.digest not in self._subjects:
                try:
                    about = manifest.subject(read_verified(self._files, listed), listed.media_type, at=str(listed))
                except (Corrupt, InvalidInput, NotFound, Unsupported):
                    about = None  # an unreadable manifest concerns only the reader of that manifest
                self._subjects[listed.digest] = None if about is None else about.digest
            return self._subjects[listed.digest]


def read_verified(files: LayoutFiles, descriptor: Descriptor) -> bytes:
    """Return the bytes of a manifest, after checking size and digest.

    Raises:
        Unsupported: the manifest is too large.
        Corrupt: the layout has other bytes.
        DistError: the layout cannot be read.
    """
    if descriptor.size > manifest.MAX_BYTES:
        raise Unsupported(
            f"expected at most {manifest.MAX_BYTES} bytes, its descriptor states {descriptor.size}", subject=descriptor
        )
    return descriptor.verify(b"".join(files.read(descriptor, 0)), source=files.at)
