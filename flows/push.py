"""The flow `push`: upload an image of the store to a registry, an image layout or an archive."""

from typing import Annotated

from prefect.runtime import flow_run

from prefect_dist.flows._flow import flow_of
from prefect_dist.flows.parameters import Concurrency, Reached, Referrers, Retries, Store, StoreOptions, label, make_resources
from prefect_dist.flows.run import run
from prefect_dist.mirror.copying import make_push_run
from prefect_dist.mirror.hosts_file import CONCURRENCY
from prefect_dist.mirror.report import RunReport
from prefect_dist.transfer.attempts import RETRIES


def _run_name() -> str:
    return f"push {flow_run.parameters['name']} to {flow_run.parameters['target']}"


@flow_of("push", run_name=_run_name)
def push(
    name: Annotated[str, label("Image", "The store name of the image")],
    target: Annotated[str, label("Target", "The place to push to, such as registry.example/team/app:v1 or oci:DIR:TAG")],
    store: Store,
    *,
    platform: Annotated[
        str | None,
        label("Platform", "Push the image for this platform, such as linux/amd64, under the tag, instead of the index"),
    ] = None,
    sparse: Annotated[
        bool, label("Sparse", "Push the index unchanged although the content store has only some of its platforms")
    ] = False,
    referrers: Referrers = False,
    concurrency: Concurrency = CONCURRENCY,
    retries: Retries = RETRIES,
    store_options: StoreOptions = {},  # noqa: B006 - Prefect shows it in the form and copies it
    network: Reached = None,
) -> RunReport:
    """Push an image of the content store to a registry, layout or archive. Existing content stays, and the tag is set last."""
    return run(
        make_push_run(
            make_resources(store, store_options, network),
            name=name,
            target=target,
            platform=platform,
            sparse=sparse,
            referrers=referrers,
            concurrency=concurrency,
            retries=retries,
        )
    )
