"""The result of a flow run for the caller: the error of an unsuccessful run, and the summary in Prefect's result storage.

A call in the same process returns a `RunReport`, or raises `RunFailed` or `RunStopped` with the report. For
the run of a deployment Prefect stores a `RunSummary`, because a report can have thousands of rows.
"""

from dataclasses import dataclass
from typing import Self

from prefect_dist.mirror.render import message_line, summary_line
from prefect_dist.mirror.report import RunReport, Status
from prefect_dist.ocispec.errors import DistError
from prefect_dist.transfer.cancellation import Stopped

MOST_ERRORS = 100
"""The maximum number of errors of a `RunSummary`. Further errors are only counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """A report without rows, and with at most `MOST_ERRORS` errors as text. The fields are the keys of the stored JSON.

    `message` is the message of the final state: the `summary` and the first error. `more_errors` is the number of further
    errors.
    """

    status: Status
    tasks: int
    seconds: float
    message: str
    summary: str
    counts: dict[str, int]
    errors: tuple[str, ...] = ()
    more_errors: int = 0

    @classmethod
    def of(cls, report: RunReport) -> Self:
        """Return the summary of a report."""
        return cls(
            status=report.status,
            tasks=report.tasks,
            seconds=round(report.seconds, 3),
            message=message_line(report),
            summary=summary_line(report),
            counts=dict(report.counts),
            errors=tuple(map(str, report.errors[:MOST_ERRORS])),
            more_errors=max(0, len(report.errors) - MOST_ERRORS),
        )


class RunFailed(DistError):
    """A run failed. `report` has the details: a `RunSummary` if another process ran the flow.

    The text is a line with the summary of the run and the first error.
    """

    def __init__(self, report: RunReport | RunSummary) -> None:
        super().__init__(report)
        self.report = report

    def __str__(self) -> str:
        return self.report.message if isinstance(self.report, RunSummary) else message_line(self.report)

    def __repr__(self) -> str:  # Prefect logs it, so the report is not part of it
        return f"{type(self).__name__}({str(self)!r})"


class RunStopped(RunFailed, Stopped):
    """A run was cancelled or interrupted, or reached the time limit. `report` has the results so far."""
