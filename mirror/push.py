"""A run that pushes an image from the store to a registry."""

from collections import Counter

from prefect_dist.mirror.report import PushRow, ReportBuilder, RunReport
from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.storage import Name
from prefect_dist.transfer.events import ImageEnded, Notify
from prefect_dist.transfer.pool import Pool
from prefect_dist.transfer.pushing import Delivered, Push
from prefect_dist.transfer.session import Session


def run_push(name: str, target: Reference, pool: Pool, notify: Notify, *, referrers: bool) -> RunReport:
    """Push the image with the store name `name`, with `referrers` also the referrers of the image.

    Raises:
        NotFound: the store does not have the name, or lacks content of the image; the run uploaded no content.
        InvalidInput: the target has the digest of another image.
    """
    builder = ReportBuilder("push", pool)
    recorded = _read_name(pool.session, name, target)
    delivered = Push(pool, recorded, target, notify, referrers=referrers).run()
    row = _row(recorded, target, delivered)
    notify(ImageEnded(row))
    counts = {
        "pushed": row.pushed,
        "mounted": row.mounted,
        "existed": row.existed,
        "failed": len(row.failures),
        "waiting": row.waiting,
        "sent_bytes": row.sent_bytes,
        **{f"{status}_bytes": _count_bytes(delivered, status) for status in ("mounted", "existed")},
    }
    return builder.build((row,), counts, is_stopped=False)


def _row(name: Name, target: Reference, delivered: Delivered) -> PushRow:
    found = Counter(receipt.status for _, receipt in delivered.receipts)
    return PushRow(
        source=name.name,
        target=str(target),
        root=name.descriptor,
        pushed=found["pushed"],
        mounted=found["mounted"],
        existed=found["existed"],
        waiting=delivered.waiting,
        sent_bytes=sum(receipt.transferred for _, receipt in delivered.receipts),
        failures=delivered.failures,
    )


def _count_bytes(delivered: Delivered, status: str) -> int:
    return sum(descriptor.size for descriptor, receipt in delivered.receipts if receipt.status == status)


def _read_name(session: Session, name: str, target: Reference) -> Name:
    """Return the record of a name. A digest in the target has to be the digest of the image."""
    recorded = session.store.names.get(name)
    if (pinned := target.pinned_digest()) is not None and pinned != recorded.descriptor.digest:
        raise InvalidInput(f"expected the digest of {name}, which is {recorded.descriptor.digest}", subject=target)
    return recorded
