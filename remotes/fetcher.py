"""Reading from a repository: resolve references, fetch content (distribution-spec 1.1, "Pull").

A registry is trusted for one thing: which digest a tag stands for, at the moment of resolving. A digest in the reference
wins over whatever the registry says.
"""

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Protocol

import httpx

from prefect_dist.ocispec import Descriptor, Digest, Reference, manifest, mediatypes
from prefect_dist.ocispec.errors import Corrupt, DistError, InvalidInput, NotFound, Unsupported
from prefect_dist.remotes import body, document, referrers
from prefect_dist.remotes.errors import RegistryNotFound, from_response
from prefect_dist.remotes.foreign import ForeignLayers
from prefect_dist.remotes.headers import ANY_MANIFEST, ASK_BY_GET, MEDIA_TYPE, digest_in, length
from prefect_dist.remotes.listing import list_tags
from prefect_dist.remotes.ranges import Ranges
from prefect_dist.remotes.repository import Repository


@dataclass(frozen=True, slots=True)
class _ManifestRequest:
    """A request to the manifests endpoint: path, accepted media types, pinned digest, and the subject of errors."""

    path: str
    accept: str
    pinned: Digest | None
    subject: str


class Source(Protocol):
    """A source of content: a repository at one registry, or at several. Thread-safe."""

    def resolve(self, reference: Reference, *, media_type: str | None = None) -> Descriptor:
        """The descriptor of a tag or digest in this repository: see `Registries.resolve`."""

    def fetch(self, descriptor: Descriptor, *, offset: int = 0) -> Iterator[bytes]:
        """The bytes of `descriptor` from `offset` to its size, in pieces of at most 1 MiB, unverified."""

    def distrust(self, descriptor: Descriptor) -> None:
        """Note that the received bytes were wrong: use another source next time, if there is one."""

    def tags(self) -> Iterator[str]:
        """The tags of this repository, each once, in the registry's order; asked for as they are taken."""

    def referrers(self, descriptor: Descriptor, *, artifact_type: str | None = None) -> Iterator[Descriptor]:
        """The manifests about `descriptor`, each once, with artifact type and annotations; asked for as they are taken."""

    def signatures(self, descriptor: Descriptor, *, tags: Container[str] | None = None) -> Iterator[tuple[str, Descriptor]]:
        """Cosign's digest tags of `descriptor` that exist, resolved. With known `tags`, no others are requested."""


