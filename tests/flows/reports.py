"""Reports of flow runs, and parts of them."""

from collections.abc import Sequence
from typing import Any

from prefect_dist.mirror.fetch import count_images
from prefect_dist.mirror.plan import Plan
from prefect_dist.mirror.render import to_json
from prefect_dist.mirror.report import OrphanRow, RunReport, TargetRow, collect_errors, row_errors
from prefect_dist.mirror.run_result import RunFailed
from prefect_dist.transfer.image_report import ImageReport


def result_of(state: Any) -> Any:
    """Return the report of a run that ended in this state, or the error that ended it before it had a report."""
    result = state.result(raise_on_failure=False)
    return result.report if isinstance(result, RunFailed) else result


def error_lines(report: RunReport) -> list[str]:
    """Return the errors of a run as people read them."""
    return list(map(str, report.errors))


def document(report: RunReport) -> dict[str, Any]:
    """Return the JSON document of a run, without an id."""
    return to_json(report, "")


def removals(report: RunReport) -> list[OrphanRow]:
    """Return the orphaned tags that a run tried to remove."""
    return [row for row in report.select(OrphanRow) if row.outcome not in ("kept", "held", "unowned", "planned")]


def images_of(report: RunReport) -> list[ImageReport]:
    """Return the images of a fetch."""
    return report.select(ImageReport)


def outcomes(report: RunReport) -> dict[str, str]:
    """Return the outcome at each target of a mirror run."""
    return {str(row.target): row.outcome for row in report.select(TargetRow)}


def plan_of(report: RunReport) -> Plan:
    """Return the plan of a mirror run."""
    assert report.plan is not None
    return report.plan


def fetch_report(images: Sequence[ImageReport]) -> RunReport:
    """Return the report of a fetch that had these results."""
    errors = collect_errors((error for image in images for error in row_errors(image)), "image")
    return RunReport(
        flow="fetch",
        status="failed" if errors else "complete",
        store="store",
        tasks=0,
        seconds=0,
        rows=tuple(images),
        counts=count_images(images),
        errors=errors,
    )
