"""Claims of the run on large content, so that the processes of a divided run transfer the content once."""

from contextlib import AbstractContextManager, nullcontext

from prefect_dist.ocispec import Descriptor
from prefect_dist.storage.claims import FETCH, ContentClaim
from prefect_dist.transfer.session import Session

# A claim costs some requests to the store. A second transfer of smaller content costs less.
_LEAST_BYTES = 64 * 1024


def claim_fetch(session: Session, descriptor: Descriptor) -> AbstractContextManager[ContentClaim]:
    """Return a block that holds the claim of a divided run on the fetch of large content; otherwise a block without effect."""
    if not is_shared(session, descriptor) or session.store.holds(descriptor):
        return nullcontext(ContentClaim(""))
    return session.store.claims.hold(FETCH, descriptor.digest, pause=session.cancel.pause)


def claim_upload(session: Session, blob: Descriptor, host: str) -> AbstractContextManager[ContentClaim]:
    """Return a block that holds the claim of a divided run on the upload of a large blob to a registry.

    The note of the claim is a repository of the registry with the blob. Otherwise the block has no effect.
    """
    if not is_shared(session, blob):
        return nullcontext(ContentClaim(""))
    return session.store.claims.hold(host, blob.digest, pause=session.cancel.pause)


def find_upload(session: Session, blob: Descriptor, host: str) -> str | None:
    """Return a repository of a registry to which a process of a divided run has uploaded a large blob; None if unknown."""
    return session.store.claims.find_note(host, blob.digest) if is_shared(session, blob) else None


def is_shared(session: Session, descriptor: Descriptor) -> bool:
    """Return True if the run claims this content: large content in a shard of a divided run."""
    return session.spec.is_shared and descriptor.size > _LEAST_BYTES
