"""The commands that keep a store: gc and verify."""

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from prefect_dist.cli import inputs, runs, tables
from prefect_dist.cli.context import Context
from prefect_dist.cli.errors import tell
from prefect_dist.cli.login import WAY, given_for_targets
from prefect_dist.cli.names import find_record
from prefect_dist.cli.options import LoginOptions, RunNetworkOptions
from prefect_dist.ocispec.units import size
from prefect_dist.storage.gc import find_hazard
from prefect_dist.transfer.session import use_credentials

if TYPE_CHECKING:
    from prefect_dist.mirror.gc import GcReport
    from prefect_dist.mirror.verify import VerifyReport


def gc(context: Context, *, grace: str, dry_run: bool) -> int:
    """Remove what nothing needs; a grace period that endangers runs is told of before."""
    untouched = timedelta(seconds=inputs.seconds(grace))
    if (store := inputs.store_of_run(context)) and (warning := find_hazard(store, grace=untouched)):
        tell(warning)

    def load() -> Any:
        from prefect_dist.flows.gc import gc

        return gc

    parameters = {**runs.store_parameters(context), "grace": grace, "dry_run": dry_run}
    return runs.run(context, load, parameters, _show_gc)


def verify(
    context: Context, network: RunNetworkOptions, login: LoginOptions, *, repair: Sequence[str], concurrency: int
) -> int:
    """Hash all blobs again; 1 if something is wrong and was not repaired. The login is for the registry of repaired images."""
    store = inputs.store_of_run(context)  # refused before anything is started
    named = [find_record(inputs.store(context), name) for name in repair if name != "all"]
    repaired = store.names.read()[0] if store is not None and "all" in repair else named

    def load() -> Any:
        from prefect_dist.flows.verify import verify

        return verify

    parameters = {
        **runs.common(context, network),
        "repair": "all" if "all" in repair else [name.name for name in named],
        "concurrency": concurrency,
    }
    sources = {inputs.reference(name.name).host for name in repaired}
    with use_credentials(given_for_targets(login, sources, configured=()), way=WAY):
        return runs.run(context, load, parameters, _show_verify)


def _show_gc(report: "GcReport") -> None:
    if report.swept.blobs:
        tables.columns(("DIGEST", "SIZE"), [(str(info.digest), size(info.size)) for info in report.swept.blobs])
    tables.lines(report.swept.leftovers)


def _show_verify(report: "VerifyReport") -> None:
    if rows := report.table():
        # Why a name is not whole is printed with the failures.
        rows = [{**row, "more": ""} if row["state"] == "not whole" else row for row in rows]
        tables.columns(("WHAT", "STATE", "MORE"), [tuple(map(str, row.values())) for row in rows])
