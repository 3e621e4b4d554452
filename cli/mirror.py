"""The commands that bring many images to many registries, and look after them there: mirror, seed, check."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cli import inputs, runs, tables
from cli.context import Context
from cli.errors import BadInput, tell
from cli.options import Dialect, RunNetwork

if TYPE_CHECKING:
    from flows.mirroring.checked import CheckReport
    from flows.mirroring.config import Mirror
    from flows.mirroring.report import MirrorReport


def mirror(
    context: Context,
    path: str,
    dialect: Dialect,
    to: Sequence[str],
    *,
    dry_run: bool,
    network: RunNetwork,
    **options: int | None,
) -> int:
    """Mirror the images of a configuration, or only plan that, and return the exit code of `runs.run`."""
    wanted = inputs.mirror(path, dialect, to)
    said = {"config": inputs.lasting(path), "dialect": dialect, "to": list(to), "dry_run": dry_run}
    parameters = {**said, **placed(context, wanted, network, writes=not dry_run), **options}

    def load() -> Any:
        from flows.mirror import mirror

        return mirror

    return runs.run(context, load, parameters, _show, store=inputs.store_of(context, wanted), doing="mirroring")


def check(context: Context, path: str, *, repair: bool, network: RunNetwork, **options: Any) -> int:
    """See whether what was mirrored is still there; 1 if not all of it is, or could be repaired."""
    wanted = inputs.mirror(path)
    parameters = {"config": inputs.lasting(path), "repair": repair}
    parameters |= {**placed(context, wanted, network, writes=repair), **options}

    def load() -> Any:
        from flows.check import check

        return check

    return runs.run(context, load, parameters, _show_check, store=inputs.store_of(context, wanted), doing="mirroring")


def seed(
    context: Context,
    path: str,
    to: Sequence[str],
    platforms: Sequence[str],
    *,
    failed: str | None,
    network: RunNetwork,
    **options: Any,
) -> int:
    """Seed many images to many registries and return the exit code of `runs.run`. `options` are parameters of the flow."""
    store = None
    if path.endswith((".yaml", ".yml")):
        wanted = _seed_configuration(path, (*to, *platforms))
        store = inputs.store_of(context, wanted)
        parameters = {"config": inputs.lasting(path), **placed(context, wanted, network, writes=not options["dry_run"])}
    else:
        parameters = _listed(context, path, to, platforms, network, rewrite_index=options["rewrite_index"])
        if not options["dry_run"]:
            inputs.writable(context)
    if failed is not None:
        parameters["failed"] = inputs.lasting(failed)

    def load() -> Any:
        from flows.seed import seed

        return seed

    return runs.run(context, load, {**parameters, **options}, _show, store=store, doing="mirroring")


def _seed_configuration(path: str, said: Sequence[str]) -> "Mirror":
    """The configuration of a seed. `said` are options that contradict it."""
    if said:
        raise BadInput(f"{path}: a configuration says itself where images go and for which platforms; leave out {said[0]}")
    wanted = inputs.mirror(path)
    if not wanted.seed:
        raise BadInput(f"{path}: expected a section seed, there is none")
    return wanted


def _listed(
    context: Context, path: str, to: Sequence[str], platforms: Sequence[str], network: RunNetwork, *, rewrite_index: bool
) -> dict[str, Any]:
    """The parameters of a seed of the images in a list."""
    if not to:
        raise BadInput("seed: expected --to REGISTRY, at least once")
    chosen = [str(platform) for platform in inputs.platforms(platforms) or ()]
    if rewrite_index and not chosen:
        raise BadInput("--rewrite-index: of which platforms? give --platform, too")
    file = None if path == "-" else inputs.lasting(path)
    images = inputs.images(sys.stdin) if path == "-" else []
    inputs.seeding(to, images=images, file=file)  # refused before anything is started
    return {"to": list(to), "images": images, "file": file, "platforms": chosen or "all", **runs.common(context, network)}


def placed(context: Context, wanted: "Mirror", network: RunNetwork, *, writes: bool) -> dict[str, Any]:
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
    for note in report.notes():
        tell(note)


def _show_check(report: "CheckReport") -> None:
    _show_table([row if row["result"] == "repaired" else {**row, "faults": ""} for row in report.table()])


def _show_table(rows: Sequence[Mapping[str, str | int]]) -> None:
    """Print rows, without the reasons of failures, which are printed once for each cause."""
    if rows:
        tables.columns([head.upper() for head in rows[0]], [[str(cell) for cell in row.values()] for row in rows])
