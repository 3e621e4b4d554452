"""The flow `check`: checks that the targets of a mirror still have every mirrored image, and repairs targets on request."""

from typing import Annotated

from prefect.runtime import flow_run

from prefect_dist.flows._flow import flow_of
from prefect_dist.flows.exclusive import only_run
from prefect_dist.flows.parameters import (
    Configuration,
    ConfiguredConcurrency,
    ConfiguredStore,
    Reached,
    Retries,
    StoreOptions,
    WorkerDeployment,
    Workers,
    label,
    make_resources,
)
from prefect_dist.flows.run import run
from prefect_dist.flows.shard_runs import DEPLOYMENT, ShardOptions
from prefect_dist.mirror.check import make_check_run
from prefect_dist.mirror.loading import display_name
from prefect_dist.mirror.report import RunReport
from prefect_dist.transfer.attempts import RETRIES


def _run_name() -> str:
    given = flow_run.parameters
    return f"check {display_name(given['config'])}{' and repair' if given['repair'] else ''}"


@flow_of("check", run_name=_run_name)
def check(
    config: Configuration,
    store: ConfiguredStore = None,
    *,
    repair: Annotated[bool, label("Repair", "Push missing content again")] = False,
    concurrency: ConfiguredConcurrency = None,
    retries: Retries = RETRIES,
    store_options: StoreOptions = {},  # noqa: B006 - Prefect shows it in the form and copies it
    workers: Workers = 1,
    worker_deployment: WorkerDeployment = DEPLOYMENT,
    network: Reached = None,
) -> RunReport:
    """Check that each tag of a mirror resolves to the digest in its lock file, with all its content and referrers."""
    spec = make_check_run(
        make_resources(store, store_options, network),
        config=config,
        repair=repair,
        concurrency=concurrency,
        retries=retries,
    )
    shards = ShardOptions(
        workers=workers, deployment=worker_deployment, config=config, store=store, store_options=store_options, network=network
    )
    divided = shards.divide(spec)
    with only_run("check", config, label=spec.configuration):
        return run(spec, shards=divided, is_sending=divided is None)
