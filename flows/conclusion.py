"""How every run ends: its table is an artifact, its summary the message of its final state."""

from collections.abc import Sequence
from typing import Any

from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.states import Cancelled, Completed, Failed

from flows.report import Report, in_one_line

# What a page of Prefect's can show.
_MOST_ROWS = 500
_STATES = {"complete": Completed, "failed": Failed, "stopped": Cancelled}


def concluded(key: str, report: Report) -> State[Any]:
    """The final state of the current flow run, with the report as its data; `key` names the artifact.

    A deployment's run has nobody to read that, and Prefect would write all of it into a traceback if it is not complete.
    """
    message, context = in_one_line(report), FlowRunContext.get()
    tabulate(report.table(), key=key, description=message)
    is_read = context is None or context.flow_run is None or context.flow_run.deployment_id is None
    return _STATES[report.status](message=message, data=report if is_read else None)


def tabulate(rows: Sequence[dict[str, str | int]], *, key: str, description: str) -> None:
    """Have an artifact of the current flow run show rows, of very many the first."""
    left = len(rows) - _MOST_ROWS
    more = f" (and {left} more rows, which are not shown)" if left > 0 else ""
    create_table_artifact(list(rows[:_MOST_ROWS]), key=key, description=f"{description}{more}")
