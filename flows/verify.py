"""The flow `verify`: hash the blobs of a store again, check the images, and repair images on request."""

from typing import Annotated, Literal

from prefect.runtime import flow_run

from prefect_dist.flows._flow import flow_of
from prefect_dist.flows.parameters import Concurrency, Reached, Store, StoreOptions, label, make_resources
from prefect_dist.flows.run import run
from prefect_dist.mirror.report import RunReport
from prefect_dist.mirror.verify import make_verify_run


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
    return run(make_verify_run(make_resources(store, store_options, network), repair=repair, concurrency=concurrency))
