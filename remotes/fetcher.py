"""Reading from a repository: resolve references, fetch content, list tags and referrers (distribution-spec 1.1, "Pull").

A registry is trusted for one fact: the digest of a tag at the moment of resolving. A digest in the reference always wins over
the registry. Content is returned unverified; verification is left to the store.
"""

from collections.abc import Container, Iterator
from dataclasses import dataclass, replace

import httpx

from prefect_dist.ocispec import Descriptor, Digest, Reference, manifest, mediatypes
from prefect_dist.ocispec.errors import Corrupt, DistError, InvalidInput, NotFound, Unsupported
from prefect_dist.remotes import body, document, referrers
from prefect_dist.remotes.errors import RegistryNotFound, from_response
from prefect_dist.remotes.foreign import ForeignLayers
from prefect_dist.remotes.headers import ANY_MANIFEST, ASK_BY_GET, MEDIA_TYPE, digest_in, length
from prefect_dist.remotes.listing import list_tags
from prefect_dist.remotes.ranges import Ranges
from prefect_dist.remotes.remote import Source
from prefect_dist.remotes.repository import Repository

# The codes of registries for an unknown repository (distribution-spec 1.1, "Error Codes"); NOT_FOUND is the code of Harbor.
_UNKNOWN_REPOSITORY = ("NAME_UNKNOWN", "NOT_FOUND")


@dataclass(frozen=True, slots=True)
class _ManifestRequest:
    """A request to the manifests endpoint: path, accepted media types, pinned digest, and the subject of errors."""

    path: str
    accept: str
    pinned: Digest | None
    subject: str


