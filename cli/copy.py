"""The command copy: one image, or all tags of a repository, to a registry."""

from typing import Annotated, Any

from cyclopts import Parameter

from prefect_dist.cli import inputs
from prefect_dist.cli.inputs import BadInput
from prefect_dist.cli.login import use_target_login
from prefect_dist.cli.names import find_name
from prefect_dist.cli.options import (
    Concurrency,
    Context,
    Direct,
    DryRun,
    GrainOption,
    LoginOptions,
    Platforms,
    Quiet,
    Referrers,
    Retries,
    RewriteIndex,
    RunNetworkOptions,
    Shared,
    option,
)


def copy(
    source: Annotated[
        str, Parameter(name="SRC", help="An image, such as redis:7, or store:NAME for a name in the content store.")
    ],
    target: Annotated[str, Parameter(name="DST", help="The target, such as registry.example/team/app:v1.")],
    /,
    *,
    platform: Platforms = None,
    rewrite_index: RewriteIndex = False,
    referrers: Referrers = False,
    all_tags: Annotated[bool, option("Copy all tags. SRC and DST are repositories.")] = False,
    dry_run: DryRun = False,
    concurrency: Concurrency = 8,
    retries: Retries = 3,
    network: RunNetworkOptions = RunNetworkOptions(),
    login: LoginOptions = LoginOptions(),
    grain: GrainOption = None,
    direct: Direct = False,
    quiet: Quiet = False,
    context: Shared,
) -> int:
    """Run the flow `copy`, and return the exit code."""
    from prefect_dist.cli import runs

    wanted: dict[str, Any] = {
        "rewrite_index": rewrite_index,
        "referrers": referrers,
        "all_tags": all_tags,
    }
    chosen = [str(one) for one in inputs.parse_platforms(platform or ()) or ()]
    if rewrite_index and not chosen:
        raise BadInput("--rewrite-index requires --platform")
    job = inputs.make_copy_job(source, target, platforms=chosen, **wanted)
    if job.has_stored_source:
        source = _find_stored(context, source)
    elif not dry_run:
        inputs.require_writable_store(context)
    parameters = {
        "source": source,
        "target": target,
        **wanted,
        "platforms": chosen or "all",
        "dry_run": dry_run,
        "concurrency": concurrency,
        "retries": retries,
        **runs.common_parameters(context, network),
    }
    # A message about a refusing source must not recommend the login options, which are for the target.
    is_mentioned = job.has_stored_source or job.source_hosts == job.target_hosts
    with use_target_login(login, job.target_hosts, is_mentioned=is_mentioned):
        return runs.run(context, "copy", parameters, doing="mirroring", quiet=quiet, direct=direct, grain=grain)


def _find_stored(context: Context, source: str) -> str:
    """Return the source with the recorded name. A source may have the short form of a name."""
    from prefect_dist.mirror.copying import STORE, parse_store_name

    return f"{STORE}{find_name(inputs.open_store(context), parse_store_name(source) or '')}"
