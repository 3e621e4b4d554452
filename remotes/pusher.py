"""Writing to a repository: blobs, manifests, tags and fallback indexes of referrers (distribution-spec 1.1, "Push").

Deleting tags and manifests follows "Content Management"; the caller decides what to delete. One upload session is left to
`remotes.upload`.
"""

import logging
import threading
from collections.abc import Sequence
from urllib.parse import urlencode

from prefect_dist.ocispec import Descriptor, Digest, manifest, mediatypes
from prefect_dist.ocispec.errors import (
    Busy,
    Corrupt,
    Denied,
    DistError,
    InvalidInput,
    NotFound,
    Unavailable,
    Unsupported,
    quote_text,
)
from prefect_dist.ocispec.reference import is_tag
from prefect_dist.ocispec.referrers import add_entry, fallback_tag
from prefect_dist.ocispec.units import size
from prefect_dist.remotes import document, referrers
from prefect_dist.remotes.errors import Exchange, RegistryRefused, RegistryUnavailable
from prefect_dist.remotes.headers import ANY_MANIFEST, ASK_BY_GET, MEDIA_TYPE, check_digest, digest_in, length
from prefect_dist.remotes.remote import Observer, Read, Target
from prefect_dist.remotes.repository import Repository
from prefect_dist.remotes.sizes import RegistrySizes
from prefect_dist.remotes.upload import DONE, Content, UploadSession

_log = logging.getLogger(__name__)
# Attempts to write a fallback index that other clients write at the same time.
_MAX_WRITES = 5
_OK, _CREATED, _NOT_FOUND, _TOO_LARGE = 200, 201, 404, 413
# "If tag deletion is disabled, the registry MUST respond with either a 400 Bad Request or a 405 Method Not Allowed", and the
# same for manifests (distribution-spec 1.1, "Deleting tags", "Deleting Manifests").
_DELETION_UNSUPPORTED = frozenset({400, 405})
_SIZE = "SIZE_INVALID"
_BLOB_IN_FLIGHT = ("DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN")


def _ignore_progress(_offset: int, _gained: int) -> None:
    """Ignore the progress of an upload."""


