"""How every run ends: its table is an artifact, its summary the message of its final state."""

from collections.abc import Sequence
from typing import Any

from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed

from flows.report import Report, in_one_line

# What a page of Prefect's can show.
_MOST_ROWS = 500
_STATES = {"complete": Completed, "failed": Failed, "stopped": Cancelled}


def concluded(key: str, report: Report) -> State[Any]:
    """The final state of the current flow run, with the report as its data; `key` names the artifact."""
    message = in_one_line(report)
    tabulate(report.table(), key=key, description=message)
    return _STATES[report.status](message=message, data=report)


def tabulate(rows: Sequence[dict[str, str | int]], *, key: str, description: str) -> None:
    """Have an artifact of the current flow run show rows, of very many the first."""
    left = len(rows) - _MOST_ROWS
    more = f" (and {left} more rows, which are not shown)" if left > 0 else ""
    create_table_artifact(list(rows[:_MOST_ROWS]), key=key, description=f"{description}{more}")
