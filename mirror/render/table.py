"""Reports and plans as tables for people: one row per object, objects with errors first.

A row maps columns to cells. The column `error` has the errors.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Self

from prefect_dist.mirror.report import AuditRow, BlobRow, LeftoverRow, NameRow, OrphanRow, Row, RunReport, TargetRow, UnpackRow
from prefect_dist.ocispec import Descriptor
from prefect_dist.ocispec.errors import DistError
from prefect_dist.ocispec.units import size
from prefect_dist.transfer.cancellation import Stopped
from prefect_dist.transfer.image_report import ImageReport

Cells = dict[str, str | int]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows, those with errors first. A run may have 100,000 rows, so the cells of a row exist only while a caller uses them."""

    rows: Sequence[Row]

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Self:
        """Return the table of rows, without rows that tables do not show."""
        return cls(sorted(filter(_is_shown, rows), key=lambda row: not _has_error(row)))

    def list_cells(self, most: int | None = None) -> list[Cells]:
        """Return the cells of the rows, or of the first `most` rows."""
        return [_cells(row) for row in self.rows[:most]]


def table(report: RunReport) -> Table:
    """Return the table of a report, without the targets of a mirror that are unchanged or that a stopped run did not reach."""
    return Table.of(report.rows)


def _is_shown(row: Row) -> bool:
    if isinstance(row, TargetRow | OrphanRow | AuditRow):
        return not _is_unreached(row.errors) and row.outcome != "unchanged"
    return not isinstance(row, UnpackRow)


def _has_error(row: Row) -> bool:
    if isinstance(row, LeftoverRow | UnpackRow):
        return False
    return bool(row.failures if isinstance(row, ImageReport) else row.errors)


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
