"""The grammar of the commands that are Prefect runs; each imports what it does when it runs."""

from typing import Annotated

from cyclopts import App, Parameter

from prefect_dist.cli.options import (
    RUNS,
    Concurrency,
    ConfiguredConcurrency,
    From,
    LoginOptions,
    Platform,
    Quiet,
    Referrers,
    Retries,
    RunNetworkOptions,
    Shared,
    To,
)

app = App()


@app.command(group=RUNS, usage="Usage: dist fetch [OPTIONS] REF...")
def fetch(
    references: Annotated[list[str], Parameter(name="REF", help="Images, such as redis:7 or ghcr.io/a/b@sha256:…")],
    /,
    *,
    platform: Annotated[
        list[str] | None,
        Parameter(negative=(), help="Of an index fetch only what serves this, such as linux/arm64; repeatable. Default: all."),
    ] = None,
    referrers: Referrers = False,
    concurrency: Concurrency = 8,
    retries: Retries = 3,
    network: RunNetworkOptions = RunNetworkOptions(),
    login: LoginOptions = LoginOptions(),
    quiet: Quiet = False,
    context: Shared,
) -> int:
    """Bring images into the content store, each descriptor by a Prefect task, and record their names."""
    from prefect_dist.cli.fetch import fetch

    options = {"referrers": referrers, "concurrency": concurrency, "retries": retries}
    return fetch(context.with_quiet(quiet=quiet), references, platform or [], network=network, login=login, **options)


@app.command(group=RUNS)
def pull(
    reference: Annotated[str, Parameter(name="REF", help="An image, such as redis:7.")],
    directory: Annotated[str, Parameter(name="DIR", help="A directory that is empty or not there.")],
    /,
    *,
    platform: Platform = None,
    referrers: Referrers = False,
    concurrency: Concurrency = 8,
    retries: Retries = 3,
    network: RunNetworkOptions = RunNetworkOptions(),
    login: LoginOptions = LoginOptions(),
    quiet: Quiet = False,
    context: Shared,
) -> int:
    """Fetch one platform of an image, then unpack its layers: its root file system appears in DIR, whole and verified."""
    from prefect_dist.cli.fetch import pull

    options = {"referrers": referrers, "concurrency": concurrency, "retries": retries}
    return pull(context.with_quiet(quiet=quiet), reference, directory, platform, network=network, login=login, **options)


@app.command(group=RUNS)
def push(
    name: Annotated[str, Parameter(name="NAME", help="An image in the content store.")],
    target: Annotated[str, Parameter(name="REF", help="Where it goes, such as registry.example/team/app:v1.")],
    /,
    *,
    referrers: Referrers = False,
    concurrency: Concurrency = 8,
    retries: Retries = 3,
    network: RunNetworkOptions = RunNetworkOptions(),
    login: LoginOptions = LoginOptions(),
    quiet: Quiet = False,
    context: Shared,
) -> int:
    """Bring an image from the content store to a registry: what is there is not sent, and the tag is set last."""
    from prefect_dist.cli.push import push

    options = {"referrers": referrers, "concurrency": concurrency, "retries": retries}
    return push(context.with_quiet(quiet=quiet), name, target, network=network, login=login, **options)


@app.command(group=RUNS)
def mirror(
    config: Annotated[str, Parameter(name="FILE", help="The mirror's configuration (YAML).")],
    /,
    *,
    dry_run: Annotated[bool, Parameter(negative=(), help="Only tell what would be done.")] = False,
    dialect: From = "dist",
    to: To = None,
    concurrency: ConfiguredConcurrency = None,
    retries: Retries = 3,
    network: RunNetworkOptions = RunNetworkOptions(),
    login: LoginOptions = LoginOptions(),
    quiet: Quiet = False,
    context: Shared,
) -> int:
    """Bring the images that a configuration names to its targets: what is there is not sent, and each tag is set last."""
    from prefect_dist.cli.mirror import mirror

    numbers = {"concurrency": concurrency, "retries": retries}
    return mirror(
        context.with_quiet(quiet=quiet), config, dialect, to or [], dry_run=dry_run, network=network, login=login, **numbers
    )


