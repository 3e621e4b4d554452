"""The flow `fetch`: fetches images into the content store, each descriptor with one task."""

from typing import Annotated

from prefect.runtime import flow_run

from prefect_dist.flows._flow import flow_of
from prefect_dist.flows.parameters import (
    Concurrency,
    GrainOption,
    PlatformNames,
    Reached,
    Referrers,
    Retries,
    Store,
    StoreOptions,
    label,
    make_resources,
)
from prefect_dist.flows.run import run
from prefect_dist.mirror.fetch import make_fetch_run
from prefect_dist.mirror.hosts_file import CONCURRENCY
from prefect_dist.mirror.report import RunReport
from prefect_dist.ocispec.units import format_count
from prefect_dist.transfer.attempts import RETRIES


def _run_name() -> str:
    references = flow_run.parameters["references"]
    return f"fetch {references[0]}" if len(references) == 1 else f"fetch {format_count(len(references), 'image')}"


@flow_of("fetch", run_name=_run_name)
def fetch(
    references: Annotated[list[str], label("Images", "Such as docker.io/library/redis:7", min_length=1)],
    store: Store,
    platforms: PlatformNames = "all",
    *,
    referrers: Referrers = False,
    concurrency: Concurrency = CONCURRENCY,
    retries: Retries = RETRIES,
    grain: GrainOption = "descriptor",
    store_options: StoreOptions = {},  # noqa: B006 - Prefect shows it in the form and copies it
    network: Reached = None,
) -> RunReport:
    """Fetch images into the content store. One task fetches and verifies each descriptor of an image."""
    return run(
        make_fetch_run(
            make_resources(store, store_options, network),
            references=references,
            platforms=platforms,
            referrers=referrers,
            concurrency=concurrency,
            retries=retries,
        ),
        grain=grain,
    )
