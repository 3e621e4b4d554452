"""The flow `pull`: fetch an image, then unpack the layers into a directory."""

from typing import Annotated

from prefect.runtime import flow_run

from prefect_dist.flows._flow import flow_of
from prefect_dist.flows.parameters import Concurrency, Reached, Referrers, Retries, Store, StoreOptions, label, make_resources
from prefect_dist.flows.run import run
from prefect_dist.mirror.hosts_file import CONCURRENCY
from prefect_dist.mirror.pull import make_pull_run
from prefect_dist.mirror.report import RunReport
from prefect_dist.transfer.attempts import RETRIES


def _run_name() -> str:
    return f"pull {flow_run.parameters['reference']}"


@flow_of("pull", run_name=_run_name)
def pull(
    reference: Annotated[str, label("Image", "Such as docker.io/library/redis:7")],
    directory: Annotated[
        str,
        label("Directory", "For the root file system, on the machine of the run; it is empty or does not exist"),
    ],
    store: Store,
    platform: Annotated[
        str | None,
        label("Platform", "The image of an index to unpack, such as linux/arm64; by default the platform of the run's machine"),
    ] = None,
    *,
    referrers: Referrers = False,
    concurrency: Concurrency = CONCURRENCY,
    retries: Retries = RETRIES,
    store_options: StoreOptions = {},  # noqa: B006 - Prefect shows it in the form and copies it
    network: Reached = None,
) -> RunReport:
    """Fetch one platform of an image into the content store, then unpack the root file system into a directory."""
    return run(
        make_pull_run(
            make_resources(store, store_options, network),
            reference=reference,
            directory=directory,
            platform=platform,
            referrers=referrers,
            concurrency=concurrency,
            retries=retries,
        )
    )
