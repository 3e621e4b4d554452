"""The flow `seed`: many images to many registries at once, from where they are or from the store alone."""
# ruff: noqa: B006 - Prefect shows defaults in the form and copies them

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from pydantic import Field

from flows.conclusion import concluded
from flows.mirroring.opening import opened, specified
from flows.mirroring.report import MirrorReport
from flows.mirroring.run import Job, run
from flows.mirroring.seeding import seeding
from flows.parameters import (
    CONCURRENCY,
    ConfiguredConcurrency,
    ConfiguredStore,
    DryRun,
    Network,
    Referrers,
    Retries,
    StoreOptions,
)
from flows.runner import RUNNER
from ocispec.errors import InvalidInput
from ocispec.units import counted
from storage.statefile import StateFile
from tasks._task import RETRIES


def _run_name() -> str:
    given = flow_run.parameters
    what = "plan seed" if given["dry_run"] else "seed"
    if given["config"] is not None:
        return f"{what} {Path(given['config']).stem}"
    images = Path(given["file"]).name if given["file"] is not None else counted(len(given["images"]), "image")
    return f"{what} {images} to {', '.join(given['to'])}"


@flow(name="seed", flow_run_name=_run_name, task_runner=RUNNER, persist_result=False)
def seed(
    *,
    to: Annotated[list[str], Field(description="Registries, each with or without a path, as in registry.example/mirror")] = [],
    images: Annotated[list[str], Field(description="Images, such as docker.io/library/redis:7")] = [],
    file: Annotated[str | None, Field(description="A file of more images, one in a line, where the run is")] = None,
    config: Annotated[
        str | None, Field(description="Instead of these: a mirror's configuration with a seed section, where the run is")
    ] = None,
    platforms: Annotated[
        Literal["all"] | list[str], Field(description='"all", or some, such as ["linux/amd64"]; others are not brought')
    ] = "all",
    rewrite_index: Annotated[
        bool, Field(description="Make an index of these platforms alone, for registries that want all that it names")
    ] = False,
    referrers: Referrers = False,
    offline: Annotated[bool, Field(description="From the store alone: nobody else is asked for images")] = False,
    failed: Annotated[
        str | None, Field(description="A file for the images that could not be brought everywhere, to begin with the next time")
    ] = None,
    dry_run: DryRun = False,
    store: ConfiguredStore = None,
    store_options: StoreOptions = {},
    network: Network = Network(),
    concurrency: ConfiguredConcurrency = None,
    retries: Retries = RETRIES,
) -> State[Any]:
    """Bring many images to many registries, each under its own repository and tag; what is there is not sent again."""
    if config is not None:
        wanted, spec = opened(config, store, store_options, network)
    else:
        wanted = seeding(
            to,
            images=images,
            file=file,
            platforms=None if platforms == "all" else platforms,
            rewrite_index=rewrite_index,
            referrers=referrers,
        )
        spec = specified(wanted, store, store_options, network)
    if not wanted.seed:
        raise InvalidInput(f"{wanted.path}: expected a section seed, there is none")
    job = Job(
        name="seed" if config is None else f"seed {wanted.name}",
        entries=wanted.seed,
        lock=wanted.lock,
        dry_run=dry_run,
        concurrency=concurrency or wanted.concurrency or CONCURRENCY,
        retries=retries,
    )
    report = run(job, replace(spec, offline=offline))
    if failed is not None:
        _write(report, failed)
    return concluded("seed", report)


def _write(report: MirrorReport, url: str) -> None:
    """List the images that are not at all their targets, as the next run can read it."""
    lines = "".join(f"{image}\n" for image in report.unfinished())
    StateFile(url).change(lambda _: lines.encode())
