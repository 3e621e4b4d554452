"""One upload session: sends the bytes of a blob, in one request or in chunks (distribution-spec 1.1, "Pushing Blobs").

An interrupted upload in chunks is resumed: the registry reports its offset, and the rest is sent. The choice between one
request and chunks is left to `remotes.pusher`.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import httpx

from prefect_dist.ocispec import Descriptor, mediatypes
from prefect_dist.ocispec.errors import Corrupt, DistError, Unavailable
from prefect_dist.remotes.errors import RegistryError, RegistryNotFound, RegistryRefused
from prefect_dist.remotes.headers import check_digest, length, location, uploaded_bytes
from prefect_dist.remotes.remote import Observer, Read
from prefect_dist.remotes.repository import Repository

# Statuses for success. Registries confuse these (containerd PR #1472, PR #3750).
DONE = frozenset({200, 201, 202, 204})
# Successive failures without a new byte. After these, the caller retries, with a delay.
_MAX_FRUITLESS = 3
# A socket timeout applies to each piece, so a slow connection has to carry a piece within that time.
_PIECE_BYTES = 128 * 1024
_OUT_OF_ORDER = 416
_TOO_MANY = 429
_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """The content of an upload: `read(offset)` yields its bytes from there; `observer(offset, gained)` is called per piece."""

    descriptor: Descriptor
    read: Read
    observer: Observer

    def part(self, first: int, end: int) -> "_UploadPart":
        """Return the bytes from `first` to before `end`, as the body of a request."""
        return _UploadPart(self, first, end)


class _UploadPart:
    """A part of the content as a request body. Each iteration reads the content again, for a request that is sent again."""

    def __init__(self, content: Content, first: int, end: int) -> None:
        self._content, self._first, self._end = content, first, end

    def __iter__(self) -> Iterator[bytes]:
        offset = self._first
        for piece in _split(self._content.read(offset)):
            kept = piece[: self._end - offset]
            yield kept
            offset += len(kept)
            self._content.observer(offset, len(kept))
            if offset == self._end:
                return
        if offset < self._end:
            raise Corrupt(f"expected {self._content.descriptor.size} bytes, got {offset}", subject=self._content.descriptor)


class UploadSession:
    """An upload session at a registry. `offset` is the number of bytes that the registry has. Not thread-safe.

    `is_lost` is True if a failure ended the session. The upload may then go on in a new session.
    """

    def __init__(self, repository: Repository, descriptor: Descriptor, opened: httpx.Response) -> None:
        self.subject = f"{descriptor} to {repository.locator}"
        self.min_chunk_bytes = length(opened, "oci-chunk-min-length") or 0
        self.offset = 0
        self.is_lost = False
        self._repository, self._descriptor = repository, descriptor
        self._offset_is_unknown = self._is_closed = False
        opened_at = location(opened, self.subject)
        if opened_at is None:
            raise Unavailable(
                "the registry accepted the upload without an upload URL (no Location header)", subject=self.subject
            )
        self._location = opened_at

    def send_whole(self, content: Content) -> None:
        """Upload all bytes in one request."""
        self._close(content.part(0, self._descriptor.size), size=self._descriptor.size)

    def send_chunks(self, content: Content, *, chunk_bytes: int) -> None:
        """Upload the missing bytes in requests of `chunk_bytes`.

        Raises:
            Unavailable: repeated failures gained nothing, or the registry asks to wait; another call resumes the upload.
            DistError: this session cannot be completed.
        """
        best, fruitless = self.offset, 0
        while not self._is_closed:
            try:
                self._step(content, chunk_bytes)
            except Unavailable as exc:
                fruitless += 1
                if self.is_lost or fruitless == _MAX_FRUITLESS or _asks_to_wait(exc):
                    raise
            if self.offset > best:
                best, fruitless = self.offset, 0

    def _step(self, content: Content, chunk_bytes: int) -> None:
        if self._offset_is_unknown:
            self._query_offset()
        elif self.offset < self._descriptor.size:
            self._send_chunk(content, min(self.offset + chunk_bytes, self._descriptor.size))
        else:
            self._close()

    def _query_offset(self) -> None:
        """Ask the registry for the offset. A registry without an answer has lost the session."""
        answer = self._send("GET", self._location, losing=(RegistryNotFound, RegistryRefused))
        has = uploaded_bytes(answer)
        if has is None:
            self.is_lost = True
            raise Unavailable("the registry does not report how many bytes it has (no Range header)", subject=self.subject)
        self._set_offset(has)

    def _send_chunk(self, content: Content, end: int) -> None:
        begin = self.offset
        # A registry that rejects the first chunk may accept no chunks, or none of this size: GHCR answers 416 to more than
        # 4 MiB.
        answer = self._send(
            "PATCH",
            self._location,
            headers=_framing_headers(end - begin) | {"Content-Range": f"{begin}-{end - 1}"},
            body=content.part(begin, end),
            expected=DONE | {_OUT_OF_ORDER} if begin else DONE,
            losing=(RegistryNotFound,) if begin else (RegistryNotFound, RegistryRefused),
        )
        if answer.status_code in DONE:
            self.offset = end  # Range is ignored: that of ECR stays at the end of the first chunk (containers-roadmap #2831)
            return
        has = uploaded_bytes(answer)
        if has is None:
            self._offset_is_unknown = True
        else:
            self._set_offset(has)
        raise Unavailable(f"the registry rejected bytes {begin} to {end - 1} as out of order", subject=self.subject)

    def _close(self, body: Iterable[bytes] = (), *, size: int = 0) -> None:
        digest = f"digest={self._descriptor.digest}".encode()
        query = b"&".join(
            filter(None, (self._location.query, digest))
        )  # as bytes: parsing a signed query and joining it again could change it
        url = self._location.copy_with(query=query)
        answer = self._send("PUT", url, headers=_framing_headers(size), body=body, losing=(RegistryNotFound,))
        check_digest(answer, self._descriptor, self.subject)
        self._is_closed = True

    def _set_offset(self, offset: int) -> None:
        if offset > self._descriptor.size:
            raise Corrupt(f"expected at most {self._descriptor.size} bytes, the registry has {offset}", subject=self.subject)
        self.offset, self._offset_is_unknown = offset, False

    def _send(
        self,
        method: str,
        url: httpx.URL,
        *,
        losing: tuple[type[RegistryError], ...],
        headers: Mapping[str, str] = _NONE,
        body: Iterable[bytes] = (),
        expected: Collection[int] = DONE,
    ) -> httpx.Response:
        """Send a request to the session and follow its Location in later requests.

        Errors of the classes `losing` end the session. After Unavailable the offset is unknown.
        """
        try:
            answer = self._repository.send_write(
                method, url, expected=expected, subject=self.subject, headers=headers, body=body
            )
        except Unavailable:
            self._offset_is_unknown = True
            raise
        except losing:
            self.is_lost = True
            raise
        self._location = location(answer, self.subject) or self._location
        return answer


def _framing_headers(size: int) -> dict[str, str]:
    return {"Content-Type": mediatypes.OCTET_STREAM, "Content-Length": str(size)}


def _asks_to_wait(error: DistError) -> bool:
    return isinstance(error, RegistryError) and (error.exchange.retry_after_s is not None or error.exchange.status == _TOO_MANY)


def _split(pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        for start in range(0, len(piece), _PIECE_BYTES):
            yield piece[start : start + _PIECE_BYTES]
