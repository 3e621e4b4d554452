"""The end of every run: artifacts with results and failures, and a final state with the summary as message."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger
from prefect.artifacts import Artifact, MarkdownArtifact, TableArtifact
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.states import Cancelled, Completed, Failed

from prefect_dist.flows.background import submit
from prefect_dist.flows.results import data_of_state
from prefect_dist.mirror import render
from prefect_dist.mirror.progress import collect
from prefect_dist.mirror.report import RunReport, Status
from prefect_dist.mirror.run_result import RunFailed, RunStopped
from prefect_dist.ocispec.units import format_count

if TYPE_CHECKING:
    from prefect.filesystems import WritableFileSystem

# The number of rows that a page of Prefect's UI can show.
_MOST_ROWS = 500
_MOST_LOGGED = 20
_STATES: Mapping[Status, Callable[..., State[Any]]] = {
    "complete": Completed,
    "vetoed": partial(Completed, name="Vetoed"),
    "failed": Failed,
    "stopped": Cancelled,
}
_ERRORS: Mapping[Status, type[RunFailed]] = {"failed": RunFailed, "stopped": RunStopped}


def finish(report: RunReport, storage: "WritableFileSystem | None" = None) -> State[Any]:
    """Return the final state of the current flow run. `storage` keeps results.

    The data of the state is the report, or the error for the caller of the flow.
    """
    message, summary = render.message_line(report), render.summary_line(report)
    tabulate(render.table(report), key=report.flow, description=message)
    _publish(MarkdownArtifact(markdown=render.summary_markdown(report), key="summary", description=summary))
    if report.errors:
        _log_failures(report)
        description = f"{format_count(len(report.errors), 'failure')}. {render.next_step(report)}"
        failures = render.failures_markdown(report, _MOST_ROWS)
        _publish(MarkdownArtifact(markdown=failures, key="failures", description=description))
    context = FlowRunContext.get()
    if context is not None and context.flow_run:
        collect(context.flow_run.id, report)
    error = _ERRORS.get(report.status)
    return _STATES[report.status](message=message, data=data_of_state(error(report) if error else report, storage))


def _log_failures(report: RunReport) -> None:
    """Write the failures into the log of the run, grouped by cause."""
    log, causes = get_run_logger(), render.group_causes(report.errors)
    log.error("%s; %s:", render.summary_line(report), format_count(len(causes), "cause"))
    for cause in causes[:_MOST_LOGGED]:
        log.error("%s", "\n".join((cause.text, *(f"  {line}" for line in cause.object_lines(_MOST_LOGGED)))))
    if len(causes) > _MOST_LOGGED:
        log.error("and %s: see the artifact failures", format_count(len(causes) - _MOST_LOGGED, "more cause"))


def tabulate(table: render.Table, *, key: str, description: str) -> None:
    """Publish a table as an artifact of the current flow run, at most as many rows as a page can show."""
    left = len(table.rows) - _MOST_ROWS
    more = f" (and {left} more rows, which are not shown)" if left > 0 else ""
    shown: list[dict[str, Any]] = [*table.list_cells(_MOST_ROWS)]
    _publish(TableArtifact(table=shown, key=key, description=f"{description}{more}"))


def _publish(artifact: Artifact) -> None:
    submit(f"the artifact {artifact.key}", artifact.create)
