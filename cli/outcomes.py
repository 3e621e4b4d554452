"""Doing the same to several things: one that fails is no reason to leave the others."""

from collections.abc import Callable, Iterable

from prefect_dist.cli import tables
from prefect_dist.cli.context import Context
from prefect_dist.cli.errors import tell
from prefect_dist.ocispec.errors import DistError


def delete_each(context: Context, wanted: Iterable[str], delete: Callable[[str], None], *, called: str) -> int:
    """Delete things, print those that are gone, tell of the others; 1 if there are any. `called` is their key in JSON."""
    errors = {thing: _error(delete, thing) for thing in dict.fromkeys(wanted)}
    gone = [thing for thing, error in errors.items() if error is None]
    if context.output == "json":
        tables.json([_outcome(called, thing, error) for thing, error in errors.items()])
    else:
        tables.lines(gone)
    for error in filter(None, errors.values()):
        tell(error)
    return 0 if len(gone) == len(errors) else 1


def _error(act: Callable[[str], None], thing: str) -> DistError | None:
    try:
        act(thing)
    except DistError as exc:
        return exc
    return None


def _outcome(called: str, thing: str, error: DistError | None) -> dict[str, str | None]:
    if error is None:
        return {called: thing, "status": "deleted", "error": None}
    return {called: thing, "status": "failed", "error": str(error)}