class Pusher(Target):
    """Pushes content to one repository. Thread-safe. `sizes` are the limits of the registry."""

    def __init__(self, repository: Repository, sizes: RegistrySizes) -> None:
        self._repository, self._sizes = repository, sizes
        # Interrupted sessions, by blob; the next upload of the blob resumes one. Each access to the dictionary is atomic.
        self._sessions: dict[Digest, UploadSession] = {}
        self._index_locks: dict[str, threading.Lock] = {}  # held while a fallback index is changed, by its tag
        self._listed_referrers: dict[Digest, dict[Digest, Descriptor]] = {}  # entries added to fallback indexes, by subject

    def has(self, descriptor: Descriptor, *, tag: str | None = None) -> bool:
        """Return True if the repository has the manifest or blob; with `tag`, if the tag resolves to the manifest.

        With `tag`, a registry without a digest in its response counts as False.

        Raises:
            Corrupt: the registry has the digest with another size.
        """
        path = f"{'manifests' if descriptor.is_manifest else 'blobs'}/{tag or descriptor.digest}"
        subject = self._subject(descriptor)
        # CNCF distribution finds a manifest only if Accept has its media type. The media type of a blob may be any text.
        headers = {"Accept": f"{descriptor.media_type}, */*" if descriptor.is_manifest else "*/*"}
        answer = None
        if "head" not in self._repository.unsupported:
            expected = {_OK, _NOT_FOUND, *ASK_BY_GET}
            answer = self._repository.send_write("HEAD", path, expected=expected, subject=subject, headers=headers)
        if answer is None or answer.status_code in ASK_BY_GET:
            answer = self._repository.send_write("GET", path, expected={_OK, _NOT_FOUND}, subject=subject, headers=headers)
        if answer.status_code == _NOT_FOUND:
            return False
        if tag is not None:
            return digest_in(answer, subject) == descriptor.digest
        found = length(answer)
        if found is not None and found != descriptor.size:
            raise Corrupt(f"expected {descriptor.size} bytes, the registry has {found} bytes", subject=subject)
        check_digest(answer, descriptor, subject)
        return True

    def mount(self, descriptor: Descriptor, *, source: str | None = None) -> bool:
        """Let the registry take a blob from another repository; return True if the blob is mounted.

        Without `source`, the registry chooses the repository. False means: upload the blob. The reason is not reported, because
        a serious error also fails the upload.

        Raises:
            Unavailable: the registry fails.
        """
        if "mount" in self._repository.unsupported:
            return False
        query = {"mount": str(descriptor.digest)} | ({"from": source} if source else {})
        subject = self._subject(descriptor)
        try:
            answer = self._repository.send_write(
                "POST", f"blobs/uploads/?{urlencode(query)}", expected=DONE, subject=subject, source=source
            )
        except (Denied, InvalidInput, NotFound):  # 401 or 403: no access to the source (containerd #12163, #14086)
            return False
        if answer.status_code == _CREATED:
            check_digest(answer, descriptor, subject)
            return True
        self._sessions[descriptor.digest] = UploadSession(self._repository, descriptor, answer)
        return False

    def upload(self, descriptor: Descriptor, read: Read, *, observer: Observer = _ignore_progress) -> None:
        """Upload a blob. `read(offset)` yields its bytes from there on, and may be called several times.

        `observer(offset, gained)` is called for each piece that is sent; if bytes are sent again, `offset` is smaller than
        before. A blob larger than a chunk is uploaded in chunks. After Unavailable, the next upload of the blob resumes.

        Raises:
            Corrupt: the registry received, or `read` yields, other content than the descriptor describes.
            DistError: an error of the registry or of `read`.
        """
        content = Content(descriptor=descriptor, read=read, observer=observer)
        while True:
            largest = min(self._sizes.upload.chunk_bytes or descriptor.size, descriptor.size)
            if (self._sizes.upload.whole_bytes or descriptor.size) >= descriptor.size:
                largest = descriptor.size
            try:
                self._send_blob(descriptor, content)
            except RegistryRefused as exc:
                if not _is_too_large(exc):
                    raise
                if not self._sizes.lower(largest):
                    raise _with_advice(exc, self._sizes.smallest_chunk_bytes or descriptor.size) from exc
                chunk = size(self._sizes.upload.chunk_bytes or 0)
                _log.info(
                    "%s: a request of %s is too large for the registry; continuing in chunks of %s",
                    descriptor,
                    size(largest),
                    chunk,
                )
            else:
                return

    def _send_blob(self, descriptor: Descriptor, content: Content) -> None:
        session = self._sessions.pop(descriptor.digest, None) or self._open_session(descriptor)
        try:
            self._send_through(session, content)
        except DistError as exc:
            if not session.is_lost or _is_too_large(exc):
                raise
            chunks_refused = isinstance(exc, RegistryRefused) and session.offset == 0
        else:
            return
        if not self.has(descriptor):  # a session is also lost if the upload completed but the response did not arrive
            self._send_through(self._open_session(descriptor), content, whole=chunks_refused)
            if chunks_refused:
                self._sizes.avoid_chunks()

    def put(self, raw: bytes, descriptor: Descriptor, *, tag: str | None = None) -> Digest | None:
        """Push a manifest, byte for byte, under its digest or under `tag`. Its children have to exist in the repository.

        Return the subject under which the registry lists the manifest as a referrer (OCI-Subject). If the manifest has a
        subject and the result is None, the caller has to call `list_referrer`.

        Raises:
            InvalidInput: an invalid media type or tag.
            Corrupt: the bytes do not match the descriptor, or the registry reports another digest.
            Unavailable: the registry cannot read a blob yet, because another client is pushing the blob at the same time.
            DistError: an error of the registry.
        """
        subject = self._subject(descriptor)
        if not MEDIA_TYPE.fullmatch(descriptor.media_type):
            raise InvalidInput(f"bad media type {quote_text(descriptor.media_type)}, expected type/subtype", subject=subject)
        if tag is not None and not is_tag(tag):
            raise InvalidInput(f"bad tag {tag!r}", subject=subject)
        descriptor.verify(raw, source="the caller")
        path = f"manifests/{tag or descriptor.digest}"
        try:
            answer = self._repository.send_write(
                "PUT", path, expected=DONE, subject=subject, headers={"Content-Type": descriptor.media_type}, body=raw
            )
        except RegistryRefused as exc:
            if _has_blob_in_flight(exc.exchange):
                raise RegistryUnavailable(f"{exc}; another client may be pushing one of its blobs now", exc.exchange) from exc
            if exc.exchange.status != _TOO_LARGE:
                raise
            why = f"the manifest has {len(raw)} bytes, and registries need not accept more than {manifest.MAX_BYTES}"
            raise RegistryRefused(f"{exc}; {why}", exc.exchange) from exc
        check_digest(answer, descriptor, subject)
        return digest_in(answer, subject, "oci-subject")

    def list_referrer(self, subject: Digest, referrer: Descriptor) -> None:
        """List `referrer`, made by `ocispec.referrers.make_entry`, under the fallback tag of the referrers of `subject`.

        Needed for a registry without the referrers API: `put` has returned None for a manifest with a subject. The index is
        read again after each write, and written again if the entry is missing. Threads with the same pusher take turns.

        Raises:
            Unsupported: the fallback tag has other content, or the index would exceed the size limit of manifests.
            Busy: other clients overwrote the entry each time.
            DistError: an error of the registry.
        """
        self._list_in_fallback_index(subject, (referrer,))
        self._listed_referrers.setdefault(subject, {})[referrer.digest] = referrer

    @property
    def fallback_referrers(self) -> dict[Digest, frozenset[Digest]]:
        """Referrers that this run listed under fallback tags, by subject."""
        return {subject: frozenset(entries) for subject, entries in list(self._listed_referrers.items())}

    def confirm_referrers(self, subject: Digest) -> None:
        """List the entries of `list_referrer` for `subject` again, if another client has overwritten any since.

        A client with an older copy of the index replaces the index without notice: registries have no conditional writes.

        Raises:
            DistError: as `list_referrer`.
        """
        self._list_in_fallback_index(subject, tuple(self._listed_referrers[subject].values()))

    def _list_in_fallback_index(self, subject: Digest, entries: Sequence[Descriptor]) -> None:
        tag = fallback_tag(subject)
        at = f"{self._repository.locator}:{tag}"
        with self._index_locks.setdefault(tag, threading.Lock()):
            for writes in range(_MAX_WRITES + 1):
                index, missing = referrers.read_fallback_index(self._repository, subject), list[Descriptor]()
                for entry in entries:
                    if (extended := add_entry(index, entry, at=at)) is not None:
                        index = extended
                        missing.append(entry)
                if index is None or not missing:
                    return
                if len(index) > manifest.MAX_BYTES:
                    raise document.too_big(at, str(len(index)))
                if writes < _MAX_WRITES:
                    described = Descriptor(media_type=mediatypes.OCI_INDEX, digest=Digest.of(index), size=len(index))
                    self.put(index, described, tag=tag)
        raise Busy(f"other clients overwrote the entry for {missing[0]} {_MAX_WRITES} times; try again", subject=at)

    def delete_tag(self, tag: str) -> bool:
        """Delete only a tag. Return False if the registry cannot delete tags.

        The CNCF registry 2.8 cannot delete tags. A registry that answers 404 for an existing tag counts as unable to delete
        tags.

        Raises:
            InvalidInput: an invalid tag.
            DistError: an error of the registry.
        """
        subject = f"{self._repository.locator}:{tag}"
        if not is_tag(tag):
            raise InvalidInput(f"bad tag {tag!r}", subject=subject)
        try:
            status = self._delete(tag, subject)
        except RegistryRefused as exc:
            if exc.exchange.status not in _DELETION_UNSUPPORTED:
                raise
            return False
        return not (status == _NOT_FOUND and self._has_tag(tag, subject))

    def _has_tag(self, tag: str, subject: str) -> bool:
        headers = {"Accept": ANY_MANIFEST}
        answer = self._repository.send_write(
            "GET", f"manifests/{tag}", expected={_OK, _NOT_FOUND}, subject=subject, headers=headers
        )
        return answer.status_code == _OK

    def delete(self, digest: Digest) -> None:
        """Delete a manifest and every tag that resolves to it. A missing manifest is deleted already.

        Manifests and blobs that the manifest names are kept. An index that names the manifest is kept and becomes incomplete.

        Raises:
            Unsupported: this registry deletes no manifests.
            DistError: an error of the registry.
        """
        try:
            self._delete(str(digest), f"{self._repository.locator}@{digest}")
        except RegistryRefused as exc:
            if exc.exchange.status not in _DELETION_UNSUPPORTED:
                raise
            remedy = "enable deletion there (CNCF registry: storage.delete.enabled), or use the registry's own tools"
            raise Unsupported(f"{exc}; the registry does not delete manifests: {remedy}") from exc

    def _delete(self, key: str, subject: str) -> int:
        """Delete a tag or manifest; return the status of the response."""
        expected = DONE | {_NOT_FOUND}
        return self._repository.send_write("DELETE", f"manifests/{key}", expected=expected, subject=subject).status_code

    def _open_session(self, descriptor: Descriptor) -> UploadSession:
        answer = self._repository.send_write("POST", "blobs/uploads/", expected=DONE, subject=self._subject(descriptor))
        return UploadSession(self._repository, descriptor, answer)

    def _send_through(self, session: UploadSession, content: Content, *, whole: bool = False) -> None:
        total, upload = content.descriptor.size, self._sizes.upload
        chunk_bytes = max(upload.chunk_bytes or total, session.min_chunk_bytes)
        is_small = total <= max(total if upload.whole_bytes is None else upload.whole_bytes, session.min_chunk_bytes)
        if whole or (is_small and session.offset == 0):
            session.send_whole(content)
            return
        try:
            session.send_chunks(content, chunk_bytes=chunk_bytes)
        except Unavailable:
            if not session.is_lost:
                self._sessions[content.descriptor.digest] = session
            raise

    def _subject(self, descriptor: Descriptor) -> str:
        return f"{descriptor} to {self._repository.locator}"


def _is_too_large(error: DistError) -> bool:
    """Return True if a request was too large for a proxy (no error code) or for the registry (code about the size)."""
    if not isinstance(error, RegistryRefused) or error.exchange.status != _TOO_LARGE:
        return False
    return all(code.startswith(_SIZE) for code in error.exchange.codes)


def _with_advice(error: RegistryRefused, needed: int) -> RegistryRefused:
    advice = f"if a proxy limits requests, raise its limit to {size(needed)} (nginx: client_max_body_size)"
    return RegistryRefused(f"{error}; {advice}", error.exchange)


def _has_blob_in_flight(exchange: Exchange) -> bool:
    """Return True if a manifest was rejected for a blob whose link the registry is still writing.

    The CNCF registry 2.8 does so if another client mounts or uploads a blob of the repository. The response has both codes; the
    first code would otherwise mean wrong bytes, but the bytes were checked before the request.
    """
    return all(any(code.startswith(name) for code in exchange.codes) for name in _BLOB_IN_FLIGHT)
