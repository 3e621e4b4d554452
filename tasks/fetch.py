"""The tasks of a fetch: resolve a reference, fetch a descriptor, list the referrers of a manifest."""

from typing import TYPE_CHECKING

from prefect_dist.tasks._task import argument, task_for
from prefect_dist.transfer import units

if TYPE_CHECKING:
    from prefect_dist.ocispec import Descriptor


def _resolve_name() -> str:
    return f"resolve {argument('reference')}"


def _fetch_name() -> str:
    descriptor: Descriptor = argument("descriptor")
    return f"fetch {descriptor.kind} {descriptor.digest.short}"


def _referrers_name() -> str:
    subject: Descriptor = argument("subject")
    return f"referrers of {subject.kind} {subject.digest.short}"


resolve = task_for(units.resolve, "resolve", run_name=_resolve_name)
fetch = task_for(units.fetch, "fetch", run_name=_fetch_name)
list_referrers = task_for(units.list_referrers, "referrers", run_name=_referrers_name)