@app.command(group=RUNS)
def seed(
    images: Annotated[
        str,
        Parameter(
            name="FILE", allow_leading_hyphen=True, help="Images, one in a line (- reads them), or a configuration (.yaml)."
        ),
    ],
    /,
    *,
    to: Annotated[
        list[str] | None,
        Parameter(negative=(), help="A registry, with or without a path before its repositories; repeatable."),
    ] = None,
    platform: Annotated[
        list[str] | None,
        Parameter(negative=(), help="Of an index bring only what serves this, such as linux/arm64; repeatable. Default: all."),
    ] = None,
    rewrite_index: Annotated[bool, Parameter(negative=(), help="Make an index of these platforms alone.")] = False,
    referrers: Referrers = False,
    offline: Annotated[bool, Parameter(negative=(), help="From the store alone: nobody is asked for images.")] = False,
    failed: Annotated[str | None, Parameter(help="Write the images that failed to this file.")] = None,
    lock: Annotated[str | None, Parameter(help="Lock file for dist check. A configuration names its own.")] = None,
    dry_run: Annotated[bool, Parameter(negative=(), help="Only tell what would be done.")] = False,
    concurrency: ConfiguredConcurrency = None,
    retries: Retries = 3,
    network: RunNetworkOptions = RunNetworkOptions(),
    login: LoginOptions = LoginOptions(),
    quiet: Quiet = False,
    context: Shared,
) -> int:
    """Bring many images to many registries, each under its own repository and tag; what is there is not sent again."""
    from prefect_dist.cli.mirror import seed

    choices = {"rewrite_index": rewrite_index, "referrers": referrers, "offline": offline, "dry_run": dry_run}
    numbers = {"concurrency": concurrency, "retries": retries}
    return seed(
        context.with_quiet(quiet=quiet),
        images,
        to or [],
        platform or [],
        failed=failed,
        lock=lock,
        network=network,
        login=login,
        **choices,
        **numbers,
    )


@app.command(group=RUNS)
def check(
    config: Annotated[str, Parameter(name="FILE", help="The mirror's configuration (YAML), or a lock file.")],
    /,
    *,
    repair: Annotated[bool, Parameter(negative=(), help="Send again what is missing.")] = False,
    dialect: From = "dist",
    to: To = None,
    concurrency: ConfiguredConcurrency = None,
    retries: Retries = 3,
    network: RunNetworkOptions = RunNetworkOptions(),
    login: LoginOptions = LoginOptions(),
    quiet: Quiet = False,
    context: Shared,
) -> int:
    """See that targets have all that was mirrored: each tag as locked, and every manifest, blob and referrer below it."""
    from prefect_dist.cli.mirror import check

    numbers = {"concurrency": concurrency, "retries": retries}
    return check(
        context.with_quiet(quiet=quiet), config, dialect, to or [], repair=repair, network=network, login=login, **numbers
    )


@app.command(group=RUNS)
def gc(
    *,
    grace: Annotated[str, Parameter(help="Remove only what nobody has touched for so long, such as 24h or 7d.")] = "24h",
    dry_run: Annotated[bool, Parameter(negative=(), help="Only tell what would be removed.")] = False,
    quiet: Quiet = False,
    context: Shared,
) -> int:
    """Remove blobs that no name and no run under way needs, and what dead runs left behind."""
    from prefect_dist.cli.upkeep import gc

    return gc(context.with_quiet(quiet=quiet), grace=grace, dry_run=dry_run)


@app.command(group=RUNS)
def verify(
    *,
    repair: Annotated[
        list[str] | None,
        Parameter(
            name="--repair", negative=(), consume_multiple=(1, None), help="Names to fetch again if not whole; all for all."
        ),
    ] = None,
    concurrency: Concurrency = 4,
    network: RunNetworkOptions = RunNetworkOptions(),
    login: LoginOptions = LoginOptions(),
    quiet: Quiet = False,
    context: Shared,
) -> int:
    """Hash every blob anew, put corrupt ones into quarantine, and see that every name is whole."""
    from prefect_dist.cli.upkeep import verify

    return verify(context.with_quiet(quiet=quiet), network, login, repair=repair or [], concurrency=concurrency)
