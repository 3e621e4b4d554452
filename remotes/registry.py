"""Registries: resolve references and fetch content (distribution-spec 1.1, "Pull").

    text → Reference → Registries.resolve → (name, descriptor, fetcher) → fetcher.fetch(descriptor) → bytes

A registry is trusted for one thing: which digest a tag stands for, at the moment of resolving. A digest in the reference
wins over whatever the registry says.
"""

import http.cookiejar
import logging
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx

from ocispec import Descriptor, Digest, Reference, manifest, mediatypes
from ocispec.errors import Corrupt, DistError, InvalidInput, NotFound, Unavailable, Unsupported
from remotes import body
from remotes.auth import HostAuth, RegistryAuth
from remotes.credentials import Credentials
from remotes.errors import RegistryNotFound, from_response, from_transport, one_line, redact, refuse_coding
from remotes.hosts import base_url
from remotes.transport import Urllib3Transport

_log = logging.getLogger(__name__)
_ACCEPT = ", ".join((*mediatypes.MANIFESTS, "*/*"))
# HEAD is answered so where it does not exist, or (403) where only the body of a GET says why.
_ASK_BY_GET = frozenset({403, 405, 501})
_ANSWERS = frozenset({200, 206})
_ANSWERS_RANGED = _ANSWERS | {416}
# media-type ::= restricted-name "/" restricted-name  (RFC 6838, 4.2)
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*")
_MAX_LENGTH_DIGITS = 19
_DIGEST_CHARS = 160  # more than any digest has: what a message shows of a bad one


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySettings:
    """How registries are reached. `plain_http` is for hosts other than loopback ones, which always are."""

    plain_http: bool = False
    connect_timeout_s: float = 30
    read_timeout_s: float = 60


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a reference stands for: the name to record, the root of its content, and where to fetch that."""

    name: str
    descriptor: Descriptor
    fetcher: "Fetcher"


@dataclass(frozen=True, slots=True)
class _Question:
    """What the manifests endpoint is asked: where, for which media types, for which digest if one is pinned, and for whom."""

    url: str
    accept: str
    pinned: Digest | None
    subject: str


class Registries:
    """All registries, through one client. Thread-safe; close it, or use it in a `with` block."""

    def __init__(self, settings: RegistrySettings, *, credentials: Callable[[str], Credentials | None]) -> None:
        self._settings = settings
        self._credentials = credentials
        self._hosts: dict[str, HostAuth] = {}
        self._guard = threading.Lock()
        self._transport = Urllib3Transport(
            verify=ssl.create_default_context(),
            connect_timeout_s=settings.connect_timeout_s,
            read_timeout_s=settings.read_timeout_s,
        )
        self._client = httpx.Client(
            transport=self._transport,
            event_hooks={"response": [_log_response]},
            headers={"User-Agent": "prefect-dist", "Accept-Encoding": "identity"},
            # Cookies ignore ports and outlive a request: a registry needs none, and none is taken.
            cookies=http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[])),
            follow_redirects=True,
        )

    def resolve(self, reference: Reference, *, media_type: str | None = None) -> Resolved:
        """The root of what `reference` names. A `media_type` hints at which of several forms of it is meant.

        Raises:
            InvalidInput: neither tag nor digest, a bad digest, or the registry answers with something that is no manifest.
            NotFound, Denied, Unavailable, Unsupported, Corrupt: what the registry says, see `remotes.errors`.
        """
        fetcher = self.fetcher(reference)
        return Resolved(str(reference), fetcher.resolve(reference, media_type=media_type), fetcher)

    def fetcher(self, reference: Reference) -> "Fetcher":
        """Access to the content of the reference's repository."""
        with self._guard:
            if reference.host not in self._hosts:
                self._hosts[reference.host] = HostAuth(reference.host, self._credentials(reference.host))
            host = self._hosts[reference.host]
        auth = RegistryAuth(host, f"repository:{reference.repository}:pull")
        base = base_url(reference.host, plain_http=self._settings.plain_http)
        return Fetcher(self._client, auth, f"{base}/v2/{reference.repository}", reference.locator)

    def abort(self) -> None:
        """Break off whatever is under way: it fails with Unavailable, and so does all that follows."""
        self._transport.abort()

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Fetcher:
    """The content of one repository. Thread-safe: it has no state but its constants (containerd 2e0c92b168)."""

    def __init__(self, client: httpx.Client, auth: httpx.Auth, url: str, locator: str) -> None:
        self._client, self._auth, self._url, self._locator = client, auth, url, locator

    def resolve(self, reference: Reference, *, media_type: str | None = None) -> Descriptor:
        """The descriptor of a tag or digest in this repository: see `Registries.resolve`."""
        pinned = reference.pinned()
        target = str(pinned) if pinned else reference.tag
        if target is None:
            raise InvalidInput(f"{reference}: expected a tag or digest, such as {reference}:latest")
        if media_type is not None and not _MEDIA_TYPE.fullmatch(media_type):
            raise InvalidInput(f"{reference}: bad media type {media_type!r}, expected type/subtype")
        if pinned is not None and media_type is not None and not mediatypes.is_manifest(media_type):
            return self._blob(pinned, str(reference))
        ask = _Question(f"{self._url}/manifests/{target}", media_type or _ACCEPT, pinned, str(reference))
        try:
            found = self._by_head(ask) or self._by_get(ask)
        except RegistryNotFound:
            if pinned is None:
                raise
        else:
            if found.size > manifest.MAX_BYTES:
                raise _too_big(str(reference), str(found.size))
            return found
        return self._blob(pinned, str(reference))  # out of the handler: its errors have no 404 for a cause

    def fetch(self, descriptor: Descriptor, *, offset: int = 0) -> Iterator[bytes]:
        """The bytes of `descriptor` from `offset` to its size, in pieces of at most 1 MiB, unverified.

        Raises:
            DistError: as `remotes.body.read`, and what the registry says.
        """
        subject = f"{descriptor} from {self._locator}"
        if descriptor.is_manifest and descriptor.size > manifest.MAX_BYTES:
            raise _too_big(subject, str(descriptor.size))

        def send(byte_range: str | None) -> httpx.Response:
            return self._get_content(descriptor, byte_range, subject)

        return body.read(send, descriptor, offset=offset, subject=subject)

    def _by_head(self, ask: "_Question") -> Descriptor | None:
        """The descriptor in the headers; None where they do not tell all of type, length and digest."""
        response = self._request("HEAD", ask.url, {"Accept": ask.accept}, ask.subject)
        response.close()
        if response.status_code in _ASK_BY_GET:
            return None
        if response.status_code != httpx.codes.OK:
            raise from_response(ask.subject, response)
        media_type, size = _media_type(response), _length(response)
        if mediatypes.kind(media_type) == "schema1":
            raise Unsupported(f"{ask.subject}: image manifest version 2, schema 1 is obsolete and refused; re-push the image")
        digest = ask.pinned or _digest(response, ask.subject)
        if digest is None or size is None or not mediatypes.is_manifest(media_type):
            return None
        return Descriptor(media_type=media_type, digest=digest, size=size)

    def _by_get(self, ask: "_Question") -> Descriptor:
        """The descriptor of the document itself."""
        response = self._request("GET", ask.url, {"Accept": ask.accept}, ask.subject)
        try:
            if response.status_code != httpx.codes.OK:
                raise from_response(ask.subject, response)
            raw = _read_document(response, ask.subject)
        except httpx.RequestError as exc:
            raise from_transport(ask.subject, exc) from exc
        finally:
            response.close()
        expected = ask.pinned or _digest(response, ask.subject)
        digest = Digest.of(raw, algorithm=expected.algorithm if expected else "sha256")
        if expected is not None and digest != expected:
            raise Corrupt(f"{ask.subject}: expected {expected}, the registry sends {digest}")
        return Descriptor(media_type=manifest.media_type_of(raw, at=ask.subject), digest=digest, size=len(raw))

    def _blob(self, digest: Digest, subject: str) -> Descriptor:
        """The descriptor of a pinned digest that is no manifest. A tag never gets here: blobs have none."""
        response = self._request("HEAD", f"{self._url}/blobs/{digest}", {"Accept": "*/*"}, subject)
        response.close()
        if response.status_code != httpx.codes.OK:
            raise from_response(subject, response)
        size = _length(response)
        if size is None:
            raise Unsupported(f"{subject}: the registry does not say how big this blob is")
        return Descriptor(media_type=_media_type(response), digest=digest, size=size)

    def _get_content(self, descriptor: Descriptor, byte_range: str | None, subject: str) -> httpx.Response:
        """An open response with content, from the endpoint that its type suggests or, after a 404 there, the other one."""
        is_named = _MEDIA_TYPE.fullmatch(descriptor.media_type)  # a document may hold anything in its place
        headers = {"Accept": f"{descriptor.media_type}, */*" if is_named else "*/*"}
        missing: DistError | None = None
        for endpoint in _endpoints(descriptor):
            # Some registries refuse ranges of manifests. These are small: they come whole, and are skipped over.
            ranged = {"Range": byte_range} if byte_range and endpoint == "blobs" else {}
            response = self._request("GET", f"{self._url}/{endpoint}/{descriptor.digest}", headers | ranged, subject)
            if response.status_code in (_ANSWERS_RANGED if ranged else _ANSWERS):
                return response
            try:
                error = from_response(subject, response)
            finally:
                response.close()
            if response.status_code != httpx.codes.NOT_FOUND:
                raise error
            missing = missing or error
        raise missing or NotFound(subject)

    def _request(self, method: str, url: str, headers: dict[str, str], subject: str) -> httpx.Response:
        try:
            return self._client.send(self._client.build_request(method, url, headers=headers), auth=self._auth, stream=True)
        except httpx.RequestError as exc:
            raise from_transport(subject, exc) from exc
        except httpx.InvalidURL as exc:
            raise Unavailable(f"{subject}: the registry redirects to a bad URL ({one_line(str(exc))})") from exc


