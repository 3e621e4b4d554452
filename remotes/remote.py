"""The interface of remotes: places that have images, such as registries, image layouts and archives.

A remote resolves a reference to a name, a descriptor and a source to fetch the content from. Lists and pushes are optional
abilities. References and names are opaque to the callers: only the remote interprets the text after the scheme.

A remote never decides that content is valid. The callers check size and digest of all content against the descriptor.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

from prefect_dist.ocispec import Descriptor, Digest, Reference, manifest
from prefect_dist.ocispec.errors import Unsupported

Ability = Literal["tags", "repositories", "referrers", "push"]
Read = Callable[[int], Iterator[bytes]]
Observer = Callable[[int, int], None]

_PHRASES: Mapping[Ability, str] = {
    "tags": "cannot list tags",
    "repositories": "cannot list repositories",
    "referrers": "cannot list referrers",
    "push": "is read-only",
}


def make_unsupported(ability: Ability, reference: Reference) -> Unsupported:
    """Return the error of a command that needs an ability which the remote of a reference does not have."""
    return Unsupported(f"the remote {reference.scheme}: {_PHRASES[ability]}", subject=reference)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A resolved reference: the name to record, the root descriptor, and the source to fetch the content from."""

    name: str
    descriptor: Descriptor
    fetcher: "Source"


class Source(ABC):
    """Reads images from one place: a repository, a layout or an archive. Thread-safe.

    A subclass has to define `resolve` and `fetch`. The other methods describe a place without lists: a subclass overrides
    `tags` if its remote has the ability "tags", and `referrers` and `signatures` for the ability "referrers".
    """

    @abstractmethod
    def resolve(self, reference: Reference, *, media_type: str | None = None) -> Descriptor:
        """Return the descriptor of a tag or digest. A digest in the reference wins over the tag.

        `media_type` is a hint for a reference with several forms. The descriptor needs the exact size of the content.

        Raises:
            InvalidInput: the reference does not name one image of this place.
            NotFound, Denied, Unavailable, Unsupported, Corrupt: the place has no such image, or cannot be read.
        """

    @abstractmethod
    def fetch(self, descriptor: Descriptor, *, offset: int = 0) -> Iterator[bytes]:
        """Yield the bytes of `descriptor` from `offset` to its size, in pieces of a few MiB at most, unverified.

        `descriptor` is any content of the place, not only the content of the last `resolve`. An offset equal to the size yields
        nothing.

        Raises:
            NotFound, Denied, Unavailable, Unsupported, Corrupt: the content is missing, or cannot be read.
        """

    def download(self, reference: Reference) -> Descriptor:
        """Return the descriptor of a manifest by tag or digest, with the content in `data`, unverified."""
        found = self.resolve(reference)
        return replace(found, data=b"".join(self.fetch(found))) if found.size <= manifest.MAX_BYTES else found

    def distrust(self, descriptor: Descriptor) -> None:
        """Note that the received bytes were wrong: prefer another registry or URL next time."""

    def exists(self) -> bool:
        """Return False if the place is known not to exist.

        Raises:
            DistError: the place cannot be read.
        """
        return True

    @property
    def has_referrers_api(self) -> bool:
        """True if the place lists the referrers of manifests that no fallback tag lists."""
        return False

    def tags(self) -> Iterator[str]:
        """Yield the tags, each once. Pages are requested as the caller reads on.

        Raises:
            Unsupported: the place has no list of tags.
        """
        raise Unsupported(_PHRASES["tags"])

    def referrers(self, descriptor: Descriptor, *, artifact_type: str | None = None) -> Iterator[Descriptor]:
        """Yield the referrers of `descriptor`, each once, with artifact type and annotations. Pages are requested on demand.

        Raises:
            Unsupported: the place has no list of referrers.
        """
        raise Unsupported(_PHRASES["referrers"])

    def signatures(self, descriptor: Descriptor, *, tags: Container[str] | None = None) -> Iterator[tuple[str, Descriptor]]:
        """Yield cosign's existing digest tags of `descriptor` with their descriptors; only from `tags`, if given.

        Raises:
            Unsupported: the place has no list of referrers.
        """
        raise Unsupported(_PHRASES["referrers"])


