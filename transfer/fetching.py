"""Fetches content of images into the store, and lists the referrers of manifests."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prefect_dist.ocispec import Descriptor, Reference
from prefect_dist.ocispec.children import children_reader, without_foreign, without_missing_attestations
from prefect_dist.ocispec.errors import Corrupt
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.remotes import Source
from prefect_dist.transfer import content, related
from prefect_dist.transfer.claiming import claim_fetch
from prefect_dist.transfer.content import Receipt
from prefect_dist.transfer.events import CorruptContent
from prefect_dist.transfer.related import Related
from prefect_dist.transfer.session import Session


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Fetched:
    """The receipt of a descriptor whose content is in the store or at a target, and the children of the descriptor."""

    receipt: Receipt
    children: tuple[Descriptor, ...]


class _FetchedAhead(dict[object, Receipt]):
    """The receipts of manifests that were fetched before their own units of work, by the keys of descriptors."""


def fetch(session: Session, descriptor: Descriptor, source: Reference) -> Fetched:
    """Fetch the content of a descriptor from a repository into the store.

    Raises:
        DistError: see `transfer.content.fetch`.
    """
    children, is_missing = children_reader(session.store.manifest), session.recorder.is_missing
    if is_missing is not None:
        children = without_foreign(without_missing_attestations(children, is_missing))
    receipt = fetch_content(session, descriptor, session.open_source(source), place=source)
    return Fetched(session.memo(_FetchedAhead).pop(descriptor.key, receipt), tuple(children(descriptor)))


def list_referrers(session: Session, subject: Descriptor, source: Reference, wanted: Related) -> tuple[Referrer, ...]:
    """Return the wanted manifests in a source repository that refer to `subject`, see `transfer.related`.

    Manifests that have to be read for this purpose stay in the store. Their own units of work get the receipts.
    """

    def fetch_ahead(descriptor: Descriptor) -> bytes:
        receipt = fetch_content(session, descriptor, session.open_source(source), place=source)
        if receipt.status == "fetched":
            session.memo(_FetchedAhead)[descriptor.key] = receipt
        return session.store.manifest(descriptor)

    return related.list_at_source(session, subject, source, wanted, read=fetch_ahead)


def fetch_content(session: Session, descriptor: Descriptor, source: Source, *, place: Reference) -> Receipt:
    """Fetch the content of a descriptor from `source`, the repository of `place`, into the store. Return the receipt.

    Raises:
        Stopped: the run was cancelled while another process wrote the content.
        DistError: see `transfer.content.fetch`.
    """
    with report_corruption(session, descriptor, place), claim_fetch(session, descriptor):
        return content.fetch(session.store, source, descriptor, notify=session.counter.received, pause=session.cancel.pause)


@contextmanager
def report_corruption(session: Session, descriptor: Descriptor, place: Reference) -> Iterator[None]:
    """Emit an event for corrupt content from the repository of `place` in this block. Raise the error in any case."""
    try:
        yield
    except Corrupt as exc:
        session.notify(CorruptContent(descriptor.digest, "repository", place.locator, exc))
        raise
