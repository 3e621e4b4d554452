"""Writing to a repository: blobs first, then the manifests that name them (distribution-spec 1.1, "Push").

And taking away from it, a tag or a manifest ("Content Management"): what is to go, and how sure that has to be, is decided
elsewhere. What goes on in one upload is `remotes.upload`'s.
"""

import logging
import threading
from collections.abc import Sequence
from urllib.parse import urlencode

from prefect_dist.ocispec import Descriptor, Digest, Reference, manifest, mediatypes
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
from prefect_dist.remotes.repository import Repository
from prefect_dist.remotes.sizes import RegistrySizes
from prefect_dist.remotes.upload import DONE, Content, Observer, Read, UploadSession

_log = logging.getLogger(__name__)
# How often an index of referrers is written anew when others write it at the same time.
_MAX_WRITES = 5
_OK, _CREATED, _NOT_FOUND, _TOO_LARGE = 200, 201, 404, 413
# "If tag deletion is disabled, the registry MUST respond with either a 400 Bad Request or a 405 Method Not Allowed", and the
# same of manifests (distribution-spec 1.1, "Deleting tags", "Deleting Manifests").
_DELETION_UNSUPPORTED = frozenset({400, 405})
_SIZE = "SIZE_INVALID"
_BLOB_IN_FLIGHT = ("DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN")


def _ignore_progress(_offset: int, _gained: int) -> None:
    """The observer where there is none."""


