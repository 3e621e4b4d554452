"""The commands gc and verify maintain a content store."""

from datetime import timedelta
from typing import Annotated

from cyclopts import Parameter

from prefect_dist.cli import inputs
from prefect_dist.cli.login import use_target_login
from prefect_dist.cli.names import find_record
from prefect_dist.cli.options import Concurrency, Direct, DryRun, LoginOptions, Quiet, RunNetworkOptions, Shared
from prefect_dist.cli.output import print_error


def gc(
    *,
    grace: Annotated[str, Parameter(help="Keep blobs that were used within this time, such as 24h or 7d.")] = "24h",
    dry_run: DryRun = False,
    direct: Direct = False,
    quiet: Quiet = False,
    context: Shared,
) -> int:
    """Run the flow `gc`, and return the exit code. Warn first about a grace period that endangers active runs."""
    from prefect_dist.cli import runs
    from prefect_dist.storage.gc import find_hazard

    grace_period = timedelta(seconds=inputs.parse_duration(grace))
    if (store := inputs.open_run_store(context)) and (warning := find_hazard(store, grace=grace_period)):
        print_error(warning)
    parameters = {**runs.store_parameters(context), "grace": grace, "dry_run": dry_run}
    return runs.run(context, "gc", parameters, quiet=quiet, direct=direct)


def verify(
    *,
    repair: Annotated[
        list[str] | None,
        Parameter(
            name="--repair",
            negative=(),
            consume_multiple=(1, None),
            help="Store names to fetch again if their images are incomplete, or all.",
        ),
    ] = None,
    concurrency: Concurrency = 4,
    network: RunNetworkOptions = RunNetworkOptions(),
    login: LoginOptions = LoginOptions(),
    direct: Direct = False,
    quiet: Quiet = False,
    context: Shared,
) -> int:
    """Run the flow `verify`, and return the exit code. The login is for the registry of the repaired images."""
    from prefect_dist.cli import runs

    store, wanted = inputs.open_run_store(context), repair or ()
    named = [find_record(inputs.open_store(context), name) for name in wanted if name != "all"]
    repaired = store.names.read()[0] if store is not None and "all" in wanted else named
    parameters = {
        **runs.common_parameters(context, network),
        "repair": "all" if "all" in wanted else [name.name for name in named],
        "concurrency": concurrency,
    }
    with use_target_login(login, {inputs.parse_reference(name.name).host for name in repaired}):
        return runs.run(context, "verify", parameters, quiet=quiet, direct=direct)
