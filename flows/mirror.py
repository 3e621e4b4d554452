"""The flow `mirror`: plans the images that targets lack, fetches content once, pushes it once per registry, sets tags last."""

from prefect.runtime import flow_run

from prefect_dist.flows._flow import flow_of
from prefect_dist.flows.exclusive import only_run
from prefect_dist.flows.parameters import (
    Configuration,
    ConfiguredConcurrency,
    ConfiguredGrain,
    ConfiguredStore,
    DryRun,
    Reached,
    Retries,
    StoreOptions,
    WorkerDeployment,
    Workers,
    make_resources,
)
from prefect_dist.flows.run import run
from prefect_dist.flows.shard_runs import DEPLOYMENT, ShardOptions
from prefect_dist.mirror.configured import make_mirror_run
from prefect_dist.mirror.loading import display_name
from prefect_dist.mirror.report import RunReport
from prefect_dist.transfer.attempts import RETRIES


def _run_name() -> str:
    action = "plan mirror" if flow_run.parameters["dry_run"] else "mirror"
    return f"{action} {display_name(flow_run.parameters['config'])}"


@flow_of("mirror", run_name=_run_name)
def mirror(
    config: Configuration,
    store: ConfiguredStore = None,
    *,
    dry_run: DryRun = False,
    concurrency: ConfiguredConcurrency = None,
    retries: Retries = RETRIES,
    grain: ConfiguredGrain = None,
    store_options: StoreOptions = {},  # noqa: B006 - Prefect shows it in the form and copies it
    workers: Workers = 1,
    worker_deployment: WorkerDeployment = DEPLOYMENT,
    network: Reached = None,
) -> RunReport:
    """Mirror the images of a configuration to its targets. Only changed images are pushed, each blob once per registry."""
    spec = make_mirror_run(
        make_resources(store, store_options, network),
        config=config,
        dry_run=dry_run,
        concurrency=concurrency,
        retries=retries,
    )
    shards = ShardOptions(
        workers=workers, deployment=worker_deployment, config=config, store=store, store_options=store_options, network=network
    )
    divided = None if dry_run else shards.divide(spec, grain=grain)
    with only_run("mirror", config, label=spec.configuration):
        return run(shards.widen(spec), grain=grain, shards=divided)
