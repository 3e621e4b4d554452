"""The commands that bring many images to many registries: mirror."""

from typing import TYPE_CHECKING, Any

from cli import inputs, runs, tables
from cli.context import Context
from cli.errors import tell
from cli.options import RunNetwork

if TYPE_CHECKING:
    from flows.mirroring.config import Mirror
    from flows.mirroring.report import MirrorReport


def mirror(context: Context, path: str, *, dry_run: bool, network: RunNetwork, **options: Any) -> int:
    """Bring what a configuration wants to its targets, or only plan it; 1 if not all of it could be done."""
    wanted = inputs.mirror(path)
    for warning in wanted.warnings:
        tell(f"warning: {warning}")
    parameters = {"config": inputs.lasting(path), "dry_run": dry_run, **placed(context, wanted, network), **options}

    def load() -> Any:
        from flows.mirror import mirror

        return mirror

    return runs.run(context, load, parameters, _show, doing="mirroring")


def placed(context: Context, wanted: "Mirror", network: RunNetwork) -> dict[str, Any]:
    """The parameters that runs of a configuration have in common: its own store, unless another one was chosen."""
    parameters = runs.common(context, network)
    if context.store_is_default and wanted.store is not None:
        return {key: value for key, value in parameters.items() if key not in runs.store(context)}
    inputs.writable(context)
    return parameters


def _show(report: "MirrorReport") -> None:
    rows = report.table()
    if rows:
        tables.columns([head.upper() for head in rows[0]], [[str(cell) for cell in row.values()] for row in rows])
    for note in report.notes():
        tell(note)
