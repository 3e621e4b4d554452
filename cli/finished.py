"""The result of a run for the command that started the run."""

from dataclasses import dataclass

from prefect_dist.mirror.report import RunReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A run that has ended.

    Attributes:
        flow_run_id: the id of the flow run, None for a run without Prefect.
        address: a line with the URL of the flow run, None for a run without Prefect.
        unrecorded: the reason if the Prefect API has not recorded the end of the run.
    """

    report: RunReport
    flow_run_id: str | None = None
    address: str | None = None
    unrecorded: str | None = None
