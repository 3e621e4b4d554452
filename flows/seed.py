"""The flow `seed`: publishes many images at many targets, from their own places or only from the content store."""
# ruff: noqa: B006 - Prefect shows defaults in the form and copies them

from pathlib import Path
from typing import Annotated

from prefect.runtime import flow_run

from prefect_dist.flows._flow import flow_of
from prefect_dist.flows.exclusive import only_run
from prefect_dist.flows.parameters import (
    ConfiguredConcurrency,
    ConfiguredGrain,
    ConfiguredStore,
    DryRun,
    PlatformNames,
    Reached,
    Referrers,
    Retries,
    RewriteIndex,
    StoreOptions,
    WorkerDeployment,
    Workers,
    label,
    make_resources,
)
from prefect_dist.flows.run import run
from prefect_dist.flows.shard_runs import DEPLOYMENT, ShardOptions
from prefect_dist.mirror.configured import make_seed_run
from prefect_dist.mirror.loading import display_name
from prefect_dist.mirror.report import RunReport
from prefect_dist.ocispec.units import format_count
from prefect_dist.transfer.attempts import RETRIES


def _run_name() -> str:
    given = flow_run.parameters
    action = "plan seed" if given["dry_run"] else "seed"
    if given["config"] is not None:
        return f"{action} {display_name(given['config'])}"
    images = Path(given["file"]).name if given["file"] is not None else format_count(len(given["images"]), "image")
    return f"{action} {images} to {', '.join(given['to'])}"


@flow_of("seed", run_name=_run_name)
def seed(
    *,
    images: Annotated[list[str], label("Images", "Such as docker.io/library/redis:7, oci:/srv/app:v1 or store:NAME")] = [],
    to: Annotated[
        list[str], label("Targets", "Registries, with or without a path, such as registry.example/mirror, or oci:DIR")
    ] = [],
    platforms: PlatformNames = "all",
    dry_run: DryRun = False,
    store: ConfiguredStore = None,
    file: Annotated[str | None, label("File", "A file on the worker with more images, one per line")] = None,
    config: Annotated[
        str | None,
        label(
            "Configuration",
            "Instead of images and targets: a configuration with a section seed: block:NAME, a path or URL, or the YAML text",
        ),
    ] = None,
    rewrite_index: RewriteIndex = False,
    referrers: Referrers = False,
    offline: Annotated[bool, label("Offline", "Read images only from the content store; contact no source registry")] = False,
    failed: Annotated[
        str | None,
        label(
            "Failure list", "A file that receives the images that failed, as input for a retry; vetoed images are not listed"
        ),
    ] = None,
    lock: Annotated[
        str | None, label("Lock file", "Without a configuration: the lock file, so that check can audit the targets")
    ] = None,
    concurrency: ConfiguredConcurrency = None,
    retries: Retries = RETRIES,
    grain: ConfiguredGrain = None,
    store_options: StoreOptions = {},
    workers: Workers = 1,
    worker_deployment: WorkerDeployment = DEPLOYMENT,
    network: Reached = None,
) -> RunReport:
    """Push many images to many registries, each under its own repository and tag. Existing content is not sent again."""
    spec = make_seed_run(
        make_resources(store, store_options, network),
        images=images,
        file=file,
        to=to,
        platforms=platforms,
        rewrite_index=rewrite_index,
        referrers=referrers,
        lock=lock,
        config=config,
        offline=offline,
        failed=failed,
        dry_run=dry_run,
        concurrency=concurrency,
        retries=retries,
    )
    shards = ShardOptions(
        workers=workers, deployment=worker_deployment, config=config, store=store, store_options=store_options, network=network
    )
    divided = None if dry_run else shards.divide(spec, grain=grain)
    with only_run("seed", config, label=spec.configuration):
        return run(shards.widen(spec), grain=grain, shards=divided)
