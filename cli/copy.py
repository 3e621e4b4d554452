"""The command copy: one image, or all tags of a repository, from one place to another."""

from typing import Annotated

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
from prefect_dist.ocispec.reference import find_scheme
from prefect_dist.ocispec.schemes import STORE


def copy(
    source: Annotated[
        str, Parameter(name="SRC", help="An image, such as redis:7, oci:DIR:TAG, oci-archive:FILE or store:NAME.")
    ],
    target: Annotated[str, Parameter(name="DST", help="The target, such as registry.example/team/app:v1 or oci:DIR:TAG.")],
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

    chosen = [str(one) for one in inputs.parse_platforms(platform or ()) or ()]
    if rewrite_index and not chosen:
        raise BadInput("--rewrite-index requires --platform")
    source, target = map(inputs.make_locator_absolute, (source, target))
    wanted = {"rewrite_index": rewrite_index, "referrers": referrers, "all_tags": all_tags}
    job = inputs.make_copy_job(source, target, platforms=chosen, **wanted)
    if not job.has_stored_source and not dry_run:
        inputs.require_writable_store(context)
    parameters = {
        "source": _find_source(context, source),
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


def _find_source(context: Context, source: str) -> str:
    """Return the source. The short form of a store name is replaced by the recorded name.

    Raises:
        NotFound: the store does not have the name.
    """
    if find_scheme(source) != STORE:
        return source
    return f"{STORE}:{find_name(inputs.open_store(context), source.removeprefix(f'{STORE}:').strip())}"
