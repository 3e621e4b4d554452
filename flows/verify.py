"""The flow `verify`: hash the blobs of a store again, check the images, and repair images on request."""

from collections.abc import Sequence
from typing import Annotated, Literal

from prefect.runtime import flow_run

from prefect_dist.flows._flow import flow_of
from prefect_dist.flows.fetch import FetchParts
from prefect_dist.flows.limits import lease_slots
from prefect_dist.flows.parameters import Concurrency, Reached, Store, StoreOptions, label, session_spec
from prefect_dist.flows.pool import PrefectPool
from prefect_dist.flows.progress_artifact import publish_run_progress
from prefect_dist.mirror.report import RunReport
from prefect_dist.mirror.verify import run_verify, select_repaired
from prefect_dist.ocispec import Reference
from prefect_dist.storage import open_store
from prefect_dist.transfer.session import SessionSpec, open_session


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
    spec = session_spec(store, store_options, network)
    with (
        publish_run_progress() as notify,
        lease_slots(spec, _list_hosts(spec, repair), workers=concurrency, notify=notify) as bounded,
        open_session(bounded, notify=notify) as session,
    ):
        pool = PrefectPool(session, window=concurrency)
        return run_verify(pool, FetchParts(pool), notify, repair=repair)


def _list_hosts(spec: SessionSpec, repair: Literal["all"] | Sequence[str]) -> frozenset[str]:
    """Return the registries of the names to fetch again."""
    if not repair:
        return frozenset()
    with open_store(spec.store, options=spec.store_options) as store:
        names, _ = store.names.read()
    return frozenset(Reference.parse(name.name).host for name in select_repaired(names, repair))