class Target(ABC):
    """Writes to one place: a repository, a layout or an archive. Thread-safe.

    Each place has one target, shared by all callers of a run.
    """

    @abstractmethod
    def has(self, descriptor: Descriptor, *, tag: str | None = None) -> bool:
        """Return True if the place has the manifest or blob; with `tag`, if the tag resolves to the manifest.

        Raises:
            Corrupt: the place has content of another size under this digest.
            DistError: the place cannot be read.
        """

    def check_image(self, content: Sequence[Descriptor]) -> None:
        """Check that the place accepts an image with this content, before any content is fetched for the image.

        Raises:
            Unsupported: the place holds no such images.
        """

    def mount(self, blob: Descriptor, *, source: str | None = None) -> bool:
        """Let the place take a blob from `source`, another repository of the same registry. Return False if it did not."""
        return False

    @abstractmethod
    def upload(self, blob: Descriptor, read: Read, *, observer: Observer) -> None:
        """Write a blob. `read(offset)` yields the bytes from `offset` on; `observer(offset, gained)` is called per piece.

        The blob becomes visible only after its size and digest were checked.

        Raises:
            Corrupt: `read` yields other content than the descriptor describes.
            DistError: an error of the place or of `read`.
        """

    @abstractmethod
    def put(self, raw: bytes, descriptor: Descriptor, *, tag: str | None = None) -> Digest | None:
        """Write a manifest, byte for byte, under its digest or under `tag`. Its children have to exist at the place.

        Return the subject under which the place lists the manifest as a referrer. If the manifest has a subject and the result
        is None, the caller has to call `list_referrer`.

        Raises:
            InvalidInput: an invalid media type or tag.
            Corrupt: the bytes do not match the descriptor.
            DistError: an error of the place.
        """

    @abstractmethod
    def list_referrer(self, subject: Digest, referrer: Descriptor) -> None:
        """List `referrer`, made by `ocispec.referrers.make_entry`, under the fallback tag of the referrers of `subject`.

        Raises:
            DistError: an error of the place.
        """

    @abstractmethod
    def delete_tag(self, tag: str) -> bool:
        """Delete only a tag. Return False if the place cannot delete single tags. A missing tag is deleted already.

        Raises:
            DistError: an error of the place.
        """

    @abstractmethod
    def delete(self, digest: Digest) -> None:
        """Delete a manifest and every tag that resolves to it. A missing manifest is deleted already.

        Raises:
            Unsupported: this place deletes no manifests.
            DistError: an error of the place.
        """


class Remote(ABC):
    """Opens the places of one scheme. Thread-safe.

    A subclass has to define `open_source`. `abilities` are the optional abilities of at least one place of the remote: "push"
    requires `open_target`, and "repositories" requires `list_repositories`.
    """

    abilities: frozenset[Ability] = frozenset()

    @abstractmethod
    def open_source(self, reference: Reference) -> Source:
        """Return the source for the place of a reference."""

    def open_origin(self, reference: Reference) -> Source:
        """Return the source for the place of a reference itself, without caches such as registry mirrors."""
        return self.open_source(reference)

    def open_target(self, reference: Reference) -> Target:
        """Return the target for the place of a reference.

        Raises:
            Unsupported: the place is read-only.
        """
        raise make_unsupported("push", reference)

    @final
    def resolve(self, reference: Reference, *, media_type: str | None = None) -> Resolved:
        """Return the name, root descriptor and source of a reference, see `Source.resolve`."""
        source = self.open_source(reference)
        return Resolved(str(reference), source.resolve(reference, media_type=media_type), source)

    def list_repositories(self, host: str) -> Iterator[str]:
        """Yield the repositories of a registry `host[:port]`, or below a locator `scheme:place`, each once.

        Raises:
            Unsupported: the remote has no such list.
        """
        raise make_unsupported("repositories", Reference(host))

    def abort(self) -> None:
        """Abort the transfers in flight and refuse later ones: both fail with Unavailable."""

    def close(self) -> None:
        """Release the resources of the remote."""
