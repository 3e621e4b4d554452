"""The flow `mirror`: plans the images that targets lack, fetches content once, pushes it once per registry, sets tags last."""

from prefect import get_run_logger
from prefect.runtime import flow_run

from prefect_dist.flows import metrics
from prefect_dist.flows._flow import flow_of
from prefect_dist.flows.exclusive import only_run
from prefect_dist.flows.loading import display_name, load_run_config
from prefect_dist.flows.mirror_run import run
from prefect_dist.flows.parameters import (
    Configuration,
    ConfiguredConcurrency,
    ConfiguredStore,
    Destinations,
    DryRun,
    Format,
    Reached,
    Retries,
    StoreOptions,
)
from prefect_dist.mirror.report import RunReport
from prefect_dist.mirror.run import MirrorJob
from prefect_dist.mirror.skopeo import choose_parser
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
    store_options: StoreOptions = {},  # noqa: B006 - Prefect shows it in the form and copies it
    dialect: Format = "dist",
    to: Destinations = [],  # noqa: B006
    network: Reached = None,
) -> RunReport:
    """Mirror the images of a configuration to its targets. Only changed images are pushed, each blob once per registry."""
    wanted, spec = load_run_config(config, store, store_options, network, parse=choose_parser(dialect, to))
    job = MirrorJob(
        flow="mirror",
        configuration=wanted.name,
        entries=wanted.entries,
        others=wanted.seed,
        lock=wanted.lock,
        is_dry=dry_run,
    )
    with only_run("mirror", config, label=wanted.name):
        report = run(job, spec, concurrency=concurrency or wanted.concurrency, retries=retries)
    if not dry_run:
        metrics.push(report, mirror=wanted.name, log=get_run_logger())
    return report
