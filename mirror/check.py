"""A run that audits the targets of a mirror, and repairs them on request."""

import time
from dataclasses import replace

from prefect_dist.mirror.applying import Applying, MirrorScopes
from prefect_dist.mirror.auditing import Auditing
from prefect_dist.mirror.check_report import CheckReport
from prefect_dist.mirror.config import Mirror
from prefect_dist.mirror.lock import Lock
from prefect_dist.mirror.mirror_policy import MirrorObserver
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.transfer.events import Notify
from prefect_dist.transfer.pool import Pool


def check_mirror(
    mirror: Mirror, pool: Pool, scopes: MirrorScopes, notify: Notify, observer: MirrorObserver, *, is_repairing: bool
) -> CheckReport:
    """Audit each target that the lock file has and that is still wanted. If `is_repairing`, push what is missing.

    Raises:
        InvalidInput: the lock file is damaged, or names no image.
        DistError: the lock file cannot be read.
    """
    started, session = time.monotonic(), pool.session
    locked = Lock(mirror.lock).read()
    if not locked:
        lacks = "it has none, name one by `lock`" if mirror.lock is None else f"{mirror.lock} names no image"
        raise InvalidInput(f"{mirror.path}: nothing to check in its lock file: {lacks}; mirror or seed it first")
    auditing = Auditing(pool, notify, (*mirror.entries, *mirror.seed))
    first = auditing.audit(locked)
    report = CheckReport(name=mirror.name, first=first)
    if is_repairing and first.damaged:
        located, lost = auditing.locate(first, locked)
        applying = Applying(pool, scopes, notify, observer)
        applying.add(tuple(located), located)
        results = applying.run()
        again = auditing.audit({target: locked[target] for target in first.damaged if target not in lost})
        report = replace(report, again=again, failures={**lost, **results.failures, **results.vetoes})
    return replace(
        report,
        stats=session.stats,
        tasks=pool.runs,
        seconds=time.monotonic() - started,
        stopped=session.cancel.reason,
    )
