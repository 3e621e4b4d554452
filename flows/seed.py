"""The flow `seed`: pushes many images to many registries, from their source registries or only from the content store."""
# ruff: noqa: B006 - Prefect shows defaults in the form and copies them

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from prefect import get_run_logger
from prefect.runtime import flow_run

from prefect_dist.flows import metrics
from prefect_dist.flows._flow import flow_of
from prefect_dist.flows.exclusive import only_run
from prefect_dist.flows.loading import display_name, load_run_config, mirror_session_spec
from prefect_dist.flows.mirror_run import run
from prefect_dist.flows.parameters import (
    ConfiguredConcurrency,
    ConfiguredStore,
    DryRun,
    PlatformNames,
    Reached,
    Referrers,
    Retries,
    StoreOptions,
    label,
)
from prefect_dist.mirror.config import SEED_OPTIONS, find_config_in_use, make_seed_mirror
from prefect_dist.mirror.report import RunError, RunReport, TargetRow
from prefect_dist.mirror.run import MirrorJob
from prefect_dist.ocispec.errors import DistError, InvalidInput
from prefect_dist.ocispec.units import format_count
from prefect_dist.storage.statefile import StateFile
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
    images: Annotated[list[str], label("Images", "Such as docker.io/library/redis:7")] = [],
    to: Annotated[list[str], label("Targets", "Registries, with or without a path, such as registry.example/mirror")] = [],
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
    rewrite_index: Annotated[
        bool, label("Rewrite index", "Push a new index of only these platforms, for registries that reject a sparse index")
    ] = False,
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
    store_options: StoreOptions = {},
    network: Reached = None,
) -> RunReport:
    """Push many images to many registries, each under its own repository and tag. Existing content is not sent again."""
    if config is not None:
        wanted, spec = load_run_config(config, store, store_options, network)
    else:
        # The command has already read the list, which may be a pipe.
        wanted = find_config_in_use(SEED_OPTIONS) or make_seed_mirror(
            to,
            images=images,
            file=file,
            platforms=None if platforms == "all" else platforms,
            rewrite_index=rewrite_index,
            referrers=referrers,
            lock=lock,
        )
        spec = mirror_session_spec(wanted, store, store_options, network)
    if not wanted.seed:
        raise InvalidInput(f"{wanted.path}: expected a section seed, there is none")
    job = MirrorJob(
        flow="seed",
        configuration=None if config is None else wanted.name,
        entries=wanted.seed,
        others=wanted.entries,
        lock=wanted.lock,
        is_dry=dry_run,
    )
    exclusive = nullcontext() if config is None else only_run("seed", config, label=wanted.name)
    with exclusive:
        workers = concurrency or wanted.concurrency
        report = run(job, replace(spec, offline=offline), concurrency=workers, retries=retries)
    if failed is not None:
        report = _write_unfinished(report, failed)
    if not dry_run and config is not None:
        metrics.push(report, mirror=wanted.name, log=get_run_logger())
    return report


def _write_unfinished(report: RunReport, url: str) -> RunReport:
    """Write the images that failed to a file that the next run can read. Return the report, with an error if that failed.

    Vetoed images are not written: their gate would veto them again.
    """
    failed = (str(row.source) for row in report.select(TargetRow) if row.outcome == "failed")
    try:
        StateFile(url).write("".join(f"{image}\n" for image in dict.fromkeys(failed)).encode())
    except DistError as exc:
        return report.with_error(RunError(object="list of failed images", error=exc.with_traceback(None)))
    return report
