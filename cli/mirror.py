"""The commands that bring many images to many registries, and look after them there: mirror, seed, check."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prefect_dist.cli import inputs, runs, tables
from prefect_dist.cli.context import Context
from prefect_dist.cli.errors import BadInput, tell
from prefect_dist.cli.login import WAY, given_for_targets
from prefect_dist.cli.options import Dialect, LoginOptions, RunNetworkOptions
from prefect_dist.transfer.session import use_credentials

if TYPE_CHECKING:
    from prefect_dist.mirror.check_report import CheckReport
    from prefect_dist.mirror.config import Mirror
    from prefect_dist.mirror.entry import Entry
    from prefect_dist.mirror.mirror_report import MirrorReport


def mirror(
    context: Context,
    path: str,
    dialect: Dialect,
    to: Sequence[str],
    *,
    dry_run: bool,
    network: RunNetworkOptions,
    login: LoginOptions,
    **options: int | None,
) -> int:
    """Mirror the images of a configuration, or only plan that, and return the exit code of `runs.run`."""
    wanted = inputs.mirror(inputs.absolute_location(path), dialect, to)
    said = {"config": inputs.absolute_location(path), "dialect": dialect, "to": list(to), "dry_run": dry_run}
    parameters = {**said, **run_parameters(context, wanted, network, writes=not dry_run), **options}

    def load() -> Any:
        from prefect_dist.flows.mirror import mirror

        return mirror

    with _logged_in(login, wanted, wanted.entries):
        return runs.run(
            context, load, parameters, _show, notes=_notes, store=inputs.store_of(context, wanted), doing="mirroring"
        )


def check(
    context: Context,
    path: str,
    dialect: Dialect,
    to: Sequence[str],
    *,
    repair: bool,
    network: RunNetworkOptions,
    login: LoginOptions,
    **options: int | None,
) -> int:
    """Check the targets of a mirror against its lock file, and return the exit code of `runs.run`."""
    wanted = inputs.read_audited_mirror(inputs.absolute_location(path), dialect, to)
    parameters = {"config": inputs.absolute_location(path), "dialect": dialect, "to": list(to), "repair": repair}
    parameters |= {**run_parameters(context, wanted, network, writes=repair), **options}

    def load() -> Any:
        from prefect_dist.flows.check import check

        return check

    with _logged_in(login, wanted, (*wanted.entries, *wanted.seed)):
        return runs.run(context, load, parameters, _show_check, store=inputs.store_of(context, wanted), doing="mirroring")


def seed(
    context: Context,
    path: str,
    to: Sequence[str],
    platforms: Sequence[str],
    *,
    failed: str | None,
    lock: str | None,
    network: RunNetworkOptions,
    login: LoginOptions,
    **options: Any,
) -> int:
    """Seed many images to many registries and return the exit code of `runs.run`. `options` are parameters of the flow."""
    store, is_configured = None, path.endswith((".yaml", ".yml"))
    if is_configured:
        wanted = _seed_configuration(path, (*to, *platforms, *([] if lock is None else ["--lock"])))
        store = inputs.store_of(context, wanted)
        parameters = {
            "config": inputs.absolute_location(path),
            **run_parameters(context, wanted, network, writes=not options["dry_run"]),
        }
    else:
        parameters, wanted = _listed_seed(context, path, to, platforms, network, rewrite_index=options["rewrite_index"])
        if not options["dry_run"]:
            inputs.writable(context)
    if lock is not None:
        parameters["lock"] = inputs.absolute_location(lock)
    if failed is not None:
        parameters["failed"] = inputs.absolute_location(failed)

    def load() -> Any:
        from prefect_dist.flows.seed import seed

        return seed

    with _logged_in(login, wanted, wanted.seed, way=None if is_configured else WAY):
        return runs.run(context, load, {**parameters, **options}, _show, notes=_notes, store=store, doing="mirroring")


def _seed_configuration(path: str, said: Sequence[str]) -> "Mirror":
    """The configuration of a seed. `said` are options that contradict it."""
    if said:
        raise BadInput(f"{path}: a configuration says itself where images go and for which platforms; leave out {said[0]}")
    wanted = inputs.mirror(inputs.absolute_location(path))
    if not wanted.seed:
        raise BadInput(f"{path}: expected a section seed, there is none")
    return wanted


def _listed_seed(
    context: Context, path: str, to: Sequence[str], platforms: Sequence[str], network: RunNetworkOptions, *, rewrite_index: bool
) -> tuple[dict[str, Any], "Mirror"]:
    """The parameters of a seed of the images in a list, and what it comes to."""
    if not to:
        raise BadInput("seed: expected --to REGISTRY, at least once")
    chosen = [str(platform) for platform in inputs.platforms(platforms) or ()]
    if rewrite_index and not chosen:
        raise BadInput("--rewrite-index requires --platform")
    file = None if path == "-" else inputs.absolute_location(path)
    images = inputs.images(sys.stdin) if path == "-" else []
    wanted = inputs.make_seed_mirror(to, images=images, file=file)  # refused before anything is started
    parameters = {"to": list(to), "images": images, "file": file, "platforms": chosen or "all"}
    return {**parameters, **runs.common(context, network)}, wanted


@contextmanager
def _logged_in(login: LoginOptions, wanted: "Mirror", entries: Sequence["Entry"], *, way: str | None = None) -> Iterator[None]:
    """Have the run use the configuration, and the credentials of the user for the one registry that these entries write to.

    Messages mention them as a `way` to log in only where there is no configuration, whose keys they name.
    """
    from prefect_dist.mirror.config import use_config

    targets = {host for entry in entries for host in entry.target_hosts}
    with use_credentials(given_for_targets(login, targets, configured=wanted.credentials), way=way), use_config(wanted):
        yield


def run_parameters(context: Context, wanted: "Mirror", network: RunNetworkOptions, *, writes: bool) -> dict[str, Any]:
    """The parameters that runs of a configuration have in common: store, options and network; warnings are printed.

    A store that is not the file's is checked, and made if the run `writes`. The file's own is left to the flow.
    """
    for warning in inputs.warnings(context, wanted):
        tell(f"warning: {warning}")
    parameters = runs.common(context, network)
    if inputs.store_of(context, wanted) == wanted.store:
        del parameters["store"]
    elif writes:
        inputs.writable(context)
    else:
        inputs.store_of_run(context)
    return parameters


def _show(report: "MirrorReport") -> None:
    rows = report.table()
    _show_table([{**row, "note": ""} if "failed" in (row.get("result"), row.get("change")) else row for row in rows])


def _notes(report: "MirrorReport") -> Sequence[str]:
    return report.notes()


def _show_check(report: "CheckReport") -> None:
    """Print a row per target. The faults of those that are still damaged are printed with the failures, once for each cause."""
    rows = report.table()
    if not any(row["result"] == "repaired" for row in rows):
        _show_table([{key: cell for key, cell in row.items() if key != "faults"} for row in rows])
        return
    _show_table([row if row["result"] == "repaired" else {**row, "faults": ""} for row in rows])


def _show_table(rows: Sequence[Mapping[str, str | int]]) -> None:
    """Print rows, without the reasons of failures, which are printed once for each cause."""
    if rows:
        tables.columns([head.upper() for head in rows[0]], [[str(cell) for cell in row.values()] for row in rows])
