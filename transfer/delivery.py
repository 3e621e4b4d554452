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
    """

    def __init__(self) -> None:
        self.turns: dict[tuple[str, Digest], Lock] = {}
        self.mount_candidates = MountCandidates()
        self.failing_hosts: set[str] = set()


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
    candidates = session.memo(_Deliveries).mount_candidates
    with _turn(session, place, blob):
        if candidates.has(place, blob.digest):
            return Receipt("existed")
        if is_shared(session, blob) and (reused := _reuse(session, blob, place)) is not None:
            return reused
        with claim_upload(session, blob, place.host) as claim:
            if is_repository(claim.note or ""):  # another process has uploaded the blob to the repository in the note
                candidates.note(Reference(f"{place.host}/{claim.note}"), blob.digest)
            receipt = _deliver(session, blob, place, origin)
            # The repository of an old note may have lost the blob. A place with a scheme has no repositories.
            claim.note = place.repository or None
        return receipt


def _reuse(session: Session, blob: Descriptor, place: Reference) -> Receipt | None:
    """Return the receipt of a blob that the repository has, or mounts from a known repository. Otherwise return None.

    This needs no claim: only an upload has to wait for the uploads of other processes.
    """
    candidates = session.memo(_Deliveries).mount_candidates
    source = candidates.mount_candidate(place, blob.digest) or find_upload(session, blob, place.host)
    if source is None or not is_repository(source):
        return None
    is_absent = session.memo(NewRepositories).lacks(session, blob, place)
    receipt = content.reuse(session.remotes.open_target(place), blob, source=source, is_absent=is_absent)
    if receipt is not None:
        session.counter.count(blob, receipt)
        candidates.note(place, blob.digest)
    return receipt


def _deliver(session: Session, blob: Descriptor, place: Reference, origin: Reference | None) -> Receipt:
    """Put a blob into a repository that is not known to have the blob."""
    candidates = session.memo(_Deliveries).mount_candidates
    mounted_from = candidates.mount_candidate(place, blob.digest)
    if mounted_from is None and origin is not None and origin.host == place.host and origin.locator != place.locator:
        mounted_from = origin.repository
    pusher, sent = session.remotes.open_target(place), session.counter.sent
    is_absent = session.memo(NewRepositories).lacks(session, blob, place)
    receipt = content.push(session.store, pusher, blob, source=mounted_from, is_absent=is_absent, notify=sent)
    session.counter.count(blob, receipt)
    candidates.note(place, blob.digest)
    return receipt


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
    candidates = session.memo(_Deliveries).mount_candidates
    with _turn(session, place, descriptor):
        if tag is None and candidates.has(place, descriptor.digest):
            return
        pusher, sent = session.remotes.open_target(place), session.counter.sent
        content.put(session.store, pusher, descriptor, tag=tag, notify=sent)
        candidates.note(place, descriptor.digest)


def _turn(session: Session, place: Reference, descriptor: Descriptor) -> Lock:
    """Return the lock for uploads of this content to this registry. The lock object exists until the run ends."""
    return session.memo(_Deliveries).turns.setdefault((place.host, descriptor.digest), Lock())