def _log_response(response: httpx.Response) -> None:
    """One line for each answer, those of redirects and token servers included."""
    if _log.isEnabledFor(logging.DEBUG):  # to make a URL fit to be shown costs as much as hashing a small blob
        _log.debug("%s %s: %d", response.request.method, redact(response.request.url), response.status_code)


def _endpoints(descriptor: Descriptor) -> tuple[str, ...]:
    """Where content may be. Only an unknown type leaves open whether an index lists it, which makes it a manifest."""
    if descriptor.is_manifest:
        return ("manifests", "blobs")
    return ("blobs", "manifests") if descriptor.kind == "blob" else ("blobs",)


def _media_type(response: httpx.Response) -> str:
    """The content type without parameters such as charset."""
    text: str = response.headers.get("content-type", "")
    return text.partition(";")[0].strip().lower() or mediatypes.OCTET_STREAM


def _length(response: httpx.Response) -> int | None:
    """The size that the headers announce; None where they do not, or in no number."""
    text: str = response.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _MAX_LENGTH_DIGITS else None


def _digest(response: httpx.Response, subject: str) -> Digest | None:
    text: str | None = response.headers.get("docker-content-digest")
    if not text:
        return None
    try:
        return Digest.parse(text[:_DIGEST_CHARS])
    except DistError as exc:
        raise type(exc)(f"{subject}: the registry answers with {exc}") from exc


def _read_document(response: httpx.Response, subject: str) -> bytes:
    refuse_coding(subject, response)
    announced = _length(response)
    if announced is not None and announced > manifest.MAX_BYTES:
        raise _too_big(subject, str(announced))
    raw = b""
    for piece in response.iter_raw():
        raw += piece
        if len(raw) > manifest.MAX_BYTES:
            raise _too_big(subject, "more")
    return raw


def _too_big(subject: str, size: str) -> Unsupported:
    return Unsupported(f"{subject}: expected a manifest of at most {manifest.MAX_BYTES} bytes, it has {size}")
