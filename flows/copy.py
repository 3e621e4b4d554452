"""The flow `copy`: copy an image, or all tags of a repository, from one place to another."""

from typing import Annotated

from prefect.runtime import flow_run

from prefect_dist.flows._flow import flow_of
from prefect_dist.flows.parameters import (
    Concurrency,
    DryRun,
    GrainOption,
    PlatformNames,
    Reached,
    Referrers,
    Retries,
    RewriteIndex,
    Store,
    StoreOptions,
    label,
    make_resources,
)
from prefect_dist.flows.run import run
from prefect_dist.mirror.copying import make_copy_run
from prefect_dist.mirror.hosts_file import CONCURRENCY
from prefect_dist.mirror.report import RunReport
from prefect_dist.transfer.attempts import RETRIES


def _run_name() -> str:
    given = flow_run.parameters
    return f"{'plan copy' if given['dry_run'] else 'copy'} {given['source']} to {given['target']}"


@flow_of("copy", run_name=_run_name)
def copy(
    source: Annotated[
        str, label("Source", "An image such as docker.io/library/redis:7, oci:DIR:TAG, oci-archive:FILE or store:NAME")
    ],
    target: Annotated[str, label("Target", "The place to copy to, such as registry.example/team/app:v1 or oci:DIR:TAG")],
    store: Store,
    *,
    platforms: PlatformNames = "all",
    rewrite_index: RewriteIndex = False,
    referrers: Referrers = False,
    all_tags: Annotated[bool, label("All tags", "Source and target are repositories; copy all tags of the source")] = False,
    dry_run: DryRun = False,
    concurrency: Concurrency = CONCURRENCY,
    retries: Retries = RETRIES,
    grain: GrainOption = "descriptor",
    store_options: StoreOptions = {},  # noqa: B006 - Prefect shows it in the form and copies it
    network: Reached = None,
) -> RunReport:
    """Copy an image from one place to another: registry, image layout, archive or content store. Existing content stays."""
    return run(
        make_copy_run(
            make_resources(store, store_options, network),
            source=source,
            target=target,
            platforms=platforms,
            rewrite_index=rewrite_index,
            referrers=referrers,
            all_tags=all_tags,
            dry_run=dry_run,
            concurrency=concurrency,
            retries=retries,
        ),
        grain=grain,
    )