class Pusher:
    """Brings content into one repository. Thread-safe. `sizes` are those of its registry."""

    def __init__(self, repository: Repository, sizes: RegistrySizes) -> None:
        self._repository, self._sizes = repository, sizes
        # Sessions that are open and that nobody is at: a blob's next upload goes on there. Taken and left in single steps.
        self._sessions: dict[Digest, UploadSession] = {}
        self._index_locks: dict[str, threading.Lock] = {}  # of who writes an index of referrers, by its tag
        self._listed_referrers: dict[
            Digest, dict[Digest, Descriptor]
        ] = {}  # by subject: the entries that were added to its index

    def has(self, descriptor: Descriptor, *, tag: str | None = None) -> bool:
        """Return True if the repository has this manifest or blob; with `tag`, if the tag resolves to it.

        Of a tag, a registry that does not say the digest is not believed.

        Raises:
            Corrupt: it has this digest with another size.
        """
        path = f"{'manifests' if descriptor.is_manifest else 'blobs'}/{tag or descriptor.digest}"
        subject = self._subject(descriptor)
        # A manifest is only found by those who name its type (CNCF distribution); the type of a blob may be any text.
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
            raise Corrupt(f"{subject}: expected {descriptor.size} bytes, the registry has it with {found}")
        check_digest(answer, descriptor, subject)
        return True

    def mount(self, descriptor: Descriptor, *, source: str | None = None) -> bool:
        """Have the registry take a blob over from another of its repositories; of its own choice, without a `source`.

        False says that the blob is to be uploaded: for whatever reason, which the upload meets as well if it is of weight.

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
        except (Denied, InvalidInput, NotFound):  # containerd #12163, #14086: 401 and 403 where the source may not be read
            return False
        if answer.status_code == _CREATED:
            check_digest(answer, descriptor, subject)
            return True
        self._sessions[descriptor.digest] = UploadSession(self._repository, descriptor, answer)
        return False

    def upload(self, descriptor: Descriptor, read: Read, *, observer: Observer = _ignore_progress) -> None:
        """Bring a blob into the repository. `read(offset)` gives its bytes from there on, and may be asked several times.

        `observer(offset, gained)` hears of each piece that is sent; where bytes have to be sent again, `offset` is smaller
        than before. A blob of more than a chunk goes in chunks. After Unavailable, the next upload of it goes on where this
        one was.

        Raises:
            Corrupt: the registry or `read` have other content than the descriptor says.
            DistError: what the registry says, or `read` raises.
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
                _log.info("%s: a request of %s is too large; continuing in chunks of %s", descriptor, size(largest), chunk)
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
        if not self.has(descriptor):  # a session is also lost when it was closed, and the answer did not arrive
            self._send_through(self._open_session(descriptor), content, whole=chunks_refused)
            if chunks_refused:
                self._sizes.avoid_chunks()

    def put(self, raw: bytes, descriptor: Descriptor, *, tag: str | None = None) -> Digest | None:
        """Store a manifest, byte for byte, under its digest and under `tag` if there is one. Its children have to be there.

        The digest that comes back is of the subject under which the registry lists it as a referrer (OCI-Subject): where there
        is a subject and None comes back, that is left to the caller.

        Raises:
            InvalidInput: a media type or tag that is none.
            Corrupt: these are not the bytes that the descriptor names, or the registry says so.
            Unavailable: the registry cannot read what it has of the children, because somebody brings that there once more.
            DistError: what the registry says.
        """
        subject = self._subject(descriptor)
        if not MEDIA_TYPE.fullmatch(descriptor.media_type):
            raise InvalidInput(f"{subject}: bad media type {quote_text(descriptor.media_type)}, expected type/subtype")
        if tag is not None and Reference.parse(f"{self._repository.locator}:{tag}").tag != tag:
            raise InvalidInput(f"{subject}: bad tag {tag!r}")
        if len(raw) != descriptor.size or Digest.of(raw, algorithm=descriptor.digest.algorithm) != descriptor.digest:
            raise Corrupt(f"{subject}: expected {descriptor.size} bytes of this digest, got {len(raw)} others")
        path = f"manifests/{tag or descriptor.digest}"
        try:
            answer = self._repository.send_write(
                "PUT", path, expected=DONE, subject=subject, headers={"Content-Type": descriptor.media_type}, body=raw
            )
        except RegistryRefused as exc:
            if _has_blob_in_flight(exc.exchange):
                raise RegistryUnavailable(f"{exc}; a blob of it may be on its way there from elsewhere", exc.exchange) from exc
            if exc.exchange.status != _TOO_LARGE:
                raise
            taken = f"registries need not take more than {manifest.MAX_BYTES}"
            raise RegistryRefused(f"{exc}; a manifest of {len(raw)} bytes, {taken}", exc.exchange) from exc
        check_digest(answer, descriptor, subject)
        return digest_in(answer, subject, "oci-subject")

    def list_referrer(self, subject: Digest, referrer: Descriptor) -> None:
        """List `referrer`, as of `ocispec.referrers.make_entry`, under the fallback tag of the referrers of `subject`.

        This is for a registry that does not list it by itself: `put` has returned None for a manifest with a subject. The index
        is read again after each write, and written again if the entry is missing. Threads that use this object take turns.

        Raises:
            Unsupported: there is something else under this tag, or the index becomes larger than manifests may be.
            Busy: others overwrote the entry each time.
            DistError: what the registry says.
        """
        self._list_in_fallback_index(subject, (referrer,))
        self._listed_referrers.setdefault(subject, {})[referrer.digest] = referrer

    @property
    def fallback_referrers(self) -> dict[Digest, frozenset[Digest]]:
        """Return the referrers that this run listed under fallback tags, by subject."""
        return {subject: frozenset(entries) for subject, entries in list(self._listed_referrers.items())}

    def confirm_referrers(self, subject: Digest) -> None:
        """List those referrers of `subject` again that `list_referrer` has listed and that someone else has overwritten since.

        Another client that read the index before such a write replaces it without notice: registries offer no conditional
        writes.

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
        raise Busy(f"{at}: expected {missing[0]} to be listed, others overwrote it {_MAX_WRITES} times; try again")

    def delete_tag(self, tag: str) -> int | None:
        """Delete a tag, and nothing else. Return the status of the answer, None if this registry cannot delete tags.

        The CNCF registry 2.8 cannot. The status is 404 for a tag that does not exist. A registry that answers 404 while the tag
        exists cannot delete tags.

        Raises:
            InvalidInput: a bad tag.
            DistError: what the registry says.
        """
        subject = f"{self._repository.locator}:{tag}"
        if not is_tag(tag):
            raise InvalidInput(f"{subject}: bad tag {tag!r}")
        try:
            status = self._delete(tag, subject)
        except RegistryRefused as exc:
            if exc.exchange.status not in _DELETION_UNSUPPORTED:
                raise
            return None
        return None if status == _NOT_FOUND and self._has_tag(tag, subject) else status

    def _has_tag(self, tag: str, subject: str) -> bool:
        headers = {"Accept": ANY_MANIFEST}
        answer = self._repository.send_write(
            "GET", f"manifests/{tag}", expected={_OK, _NOT_FOUND}, subject=subject, headers=headers
        )
        return answer.status_code == _OK

    def delete(self, digest: Digest) -> int:
        """Delete a manifest with every tag that resolves to it. Return the status of the answer, 404 for no such manifest.

        Manifests and blobs that the manifest names are not deleted. An index that names the manifest stays and is incomplete.

        Raises:
            Unsupported: this registry deletes no manifests.
            DistError: what the registry says.
        """
        try:
            return self._delete(str(digest), f"{self._repository.locator}@{digest}")
        except RegistryRefused as exc:
            if exc.exchange.status not in _DELETION_UNSUPPORTED:
                raise
            how = "it is to be allowed there (CNCF registry: storage.delete.enabled), or done by the registry's own means"
            raise Unsupported(f"{exc}; deleting is not possible: {how}") from exc

    def _delete(self, key: str, subject: str) -> int:
        """Delete a tag or manifest; return the status of the answer."""
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
    advice = f"if a proxy before the registry does, have it take requests of {size(needed)} (nginx: client_max_body_size)"
    return RegistryRefused(f"{error}; {advice}", error.exchange)


def _has_blob_in_flight(exchange: Exchange) -> bool:
    """Return True if a manifest was refused for a blob whose link the registry is still writing.

    So the CNCF registry 2.8 does where another client mounts or uploads a blob that the repository has: it says both codes, of
    which the first would be about bytes that were looked at before they were sent.
    """
    return all(any(code.startswith(name) for code in exchange.codes) for name in _BLOB_IN_FLIGHT)
