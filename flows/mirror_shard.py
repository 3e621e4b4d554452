"""The flow `mirror-shard`: carries out one shard of a mirror, seed or check, on any worker."""

from typing import Annotated

from prefect.runtime import flow_run

from prefect_dist.flows._flow import flow_of
from prefect_dist.flows.parameters import (
    Concurrency,
    GrainOption,
    Reached,
    Retries,
    StoreOptions,
    label,
    make_resources,
)
from prefect_dist.flows.parent_run import require_parent, stop_with_parent
from prefect_dist.flows.run import run as carry_out
from prefect_dist.mirror.hosts_file import CONCURRENCY
from prefect_dist.mirror.report import RunReport
from prefect_dist.mirror.shard_job import make_shard_run, show_life
from prefect_dist.transfer.attempts import RETRIES


def _run_name() -> str:
    """Return the name that the parent gave to the run. The name has the number of the attempt."""
    return str(flow_run.name)


@flow_of("mirror-shard", run_name=_run_name)
def mirror_shard(
    run: Annotated[str, label("Run", "ID of the parent flow run, which names the files in the content store")],
    shard: Annotated[int, label("Shard", "Number of the shard, from 0", ge=0)],
    digest: Annotated[str, label("Digest", "Digest of the shard's file in the content store, as the parent wrote the file")],
    key: Annotated[str, label("Key", "Key with which the shard signs its result, so that the parent accepts the result")],
    store: Annotated[str | None, label("Content store", "The content store of the parent run")] = None,
    *,
    config: Annotated[str | None, label("Configuration", "The configuration of the parent run")] = None,
    workers: Annotated[int, label("Workers", "Number of shards that share the limits of each registry", ge=1)] = 1,
    concurrency: Concurrency = CONCURRENCY,
    retries: Retries = RETRIES,
    offline: Annotated[bool, label("Offline", "Read images only from the content store")] = False,
    grain: GrainOption = "descriptor",
    store_options: StoreOptions = {},  # noqa: B006 - Prefect shows it in the form and copies it
    network: Reached = None,
) -> RunReport:
    """Carry out one shard of a mirror, seed or check. A run with the parameter `workers` submits this flow; people do not."""
    require_parent(run)
    spec = make_shard_run(
        make_resources(store, store_options, network),
        run=run,
        shard=shard,
        digest=digest,
        key=key,
        workers=workers,
        config=config,
        concurrency=concurrency,
        retries=retries,
        offline=offline,
    )
    with stop_with_parent(run), show_life(spec.session, run=run, shard=shard):
        return carry_out(spec, grain=grain)
