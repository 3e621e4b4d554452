"""The flow `verify`: hash the blobs of a store again, check the images, and repair images on request."""

from typing import Annotated, Literal

from prefect import get_run_logger
from prefect.runtime import flow_run

from prefect_dist.flows._flow import flow_of
from prefect_dist.flows.fetch import fetch_into
from prefect_dist.flows.parameters import Concurrency, Reached, Store, StoreOptions, label, session_spec
from prefect_dist.flows.pool import PrefectPool
from prefect_dist.flows.prefect_events import emit_corruption
from prefect_dist.flows.progress_artifact import publish_progress
from prefect_dist.mirror.progress import LogWriter
from prefect_dist.mirror.report import RunReport
from prefect_dist.mirror.verify import HashingProgress, Repair, run_verify
from prefect_dist.transfer.attempts import RETRIES
from prefect_dist.transfer.events import combine_listeners
from prefect_dist.transfer.session import open_session


def _run_name() -> str:
    return f"verify {flow_run.parameters['store']}"


@flow_of("verify", run_name=_run_name)
def verify(
    store: Store,
    repair: Annotated[
        Literal["all"] | list[str], label("Repair", 'Store names to fetch again if they are not complete, or "all"')
    ] = [],  # noqa: B006 - Prefect shows it in the form and copies it
    *,
    concurrency: Concurrency = 4,
    store_options: StoreOptions = {},  # noqa: B006 - Prefect shows it in the form and copies it
    network: Reached = None,
) -> RunReport:
    """Hash every blob again, move corrupt blobs into quarantine, check the images, and repair images on request."""
    spec, progress = session_spec(store, store_options, network), HashingProgress()
    notify = combine_listeners(LogWriter(get_run_logger()), emit_corruption)

    def fetch(images: Repair) -> RunReport:
        return fetch_into(
            spec,
            images.names,
            platforms=images.platforms,
            referrers=images.referrers,
            concurrency=concurrency,
            retries=RETRIES,
        )

    with publish_progress(progress), open_session(spec, notify=notify) as session:
        pool = PrefectPool(session, window=concurrency)
        return run_verify(pool, notify, progress, fetch, repair=repair)
