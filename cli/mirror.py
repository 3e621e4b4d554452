"""The commands mirror, seed and check: many images at many registries."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from prefect_dist.cli import inputs
from prefect_dist.cli.inputs import BadInput
from prefect_dist.cli.login import refuse_login, use_target_login
from prefect_dist.cli.options import (
    ConfiguredConcurrency,
    ConfiguredGrain,
    Context,
    Direct,
    DryRun,
    LoginOptions,
    MirrorFile,
    Platforms,
    Quiet,
    Referrers,
    Retries,
    RewriteIndex,
    RunNetworkOptions,
    Shared,
    Workers,
    option,
)
from prefect_dist.cli.output import print_error

if TYPE_CHECKING:
    from prefect_dist.mirror.config import Mirror
    from prefect_dist.mirror.entry import Entry

_ImageList = Annotated[
    str,
    Parameter(
        name="FILE",
        allow_leading_hyphen=True,
        help="A list of images or locators, one per line (- reads standard input), or a configuration (.yaml).",
    ),
]
_SeedTargets = Annotated[
    list[str] | None,
    option("Target registry, with or without a path, or oci:DIR for one layout per repository; repeatable."),
]
_Offline = Annotated[bool, option("Read images only from the content store; contact no source registry.")]


def mirror(
    config: MirrorFile,
    /,
    *,
    dry_run: DryRun = False,
    concurrency: ConfiguredConcurrency = None,
    retries: Retries = 3,
    network: RunNetworkOptions = RunNetworkOptions(),
    login: LoginOptions = LoginOptions(),
    grain: ConfiguredGrain = None,
    workers: Workers = 1,
    direct: Direct = False,
    quiet: Quiet = False,
    context: Shared,
) -> int:
    """Run the flow `mirror`, and return the exit code."""
    from prefect_dist.cli import runs

    if workers > 1:
        refuse_login(login, "worker processes do not get it")
    inputs.refuse_block(config, "mirror")
    path = inputs.make_absolute(config)
    wanted = inputs.load_mirror(path)
    parameters = {
        "config": path,
        "dry_run": dry_run,
        "concurrency": concurrency,
        "retries": retries,
        **_load_parameters(context, wanted, network, writes=not dry_run),
    }
    with _use_mirror(login, wanted, wanted.entries):
        return runs.run(
            context, "mirror", parameters, doing="mirroring", quiet=quiet, direct=direct, grain=grain, workers=workers
        )


def check(
    config: Annotated[str, Parameter(name="FILE", help="The configuration of a mirror (YAML), or a lock file.")],
    /,
    *,
    repair: Annotated[bool, option("Upload missing content, and correct the tags.")] = False,
    concurrency: ConfiguredConcurrency = None,
    retries: Retries = 3,
    network: RunNetworkOptions = RunNetworkOptions(),
    login: LoginOptions = LoginOptions(),
    workers: Workers = 1,
    direct: Direct = False,
    quiet: Quiet = False,
    context: Shared,
) -> int:
    """Run the flow `check`, and return the exit code."""
    from prefect_dist.cli import runs

    if workers > 1:
        refuse_login(login, "worker processes do not get it")
    inputs.refuse_block(config, "check")
    path = inputs.make_absolute(config)
    wanted = inputs.load_audited_mirror(path)
    parameters = {
        "config": path,
        "repair": repair,
        "concurrency": concurrency,
        "retries": retries,
        **_load_parameters(context, wanted, network, writes=repair or workers > 1),
    }
    with _use_mirror(login, wanted, (*wanted.entries, *wanted.seed)):
        return runs.run(context, "check", parameters, doing="mirroring", quiet=quiet, direct=direct, workers=workers)


def seed(
    images: _ImageList,
    /,
    *,
    to: _SeedTargets = None,
    platform: Platforms = None,
    rewrite_index: RewriteIndex = False,
    referrers: Referrers = False,
    offline: _Offline = False,
    failed: Annotated[str | None, Parameter(help="Write the images that failed to this file, as input for a retry.")] = None,
    lock: Annotated[str | None, Parameter(help="Lock file for dist check. A configuration names its own.")] = None,
    dry_run: DryRun = False,
    concurrency: ConfiguredConcurrency = None,
    retries: Retries = 3,
    network: RunNetworkOptions = RunNetworkOptions(),
    login: LoginOptions = LoginOptions(),
    grain: ConfiguredGrain = None,
    workers: Workers = 1,
    direct: Direct = False,
    quiet: Quiet = False,
    context: Shared,
) -> int:
    """Run the flow `seed`, and return the exit code."""
    from prefect_dist.cli import runs

    if workers > 1:
        refuse_login(login, "worker processes do not get it")
    inputs.refuse_block(images, "seed")
    parameters: dict[str, Any] = {
        "rewrite_index": rewrite_index,
        "referrers": referrers,
        "offline": offline,
        "failed": failed if failed is None else inputs.make_absolute(failed),
        "lock": lock if lock is None else inputs.make_absolute(lock),
        "dry_run": dry_run,
        "concurrency": concurrency,
        "retries": retries,
    }
    is_configured = images.endswith((".yaml", ".yml"))
    if is_configured:
        wanted = _load_seed(images, (*(to or ()), *(platform or ()), *([] if lock is None else ["--lock"])))
        parameters |= {"config": inputs.make_absolute(images), **_load_parameters(context, wanted, network, writes=not dry_run)}
    else:
        parameters |= _list_seed(images, to or [], platform or [], rewrite_index=rewrite_index)
        wanted = _make_seed(parameters)
        parameters |= runs.common_parameters(context, network)
        if not dry_run:
            inputs.require_writable_store(context)
    with _use_mirror(login, wanted, wanted.seed, is_mentioned=not is_configured):
        return runs.run(
            context, "seed", parameters, doing="mirroring", quiet=quiet, direct=direct, grain=grain, workers=workers
        )


def _load_seed(path: str, options: Sequence[str]) -> "Mirror":
    """Return the configuration of a seed. `options` are given command-line options that a configuration replaces."""
    if options:
        raise BadInput(f"{path}: the configuration defines targets, platforms and lock file; leave out {options[0]}")
    wanted = inputs.load_mirror(inputs.make_absolute(path))
    if not wanted.seed:
        raise BadInput(f"{path}: expected a section seed, but the file has none")
    return wanted


def _list_seed(path: str, to: Sequence[str], platforms: Sequence[str], *, rewrite_index: bool) -> dict[str, Any]:
    """Return the parameters for a seed of listed images."""
    if not to:
        raise BadInput("seed: a list of images requires --to REGISTRY")
    chosen = [str(platform) for platform in inputs.parse_platforms(platforms) or ()]
    if rewrite_index and not chosen:
        raise BadInput("--rewrite-index requires --platform")
    if inputs.is_locator(path):
        raise BadInput(
            f"{path}: expected a list of images, got an image; use dist copy, or pass the image on standard input (-)"
        )
    file = None if path == "-" else inputs.make_absolute(path)
    images = inputs.parse_images(sys.stdin) if path == "-" else []
    return {
        "to": [inputs.make_locator_absolute(one) for one in to],
        "images": images,
        "file": file,
        "platforms": chosen or "all",
    }


def _make_seed(parameters: dict[str, Any]) -> "Mirror":
    """Return the configuration that is equivalent to the parameters. The run uses it, so that the list is read once."""
    chosen = parameters["platforms"]
    return inputs.make_seed_mirror(
        parameters["to"],
        images=parameters["images"],
        file=parameters["file"],
        platforms=None if chosen == "all" else chosen,
        rewrite_index=parameters["rewrite_index"],
        referrers=parameters["referrers"],
        lock=parameters["lock"],
    )


@contextmanager
def _use_mirror(
    login: LoginOptions, wanted: "Mirror", entries: Sequence["Entry"], *, is_mentioned: bool = False
) -> Iterator[None]:
    """Make runs in the block use the configuration, and the credentials of the user for the target registry of `entries`.

    Messages about missing credentials mention the options only without a configuration. With a configuration, messages
    mention keys of the configuration.
    """
    from prefect_dist.mirror.config import use_config

    targets = {host for entry in entries for host in entry.target_hosts}
    with use_target_login(login, targets, configured=wanted.credentials, is_mentioned=is_mentioned), use_config(wanted):
        yield


def _load_parameters(context: Context, wanted: "Mirror", network: RunNetworkOptions, *, writes: bool) -> dict[str, Any]:
    """Print the warnings about a configuration, and return the parameters for the store and the network.

    A store from `--store` or the environment is checked, and created if the run `writes`. The run checks the store of the file.
    """
    from prefect_dist.cli import runs

    for warning in inputs.list_warnings(context, wanted):
        print_error(f"warning: {warning}")
    parameters = runs.common_parameters(context, network)
    if inputs.choose_mirror_store(context, wanted) == wanted.store:
        del parameters["store"]
    elif writes:
        inputs.require_writable_store(context)
    else:
        inputs.open_run_store(context)
    return parameters