class Fetcher(Source):
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
        """Return the descriptor of a tag or digest, see `Source.resolve`."""
        pinned = reference.pinned_digest()
        if media_type is not None and not MEDIA_TYPE.fullmatch(media_type):
            raise InvalidInput(f"bad media type {media_type!r}, expected type/subtype", subject=reference)
        if pinned is not None and media_type is not None and not mediatypes.is_manifest(media_type):
            return self._blob(pinned, str(reference))
        ask = _manifest_request(reference, media_type or ANY_MANIFEST)
        try:
            found = self._by_head(ask) or self._by_get(ask)
        except RegistryNotFound:
            if pinned is None:
                raise
        else:
            if found.size > manifest.MAX_BYTES:
                raise document.too_big(str(reference), str(found.size))
            return found
        return self._blob(pinned, str(reference))  # outside the handler, so that the 404 is not the cause of its errors

    def download(self, reference: Reference) -> Descriptor:
        """Return the descriptor of a manifest by tag or digest, with the content in `data`, unverified.

        Raises:
            Corrupt: the content is no manifest, and has another digest than the registry states.
            DistError: as `resolve`.
        """
        ask = _manifest_request(reference, ANY_MANIFEST)
        raw, expected = self._read(ask)
        try:
            return _describe(raw, expected or Digest.of(raw), ask)
        except DistError as exc:
            if expected is not None and (found := Digest.of(raw, algorithm=expected.algorithm)) != expected:
                raise Corrupt(f"expected {expected}, the registry sent {found}", subject=ask.subject) from exc
            raise

    def fetch(self, descriptor: Descriptor, *, offset: int = 0) -> Iterator[bytes]:
        """Yield the bytes of `descriptor` from `offset` to its size, in pieces of at most 1 MiB, unverified.

        A blob that the registry lacks is fetched from the `urls` of its descriptor.

        Raises:
            DistError: as `remotes.body.read`, and the errors of the registry and of the URLs.
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

    def exists(self) -> bool:
        """Return False if the registry does not know the repository: the answer is 404 with the code.

        Without the code, a 404 may only mean that the registry lists no tags.

        Raises:
            DistError: another error of the registry.
        """
        response = self._repository.send_read("GET", "tags/list?n=1", subject=self.locator, headers={})
        if response.status_code == httpx.codes.OK:
            document.read_document(response, self.locator)  # frees the connection for the next request
            return True
        error = from_response(self.locator, response)
        response.close()
        if isinstance(error, RegistryNotFound) and any(code.startswith(_UNKNOWN_REPOSITORY) for code in error.exchange.codes):
            return False
        raise error

    def tags(self) -> Iterator[str]:
        """Yield the tags of this repository, each once, in the registry's order. Pages are requested as the caller reads on.

        Raises:
            DistError: see `remotes.listing.list_tags`; raised while iterating.
        """
        return list_tags(self._repository)

    def referrers(self, descriptor: Descriptor, *, artifact_type: str | None = None) -> Iterator[Descriptor]:
        """Yield the referrers of `descriptor`, each once, with artifact type and annotations. Pages are requested on demand.

        Raises:
            InvalidInput: `artifact_type` is not a media type, or a page has an invalid entry.
            Unsupported: the list is endless, or continues at another server.
            DistError: an error of the registry.
        """
        return referrers.list_referrers(
            self._repository, descriptor.digest, artifact_type=artifact_type, no_referrers_api=self._no_referrers_api
        )

    def signatures(self, descriptor: Descriptor, *, tags: Container[str] | None = None) -> Iterator[tuple[str, Descriptor]]:
        """Yield cosign's existing digest tags of `descriptor` with their descriptors; only from `tags`, if given."""
        return referrers.signatures(self, self.locator, descriptor.digest, tags=tags)

    def _or_at_urls(self, foreign: ForeignLayers, own: Iterator[bytes], descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        """Yield the bytes from the registry or, if the registry lacks the content, from the URLs of the descriptor."""
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
        """Descriptor from the headers of a HEAD; None without a type, length or digest."""
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
            raise Unsupported("image manifest version 2, schema 1 is not supported; push the image again", subject=ask.subject)
        digest = ask.pinned or digest_in(response, ask.subject)
        if digest is None or size is None or not mediatypes.is_manifest(media_type):
            return None
        return Descriptor(media_type=media_type, digest=digest, size=size)

    def _by_get(self, ask: "_ManifestRequest") -> Descriptor:
        """Descriptor computed from the manifest itself."""
        raw, expected = self._read(ask)
        digest = Digest.of(raw, algorithm=expected.algorithm if expected else "sha256")
        if expected is not None and digest != expected:
            raise Corrupt(f"expected {expected}, the registry sent {digest}", subject=ask.subject)
        return replace(_describe(raw, digest, ask), data=None)

    def _read(self, ask: "_ManifestRequest") -> tuple[bytes, Digest | None]:
        """Manifest, and its digest according to the reference or to the registry."""
        response = self._repository.send_read("GET", ask.path, subject=ask.subject, headers={"Accept": ask.accept})
        raw = document.read_document(response, ask.subject)
        return raw, ask.pinned or digest_in(response, ask.subject)

    def _blob(self, digest: Digest, subject: str) -> Descriptor:
        """Descriptor of a pinned digest that is not a manifest. Blobs have no tags."""
        response = self._repository.send_read("HEAD", f"blobs/{digest}", subject=subject, headers={"Accept": "*/*"})
        response.close()
        if response.status_code != httpx.codes.OK:
            raise from_response(subject, response)
        size = length(response)
        if size is None:
            raise Unsupported("the registry reports no size for this blob (no Content-Length)", subject=subject)
        return Descriptor(media_type=_media_type(response), digest=digest, size=size)

    def _get_content(self, descriptor: Descriptor, byte_range: str | None, subject: str) -> httpx.Response:
        """Return an open response with content.

        The endpoint follows from the media type. After a 404 the other endpoint is tried.
        """
        is_named = MEDIA_TYPE.fullmatch(descriptor.media_type)  # a manifest may have any text as a media type
        headers = {"Accept": f"{descriptor.media_type}, */*" if is_named else "*/*"}
        missing: DistError | None = None
        for endpoint in _endpoints(descriptor):
            # Some registries reject ranges of manifests. Manifests are small: they are fetched whole, and the start is skipped.
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


def _manifest_request(reference: Reference, accept: str) -> _ManifestRequest:
    """Return the request for the manifest of a reference.

    Raises:
        InvalidInput: the reference has neither tag nor digest.
    """
    pinned = reference.pinned_digest()
    target = str(pinned) if pinned else reference.tag
    if target is None:
        raise InvalidInput(f"expected a tag or digest, such as {reference}:latest", subject=reference)
    return _ManifestRequest(f"manifests/{target}", accept, pinned, str(reference))


def _describe(raw: bytes, digest: Digest, ask: _ManifestRequest) -> Descriptor:
    return Descriptor(media_type=manifest.media_type_of(raw, at=ask.subject), digest=digest, size=len(raw), data=raw)


def _endpoints(descriptor: Descriptor) -> tuple[str, ...]:
    """Return the endpoints for content, in order. Content of an unknown type in an index may be a manifest."""
    if descriptor.is_manifest:
        return ("manifests", "blobs")
    return ("blobs", "manifests") if descriptor.kind == "blob" else ("blobs",)


def _media_type(response: httpx.Response) -> str:
    """Content-Type without parameters such as charset."""
    text: str = response.headers.get("content-type", "")
    return text.partition(";")[0].strip().lower() or mediatypes.OCTET_STREAM
