"""Makes the specifications of mirror runs from parameters: `mirror` and `seed`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from prefect_dist.mirror.config import SEED_OPTIONS, Mirror, find_config_in_use, make_seed_mirror
from prefect_dist.mirror.loading import load_config
from prefect_dist.mirror.resources import RunResources
from prefect_dist.mirror.run import MirrorJob
from prefect_dist.mirror.run_spec import RunSpec
from prefect_dist.ocispec.errors import InvalidInput


def make_mirror_run(
    resources: RunResources,
    *,
    config: str,
    dry_run: bool,
    concurrency: int | None,
    retries: int,
) -> RunSpec:
    """Return the run for the parameters of the flow `mirror`.

    Raises:
        InvalidInput: a parameter or the configuration is invalid.
        Denied, Unavailable: see `mirror.loading.load_config`.
    """
    wanted = load_config(config, resources.blocks)
    job = MirrorJob(
        flow="mirror",
        configuration=wanted.name,
        entries=wanted.entries,
        others=wanted.seed,
        lock=wanted.lock,
        is_dry=dry_run,
    )
    return _make_run(job, wanted, resources, concurrency=concurrency, retries=retries)


def make_seed_run(
    resources: RunResources,
    *,
    images: Sequence[str] = (),
    file: str | None = None,
    to: Sequence[str] = (),
    platforms: Literal["all"] | Sequence[str] = "all",
    rewrite_index: bool,
    referrers: bool,
    lock: str | None,
    config: str | None = None,
    offline: bool,
    failed: str | None,
    dry_run: bool,
    concurrency: int | None,
    retries: int,
) -> RunSpec:
    """Return the run for the parameters of the flow `seed`. A `config` replaces the parameters above it.

    Raises:
        InvalidInput: a parameter or the configuration is invalid, or the configuration has no section `seed`.
        Denied, Unavailable: see `mirror.loading.load_config`.
    """
    if config is not None:
        wanted = load_config(config, resources.blocks)
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
    if not wanted.seed:
        raise InvalidInput(f"{wanted.path}: expected a section seed, there is none")
    job = MirrorJob(
        flow="seed",
        configuration=None if config is None else wanted.name,
        entries=wanted.seed,
        others=wanted.entries,
        lock=wanted.lock,
        is_dry=dry_run,
        failed=failed,
    )
    spec = _make_run(job, wanted, resources, concurrency=concurrency, retries=retries)
    return replace(spec, session=replace(spec.session, offline=offline))


def _make_run(job: MirrorJob, wanted: Mirror, resources: RunResources, *, concurrency: int | None, retries: int) -> RunSpec:
    return RunSpec(
        job=job,
        session=resources.make_mirror_session(wanted),
        window=concurrency or wanted.concurrency,
        retries=retries,
        grain=wanted.grain,
        configuration=job.configuration,
        warnings=wanted.warnings,
    )
