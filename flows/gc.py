"""The flow `gc`: remove unneeded content from a store."""

from datetime import timedelta
from typing import Annotated

from prefect import get_run_logger
from prefect.runtime import flow_run

from prefect_dist.flows._flow import flow_of
from prefect_dist.flows.parameters import Store, StoreOptions, label, session_spec
from prefect_dist.flows.pool import PrefectPool
from prefect_dist.mirror.gc import run_gc
from prefect_dist.mirror.progress import LogWriter
from prefect_dist.mirror.report import RunReport
from prefect_dist.ocispec.units import seconds
from prefect_dist.storage.gc import find_hazard
from prefect_dist.transfer.session import open_session


def _run_name() -> str:
    return f"gc of {flow_run.parameters['store']}"


@flow_of("gc", run_name=_run_name)
def gc(
    store: Store,
    grace: Annotated[
        str, label("Grace period", "Content that was written within this time is kept; such as 24h or 7d")
    ] = "24h",
    *,
    dry_run: Annotated[bool, label("Dry run", "Only report the content that would be removed")] = False,
    store_options: StoreOptions = {},  # noqa: B006 - Prefect shows it in the form and copies it
) -> RunReport:
    """Remove blobs without a name or an active run, and leftovers of crashed runs."""
    untouched = timedelta(seconds=seconds(grace))
    with open_session(session_spec(store, store_options), notify=LogWriter(get_run_logger())) as session:
        if warning := find_hazard(session.store, grace=untouched):
            get_run_logger().warning(warning)
        return run_gc(PrefectPool(session, window=1), grace=untouched, dry_run=dry_run)
