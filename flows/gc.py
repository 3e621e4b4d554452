"""The flow `gc`: remove unneeded content from a store."""

from typing import Annotated

from prefect.runtime import flow_run

from prefect_dist.flows._flow import flow_of
from prefect_dist.flows.parameters import Store, StoreOptions, label, make_resources
from prefect_dist.flows.run import run
from prefect_dist.mirror.gc import make_gc_run
from prefect_dist.mirror.report import RunReport


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
    return run(make_gc_run(make_resources(store, store_options), grace=grace, dry_run=dry_run))
