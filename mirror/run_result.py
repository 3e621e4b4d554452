"""The result of a flow run for its caller: the error of a run that did not succeed, and the summary that outlives a process.

A flow that is called in the same process returns its report, or raises `RunFailed` or `RunStopped` with the report. For the run
of a deployment Prefect stores a `RunSummary`, because a report can have thousands of rows.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import Field

from prefect_dist.mirror.causes import Cause, group_lines
from prefect_dist.mirror.run_report import Report, Status, in_one_line
from prefect_dist.ocispec.errors import DistError
from prefect_dist.transfer.cancellation import Stopped

MOST_ERRORS = 100
"""Errors that a `RunSummary` has; further errors are only counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """A report without rows, and with at most `MOST_ERRORS` errors. It is stored as JSON with the keys of the aliases.

    `message` is the message of the run's final state. `more_errors` is the number of errors that were left out.
    """

    status: Status
    tasks: int
    seconds: float
    message: str
    line: Annotated[str, Field(alias="summary")]
    numbers: Annotated[dict[str, int], Field(alias="totals")]
    lines: Annotated[tuple[str, ...], Field(alias="errors")] = ()
    more_errors: int = 0

    @classmethod
    def of(cls, report: Report) -> Self:
        """Return the summary of a report."""
        errors = report.errors()
        return cls(
            status=report.status,
            tasks=report.tasks,
            seconds=round(report.seconds, 3),
            message=in_one_line(report),
            line=report.summary(),
            numbers=report.totals(),
            lines=tuple(errors[:MOST_ERRORS]),
            more_errors=max(0, len(errors) - MOST_ERRORS),
        )

    def to_result_json(self) -> dict[str, Any]:
        """Return the JSON object that Prefect stores."""
        return {
            "status": self.status,
            "tasks": self.tasks,
            "seconds": self.seconds,
            "message": self.message,
            "summary": self.line,
            "totals": self.numbers,
            "errors": self.lines,
            "more_errors": self.more_errors,
        }

    def summary(self) -> str:
        """Return one line with the counts of the run."""
        return self.line

    def totals(self) -> dict[str, int]:
        """Return the numbers of the run, by the keys that the report of its flow has."""
        return self.numbers

    def errors(self) -> list[str]:
        """Return one line per failure, at most `MOST_ERRORS`."""
        return list(self.lines)

    def causes(self) -> list[Cause]:
        """Return the failures, grouped by their cause."""
        return group_lines(self.lines)

    def facts(self) -> dict[str, str | int]:
        """Return the numbers of the run."""
        return dict(self.numbers)

    def table(self) -> list[dict[str, str | int]]:
        """Return no rows: a summary has none."""
        return []

    def to_json(self, flow_run_id: str) -> dict[str, Any]:
        """Return the stored object, with the id of the run."""
        return {"flow_run_id": flow_run_id, **self.to_result_json(), "errors": self.errors()}


class RunFailed(DistError):
    """A run failed. `report` has the details; the text is the summary of the run with its first failure, in one line."""

    def __init__(self, report: Report) -> None:
        super().__init__(report)
        self.report = report

    def __str__(self) -> str:
        return self.report.message if isinstance(self.report, RunSummary) else in_one_line(self.report)

    def __repr__(self) -> str:  # Prefect logs it, so the report is not part of it
        return f"{type(self).__name__}({str(self)!r})"


class RunStopped(RunFailed, Stopped):
    """A run ended early: cancelled, interrupted or out of time. `report` has the results until then."""
