"""Delivers content from the store to repositories.

Content is uploaded to a registry once and mounted into the other repositories. A second upload of the same content to a
registry waits until the first upload ends. The CNCF registry 2.8 requires this order: it refuses a manifest (400
DIGEST_INVALID) while a blob of the manifest is uploaded once more.
"""

from collections.abc import Iterable
from threading import Lock

from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.errors import DistError
from prefect_dist.ocispec.reference import is_repository
from prefect_dist.ocispec.referrers import fallback_tag
from prefect_dist.transfer import content
from prefect_dist.transfer.attempts import has_another
from prefect_dist.transfer.claiming import claim_upload, find_upload, is_shared
from prefect_dist.transfer.content import Receipt
from prefect_dist.transfer.repositories import MountCandidates, NewRepositories
from prefect_dist.transfer.session import Session


class _Deliveries:
    """The state of the deliveries of a run. Thread-safe: the state is changed in single steps.

    Attributes:
        turns: a lock for each piece of content and registry.
        failing_hosts: the registries that refused a blob in all attempts.
        fallback_tags: the fallback tags that the run has written, with their repositories.
    """

    def __init__(self) -> None:
        self.turns: dict[tuple[str, Digest], Lock] = {}
        self.mount_candidates = MountCandidates()
        self.failing_hosts: set[str] = set()
        self.fallback_tags: set[tuple[str, str]] = set()


def note_content(session: Session, place: Reference, found: Iterable[Descriptor]) -> None:
    """Record that the repository of `place` has some content, so that the run does not upload the content there."""
    candidates = session.memo(_Deliveries).mount_candidates
    for descriptor in found:
        candidates.note(place, descriptor.digest)


def deliver(session: Session, blob: Descriptor, place: Reference, *, origin: Reference | None = None) -> Receipt:
    """Put a blob into the repository of `place`. If possible, the registry mounts the blob from `origin` or elsewhere.

    Raises:
        DistError: see `transfer.content.push`.
    """
    delivery = _Delivery(session, blob, place)
    with _turn(session, place, blob):
        if delivery.candidates.has(place, blob.digest):
            return Receipt("existed")
        if is_shared(session, blob) and (reused := delivery.reuse_shared()) is not None:
            return reused
        with claim_upload(session, blob, place.host) as claim:
            delivery.consider_note(claim.note)
            receipt = delivery.complete(origin)
            # The repository of an old note may have lost the blob. A place with a scheme has no repositories.
            claim.note = place.repository or None
        return receipt


