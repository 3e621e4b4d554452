"""The flow `mirror`: plans the images that targets lack, fetches content once, pushes it once per registry, sets tags last."""

from prefect.runtime import flow_run

from prefect_dist.flows._flow import flow_of
from prefect_dist.flows.exclusive import only_run
from prefect_dist.flows.parameters import (
    Configuration,
    ConfiguredConcurrency,
    ConfiguredGrain,
    ConfiguredStore,
    Destinations,
    DryRun,
    Format,
    Reached,
    Retries,
    StoreOptions,
    WorkerDeployment,
    Workers,
    make_resources,
)
from prefect_dist.flows.run import run
from prefect_dist.flows.shard_runs import DEPLOYMENT, ShardRuns
from prefect_dist.mirror.configured import make_mirror_run
from prefect_dist.mirror.loading import display_name
from prefect_dist.mirror.report import RunReport
from prefect_dist.transfer.attempts import RETRIES
from prefect_dist.transfer.events import Notify


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
    dialect: Format = "dist",
    to: Destinations = [],  # noqa: B006
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
        dialect=dialect,
        to=to,
    )
    shard_parameters = {
        "config": config,
        "store": store,
        "concurrency": spec.window,
        "retries": retries,
        "grain": grain or spec.grain,
        "store_options": store_options,
        "dialect": dialect,
        "to": to,
        "network": None if network is None else network.model_dump(),
    }

    def open_shards(notify: Notify) -> ShardRuns:
        return ShardRuns(shard_parameters, workers=workers, notify=notify, deployment=worker_deployment)

    with only_run("mirror", config, label=spec.configuration):
        return run(spec, grain=grain, open_shards=None if workers == 1 or dry_run else open_shards)