class Fetcher:
    """The content of one repository. Thread-safe.

    `no_referrers_api` is the set of hosts that were found to have no referrers API; all fetchers of a run share it. `foreign`
    reads blobs that the registry lacks from their `urls`. The fetcher of a registry mirror has none, because the next registry
    is tried instead.
    """

    def __init__(
        self, repository: Repository, ranges: Ranges, no_referrers_api: set[str], foreign: ForeignLayers | None
    ) -> None:
        self.locator = repository.locator
        self._repository = repository
        self._ranges = ranges
        self._no_referrers_api = no_referrers_api
        self._foreign = foreign

    @property
    def has_referrers_api(self) -> bool:
        """False once the registry is known to have no referrers API."""
        host = self.locator.partition("/")[0]
        return host not in self._no_referrers_api and "referrers" not in self._repository.unsupported

    def resolve(self, reference: Reference, *, media_type: str | None = None) -> Descriptor:
        """The descriptor of a tag or digest in this repository: see `Registries.resolve`."""
        pinned = reference.pinned_digest()
        target = str(pinned) if pinned else reference.tag
        if target is None:
            raise InvalidInput(f"{reference}: expected a tag or digest, such as {reference}:latest")
        if media_type is not None and not MEDIA_TYPE.fullmatch(media_type):
            raise InvalidInput(f"{reference}: bad media type {media_type!r}, expected type/subtype")
        if pinned is not None and media_type is not None and not mediatypes.is_manifest(media_type):
            return self._blob(pinned, str(reference))
        ask = _ManifestRequest(f"manifests/{target}", media_type or ANY_MANIFEST, pinned, str(reference))
        try:
            found = self._by_head(ask) or self._by_get(ask)
        except RegistryNotFound:
            if pinned is None:
                raise
        else:
            if found.size > manifest.MAX_BYTES:
                raise document.too_big(str(reference), str(found.size))
            return found
        return self._blob(pinned, str(reference))  # out of the handler: its errors have no 404 for a cause

    def fetch(self, descriptor: Descriptor, *, offset: int = 0) -> Iterator[bytes]:
        """The bytes of `descriptor` from `offset` to its size, in pieces of at most 1 MiB, unverified.

        A blob that the registry does not have is looked for at the descriptor's urls.

        Raises:
            DistError: as `remotes.body.read`, and what the registry says, and the urls.
        """
        subject = f"{descriptor} from {self._repository.locator}"
        if descriptor.is_manifest and descriptor.size > manifest.MAX_BYTES:
            raise document.too_big(subject, str(descriptor.size))

        def send(byte_range: str | None) -> httpx.Response:
            return self._get_content(descriptor, byte_range, subject)

        if "range" in self._repository.unsupported:
            own: Iterator[bytes] = body.read(send, descriptor, offset=offset, subject=subject, ranges=False)
        else:
            server = self._repository.locator.partition("/")[0]
            own = self._ranges.read(send, descriptor, offset=offset, subject=subject, server=server)
        if self._foreign is None or not descriptor.urls or descriptor.is_manifest:
            return own
        return self._or_at_urls(self._foreign, own, descriptor, offset)

    def distrust(self, descriptor: Descriptor) -> None:
        """Note that the received bytes were wrong: try another URL first next time."""
        if self._foreign is not None:
            self._foreign.distrust(descriptor.digest)

    def tags(self) -> Iterator[str]:
        """The tags of this repository, each once, in the registry's order; asked for as they are taken.

        Raises:
            DistError: as `remotes.listing.list_tags`, while iterating.
        """
        return list_tags(self._repository)

    def referrers(self, descriptor: Descriptor, *, artifact_type: str | None = None) -> Iterator[Descriptor]:
        """The manifests about `descriptor`, each once, with artifact type and annotations; asked for as they are taken.

        Raises:
            InvalidInput: an `artifact_type` that is no media type, or a listing with a bad entry.
            Unsupported: a listing without end, or one that leads away from the registry.
            DistError: what the registry says.
        """
        return referrers.list_referrers(
            self._repository, descriptor.digest, artifact_type=artifact_type, no_referrers_api=self._no_referrers_api
        )

    def signatures(self, descriptor: Descriptor, *, tags: Container[str] | None = None) -> Iterator[tuple[str, Descriptor]]:
        """Cosign's digest tags of `descriptor` that exist, resolved. With known `tags`, no others are requested."""
        return referrers.signatures(self, self.locator, descriptor.digest, tags=tags)

    def _or_at_urls(self, foreign: ForeignLayers, own: Iterator[bytes], descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        """Yield bytes from the registry or, if it does not have the content, from the URLs of the descriptor."""
        try:
            for piece in own:
                offset += len(piece)
                yield piece
        except RegistryNotFound as exc:
            missing = exc
        else:
            return
        yield from foreign.read(self._repository, descriptor, offset=offset, missing=missing)

    def _by_head(self, ask: "_ManifestRequest") -> Descriptor | None:
        """The descriptor in the headers; None where they do not tell all of type, length and digest."""
        if "head" in self._repository.unsupported:
            return None
        response = self._repository.send_read("HEAD", ask.path, subject=ask.subject, headers={"Accept": ask.accept})
        response.close()
        if response.status_code in ASK_BY_GET:
            return None
        if response.status_code != httpx.codes.OK:
            raise from_response(ask.subject, response)
        media_type, size = _media_type(response), length(response)
        if mediatypes.kind(media_type) == "schema1":
            raise Unsupported(f"{ask.subject}: image manifest version 2, schema 1 is obsolete and refused; re-push the image")
        digest = ask.pinned or digest_in(response, ask.subject)
        if digest is None or size is None or not mediatypes.is_manifest(media_type):
            return None
        return Descriptor(media_type=media_type, digest=digest, size=size)

    def _by_get(self, ask: "_ManifestRequest") -> Descriptor:
        """The descriptor of the document itself."""
        response = self._repository.send_read("GET", ask.path, subject=ask.subject, headers={"Accept": ask.accept})
        raw = document.read_document(response, ask.subject)
        expected = ask.pinned or digest_in(response, ask.subject)
        digest = Digest.of(raw, algorithm=expected.algorithm if expected else "sha256")
        if expected is not None and digest != expected:
            raise Corrupt(f"{ask.subject}: expected {expected}, the registry sends {digest}")
        return Descriptor(media_type=manifest.media_type_of(raw, at=ask.subject), digest=digest, size=len(raw))

    def _blob(self, digest: Digest, subject: str) -> Descriptor:
        """The descriptor of a pinned digest that is no manifest. A tag never gets here: blobs have none."""
        response = self._repository.send_read("HEAD", f"blobs/{digest}", subject=subject, headers={"Accept": "*/*"})
        response.close()
        if response.status_code != httpx.codes.OK:
            raise from_response(subject, response)
        size = length(response)
        if size is None:
            raise Unsupported(f"{subject}: the registry does not say how big this blob is")
        return Descriptor(media_type=_media_type(response), digest=digest, size=size)

    def _get_content(self, descriptor: Descriptor, byte_range: str | None, subject: str) -> httpx.Response:
        """An open response with content, from the endpoint that its type suggests or, after a 404 there, the other one."""
        is_named = MEDIA_TYPE.fullmatch(descriptor.media_type)  # a document may hold anything in its place
        headers = {"Accept": f"{descriptor.media_type}, */*" if is_named else "*/*"}
        missing: DistError | None = None
        for endpoint in _endpoints(descriptor):
            # Some registries refuse ranges of manifests. These are small: they come whole, and are skipped over.
            ranged = {"Range": byte_range} if byte_range and endpoint == "blobs" else {}
            path = f"{endpoint}/{descriptor.digest}"
            response = self._repository.send_read("GET", path, subject=subject, headers=headers | ranged)
            if response.status_code in (body.ANSWERS_RANGED if ranged else body.ANSWERS):
                return response
            try:
                error = from_response(subject, response)
            finally:
                response.close()
            if response.status_code != httpx.codes.NOT_FOUND:
                raise error
            missing = missing or error
        raise missing or NotFound(subject)


def _endpoints(descriptor: Descriptor) -> tuple[str, ...]:
    """Return the endpoints for content. Content of an unknown type may be a manifest, if an index lists it."""
    if descriptor.is_manifest:
        return ("manifests", "blobs")
    return ("blobs", "manifests") if descriptor.kind == "blob" else ("blobs",)


def _media_type(response: httpx.Response) -> str:
    """The content type without parameters such as charset."""
    text: str = response.headers.get("content-type", "")
    return text.partition(";")[0].strip().lower() or mediatypes.OCTET_STREAM
