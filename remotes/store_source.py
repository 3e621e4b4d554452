"""Reads the images of the content store by their names: `store:NAME`, and all images of an offline run."""

from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from threading import Event

from prefect_dist.ocispec import Descriptor, Digest, Reference, manifest, mediatypes
from prefect_dist.ocispec.errors import NotFound, Unavailable, Unsupported
from prefect_dist.ocispec.referrers import Referrer, cosign_tags
from prefect_dist.remotes.remote import Source
from prefect_dist.storage import ContentStore, Name


class StoredSource(Source):
    """A source with the content of one name in the store. Thread-safe.

    The record of the name is read once, so that a run sees one image. After `aborted` is set, transfers fail.
    """

    def __init__(self, store: ContentStore, name: str, *, aborted: Event | None = None) -> None:
        self._store, self._name, self._aborted = store, name, aborted

    @cached_property
    def record(self) -> Name:
        """The record of the name.

        Raises:
            NotFound: the store does not have the name.
            InvalidInput: the record is damaged.
        """
        try:
            return self._store.names.get(self._name)
        except NotFound:
            raise NotFound(
                "the store has no image of this name; `dist names` lists the names",
                subject=self._name,
            ) from None

    @property
    def origin(self) -> Reference:
        """The repository from which the image was fetched."""
        return Reference(self.record.source)

    def resolve(self, reference: Reference, *, media_type: str | None = None) -> Descriptor:
        """Return the descriptor that the name in the store resolves to, or the descriptor of a digest in the reference.

        Raises:
            NotFound: the store does not have the name, or no content with the digest.
        """
        root, digest = self.record.descriptor, reference.digest
        if digest is None or digest == str(root.digest) or not Digest.is_valid(digest):  # a name may have an @
            return root
        return self._describe(Digest.parse(digest), media_type)

    def download(self, reference: Reference) -> Descriptor:
        """Return the descriptor without content: the store has the content already."""
        return self.resolve(reference)

    def fetch(self, descriptor: Descriptor, *, offset: int = 0) -> Iterator[bytes]:
        """Yield the bytes of `descriptor` from `offset` on. Units of work request only content that the store lacks.

        Raises:
            NotFound: the store does not have the content.
            Unavailable: the transfers of the run are aborted.
        """
        if self._store.holds(descriptor):
            return self._read(descriptor, offset)
        platforms = self.record.platforms
        remedy = (
            f"of {self._name} the store has only {', '.join(map(str, platforms))}" if platforms else "fetch the image first"
        )
        raise NotFound(f"not in the store; {remedy}", subject=descriptor)

    def _read(self, descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        for piece in self._store.chunks(descriptor.digest, offset=offset):
            if self._aborted is not None and self._aborted.is_set():
                raise Unavailable("reading the store was aborted", subject=descriptor)
            yield piece

    def tags(self) -> Iterator[str]:
        """Raise an error: the store lists no tags.

        Raises:
            Unsupported: always.
        """
        raise Unsupported(
            "the remote store: cannot list tags; name each image with its tag, as dist names lists it", subject=self._name
        )

    def referrers(self, descriptor: Descriptor, *, artifact_type: str | None = None) -> Iterator[Descriptor]:
        """Return the referrers of `descriptor` that the store recorded with the name."""
        for referrer in self._about(descriptor):
            if artifact_type is None or referrer.descriptor.artifact_type == artifact_type:
                yield referrer.descriptor

    def signatures(self, descriptor: Descriptor, *, tags: Container[str] | None = None) -> Iterator[tuple[str, Descriptor]]:
        """Return the digest tags of `descriptor` that the store recorded with the name, limited to `tags` if given."""
        own = cosign_tags(descriptor.digest)
        for referrer in self._list_referrers():
            if referrer.tag in own and (tags is None or referrer.tag in tags):
                yield referrer.tag, referrer.descriptor

    def _describe(self, digest: Digest, media_type: str | None) -> Descriptor:
        bare = Descriptor(media_type=media_type or mediatypes.OCTET_STREAM, digest=digest, size=self._store.info(digest).size)
        if media_type is not None or bare.size > manifest.MAX_BYTES:
            return bare
        found = manifest.find_media_type(self._store.manifest(bare), at=str(digest))
        return bare if found is None else replace(bare, media_type=found)

    def _list_referrers(self) -> Sequence[Referrer]:
        return self.record.referrers

    def _about(self, descriptor: Descriptor) -> Iterator[Referrer]:
        for referrer in self._list_referrers():
            found = referrer.descriptor
            about = (
                manifest.subject(self._store.manifest(found), found.media_type, at=str(found)) if found.is_manifest else None
            )
            if about is not None and about.digest == descriptor.digest:
                yield referrer


class StoredNames(StoredSource):
    """A source with the names of one repository, as a target of a run has to see them. Thread-safe.

    Each resolution reads the current record of a name. The digest tags and referrers are those of the resolved names and of
    the name with which the source was opened.
    """

    def __init__(self, store: ContentStore, name: str, *, aborted: Event | None = None) -> None:
        super().__init__(store, name, aborted=aborted)
        self._records: dict[str, Name] = {}

    def resolve(self, reference: Reference, *, media_type: str | None = None) -> Descriptor:
        """Return the descriptor of a name, of a digest, or of a digest tag that belongs to a name.

        Raises:
            NotFound: the store does not have the name, the content or the digest tag.
            InvalidInput: the record of the name is damaged.
        """
        if (digest := reference.pinned_digest()) is not None:
            return self._describe(digest, media_type)
        try:
            found = self._records[reference.name] = self._store.names.get(reference.name)
        except NotFound:
            self._records.pop(reference.name, None)
            for referrer in self._list_referrers():
                if referrer.tag is not None and referrer.tag == reference.tag:
                    return referrer.descriptor
            raise
        return found.descriptor

    def _list_referrers(self) -> Sequence[Referrer]:
        if self._name not in self._records:
            with suppress(NotFound):
                self._records[self._name] = self._store.names.get(self._name)
        return [referrer for record in list(self._records.values()) for referrer in record.referrers]
