"""Reports and plans as tables for people: one row per object, objects with errors first.

A row maps columns to cells. The column `error` has the errors.
"""

from collections.abc import Iterable
from functools import singledispatch

from prefect_dist.mirror.report import AuditRow, BlobRow, LeftoverRow, NameRow, OrphanRow, Row, RunReport, TargetRow
from prefect_dist.ocispec import Descriptor
from prefect_dist.ocispec.errors import DistError
from prefect_dist.ocispec.units import size
from prefect_dist.transfer.cancellation import Stopped
from prefect_dist.transfer.image_report import ImageReport

Cells = dict[str, str | int]


def table(report: RunReport) -> list[Cells]:
    """Return the cells of a report, without the targets of a mirror that are unchanged or that a stopped run did not reach."""
    return tabulate_rows(report.rows)


def tabulate_rows(rows: Iterable[Row]) -> list[Cells]:
    """Return the cells of rows, with errors first."""
    shown = [cells for row in rows if (cells := _cells(row))]
    return sorted(shown, key=lambda cells: not cells["error"])


@singledispatch
def _cells(_row: object) -> Cells:
    """Return the cells of a row, empty if tables do not show the row."""
    return {}


@_cells.register
def _(row: ImageReport) -> Cells:
    return {
        "image": row.name,
        "outcome": row.outcome,
        "fetched": row.fetched,
        "existed": row.existed,
        "failed": row.failed,
        "bytes": size(row.fetched_bytes),
        "digest": str(row.root.digest) if row.root else "",
        "error": "".join(failure.message for failure in row.failures[:1]),
    }


@_cells.register
def _(row: TargetRow) -> Cells:
    if row.outcome == "unchanged" or _is_unreached(row.errors):
        return {}
    return {
        "image": str(row.source),
        "target": str(row.target or ""),
        "action": row.action or "",
        "outcome": row.outcome,
        "from": _short(row.old),
        "to": _short(row.new),
        "note": row.note or "",
        "error": _join(row.errors),
    }


@_cells.register
def _(row: OrphanRow) -> Cells:
    if _is_unreached(row.errors):
        return {}
    return {
        "image": row.source,
        "target": str(row.target),
        "action": "remove" if row.outcome == "planned" else "",
        "outcome": row.outcome,
        "from": row.digest.short,
        "to": "",
        "note": row.note or "",
        "error": _join(row.errors),
    }


@_cells.register
def _(row: AuditRow) -> Cells:
    if _is_unreached(row.errors):
        return {}
    note = "; ".join(row.faults) if row.outcome == "repaired" else ""
    return {"target": str(row.target), "outcome": row.outcome, "note": note, "error": _join(row.errors)}


@_cells.register
def _(row: BlobRow) -> Cells:
    amount = "" if row.size is None else size(row.size)
    written = f"{row.committed:%Y-%m-%d %H:%M}" if row.committed else ""
    return _object_cells(str(row.digest), row.outcome, amount=amount, committed=written, error=_join(row.errors))


@_cells.register
def _(row: LeftoverRow) -> Cells:
    return _object_cells(row.path, row.outcome)


@_cells.register
def _(row: NameRow) -> Cells:
    return _object_cells(row.name, row.outcome, note=row.note or "", error=_join(row.errors))


def _object_cells(name: str, outcome: str, *, amount: str = "", committed: str = "", note: str = "", error: str = "") -> Cells:
    return {"object": name, "outcome": outcome, "size": amount, "committed": committed, "note": note, "error": error}


def _is_unreached(errors: tuple[DistError, ...]) -> bool:
    return bool(errors) and all(isinstance(error, Stopped) for error in errors)


def _join(errors: Iterable[DistError]) -> str:
    return "; ".join(map(str, errors))


def _short(descriptor: Descriptor | None) -> str:
    return descriptor.digest.short if descriptor else ""