class _Delivery:
    """One delivery of a blob to a repository that is not known to have the blob."""

    def __init__(self, session: Session, blob: Descriptor, place: Reference) -> None:
        self._session, self._blob, self._place = session, blob, place
        self.candidates = session.memo(_Deliveries).mount_candidates
        self._has_tried_mount = False

    def reuse_shared(self) -> Receipt | None:
        """Return the receipt of a blob that the repository has, or mounts from a known repository. Otherwise return None.

        This needs no claim: only an upload has to wait for the uploads of other processes.
        """
        source, is_expected = self._find_source(), False
        if source is None:
            is_expected = self.consider_note(find_upload(self._session, self._blob, self._place.host))
            source = self._find_source()
        if source is None and not is_expected:
            return None
        return self._reuse(source, can_mount=source is not None)

    def consider_note(self, note: str | None) -> bool:
        """Use the note of a claim: the repository to which a process has uploaded the blob.

        Return True if the repository is the place of this delivery. The note may be old or wrong.
        """
        if note is None or not is_repository(note):
            return False
        if note == self._place.repository:
            self._session.memo(NewRepositories).note_upload(self._blob, self._place)
            return True
        self.candidates.suggest(self._place.host, self._blob.digest, note)
        return False

    def complete(self, origin: Reference | None) -> Receipt:
        """Reuse or upload the blob, and return the receipt."""
        source = self._find_source() or self._find_origin(origin)
        # After a failed mount, the upload uses the session that the registry may have opened.
        receipt = self._reuse(source, can_mount=source is not None or not self._has_tried_mount)
        if receipt is None:
            session, pusher = self._session, self._session.remotes.open_target(self._place)
            receipt = content.upload(session.store, pusher, self._blob, notify=session.counter.sent)
            self._note(receipt)
        return receipt

    def _find_source(self) -> str | None:
        return self.candidates.mount_candidate(self._place, self._blob.digest)

    def _find_origin(self, origin: Reference | None) -> str | None:
        """Return the repository of `origin` if a mount from the repository can succeed."""
        if origin is None or origin.host != self._place.host or origin.locator == self._place.locator:
            return None
        can_mount = self.candidates.can_mount(origin.host, self._blob.digest, origin.repository)
        return origin.repository if can_mount else None

    def _reuse(self, source: str | None, *, can_mount: bool) -> Receipt | None:
        """Return the receipt of a blob that the repository has or mounts, or None, and record the result of the mount."""
        is_absent = self._session.memo(NewRepositories).lacks(self._session, self._blob, self._place)
        pusher = self._session.remotes.open_target(self._place)
        receipt = content.reuse(pusher, self._blob, source=source, is_absent=is_absent, can_mount=can_mount)
        if can_mount and (receipt is None or receipt.status == "mounted"):
            self._has_tried_mount = True
            if source is not None:
                is_mounted = receipt is not None
                self.candidates.note_mount(self._place.host, self._blob.digest, source, is_mounted=is_mounted)
        if receipt is not None:
            self._note(receipt)
        return receipt

    def _note(self, receipt: Receipt) -> None:
        self._session.counter.count(self._blob, receipt)
        self.candidates.note(self._place, self._blob.digest)


def deliver_to_places(session: Session, blob: Descriptor, places: Iterable[Reference], *, origin: Reference) -> Receipt:
    """Put a blob into several repositories, and return one receipt for all places.

    After the failure of one place, the other places still get the blob.

    The publication at a place delivers the blob again, and reports the error. A registry that has refused a blob in all
    attempts gets one attempt per blob until it accepts a blob. Otherwise a full registry would cost each blob all attempts and
    the delays between them.

    Raises:
        DistError: the error of a place, if another attempt follows.
    """
    failing, again = session.memo(_Deliveries).failing_hosts, list[DistError]()
    receipt = Receipt("existed")
    for place in places:
        try:
            with session.cancel.raise_stopped():
                receipt = receipt.with_more(deliver(session, blob, place, origin=origin))
        except DistError as exc:
            if place.host not in failing and has_another(exc):
                again.append(exc)
            elif exc.retryable:
                failing.add(place.host)
        else:
            failing.discard(place.host)
    if again:
        raise again[-1]
    return receipt


def put_manifest(session: Session, descriptor: Descriptor, place: Reference, tag: str | None) -> None:
    """Put a manifest from the store into the repository of `place`, under `tag` if given.

    Raises:
        DistError: see `transfer.content.put`.
    """
    deliveries = session.memo(_Deliveries)

    def note_listing(subject: Digest) -> None:
        deliveries.fallback_tags.add((place.locator, fallback_tag(subject)))

    with _turn(session, place, descriptor):
        if tag is None and deliveries.mount_candidates.has(place, descriptor.digest):
            return
        pusher, sent = session.remotes.open_target(place), session.counter.sent
        content.put(session.store, pusher, descriptor, tag=tag, notify=sent, on_listing=note_listing)
        deliveries.mount_candidates.note(place, descriptor.digest)


def has_written(session: Session, target: Reference) -> bool:
    """Return True if the target tag is a fallback tag of referrers that this run has written to list a manifest."""
    return (target.locator, target.tag) in session.memo(_Deliveries).fallback_tags


def _turn(session: Session, place: Reference, descriptor: Descriptor) -> Lock:
    """Return the lock for uploads of this content to this registry. The lock object exists until the run ends."""
    return session.memo(_Deliveries).turns.setdefault((place.host, descriptor.digest), Lock())
