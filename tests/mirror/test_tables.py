"""Tables of reports: the rows with errors come first, because an artifact shows only the first 500 rows."""

from prefect_dist.mirror.render import table
from prefect_dist.mirror.report import AuditRow, Row, RunReport
from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import Denied, Unavailable


def make_report(*rows: Row) -> RunReport:
    """Return the report of a check with these rows."""
    return RunReport(flow="check", status="failed", store="store", tasks=0, seconds=0, rows=rows)


def name_target(number: int) -> Reference:
    """Return a target."""
    return Reference.parse(f"registry.example/app:v{number}")


def test_rows_with_errors_precede_rows_without_errors() -> None:
    repaired = [AuditRow(target=name_target(number), outcome="repaired", faults=("a blob is missing",)) for number in range(3)]
    unresolved = AuditRow(target=name_target(3), outcome="unresolved", errors=(Unavailable("timed out"),))
    damaged = AuditRow(target=name_target(4), outcome="damaged", errors=(Denied("a blob is missing"),))
    failed = AuditRow(target=name_target(5), outcome="failed", errors=(Denied("refused"),))

    shown = table(make_report(*repaired, unresolved, damaged, failed)).list_cells()

    assert [row["outcome"] for row in shown] == ["unresolved", "damaged", "failed", "repaired", "repaired", "repaired"]
    assert [row["target"] for row in shown[-3:]] == [str(row.target) for row in repaired]
