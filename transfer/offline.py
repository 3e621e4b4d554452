"""The store as the one place that images come from, where no other is to be asked."""

from collections.abc import Container, Iterator

from prefect_dist.ocispec import Descriptor, Reference, manifest
from prefect_dist.ocispec.errors import NotFound
from prefect_dist.ocispec.referrers import Referrer, cosign_tags
from prefect_dist.storage import ContentStore


class Stored:
    """A `remotes.Source` with the content that the store has recorded under one name. Thread-safe."""

    def __init__(self, store: ContentStore, reference: Reference) -> None:
        self._store, self._name = store, str(reference)

    def resolve(self, reference: Reference, *, media_type: str | None = None) -> Descriptor:  # noqa: ARG002 - names are exact
        """Return the descriptor that the name in the store resolves to.

        Raises:
            NotFound: there is no such name.
        """
        try:
            return self._store.names.get(str(reference)).descriptor
        except NotFound:
            raise NotFound(
                f"{reference}: not in the store under this name, and nobody else is to be asked; `dist names` lists what is"
            ) from None

    def fetch(self, descriptor: Descriptor, *, offset: int = 0) -> Iterator[bytes]:  # noqa: ARG002 - there is nothing
        """Return nothing: content in the store is not requested.

        Raises:
            NotFound: always.
        """
        platforms = self._store.names.get(self._name).platforms
        advice = f"of {self._name} it has {', '.join(map(str, platforms))} alone" if platforms else "fetch it before"
        raise NotFound(f"{descriptor}: not in the store, and nobody else is to be asked; {advice}")

    def distrust(self, descriptor: Descriptor) -> None:
        """Do nothing: there is no other source."""

    def tags(self) -> Iterator[str]:
        """Return nothing: the store lists no tags.

        Raises:
            NotFound: always.
        """
        raise NotFound("the store does not list tags; name the images")

    def referrers(self, descriptor: Descriptor, *, artifact_type: str | None = None) -> Iterator[Descriptor]:
        """Return the recorded referrers of the name that refer to `descriptor`."""
        for referrer in self._about(descriptor):
            if artifact_type is None or referrer.descriptor.artifact_type == artifact_type:
                yield referrer.descriptor

    def signatures(self, descriptor: Descriptor, *, tags: Container[str] | None = None) -> Iterator[tuple[str, Descriptor]]:
        """Return cosign's digest tags of `descriptor` that are recorded with the name. With known `tags`, no others count."""
        own = cosign_tags(descriptor.digest)
        for referrer in self._store.names.get(self._name).referrers:
            if referrer.tag in own and (tags is None or referrer.tag in tags):
                yield referrer.tag, referrer.descriptor

    def _about(self, descriptor: Descriptor) -> Iterator[Referrer]:
        for referrer in self._store.names.get(self._name).referrers:
            found = referrer.descriptor
            about = (
                manifest.subject(self._store.manifest(found), found.media_type, at=str(found)) if found.is_manifest else None
            )
            if about is not None and about.digest == descriptor.digest:
                yield referrer
