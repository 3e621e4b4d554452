"""How every run ends: its table is an artifact, its summary the message of its final state."""

from typing import Any

from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed

from flows.report import Report, in_one_line

_STATES = {"complete": Completed, "failed": Failed, "stopped": Cancelled}


def concluded(key: str, report: Report) -> State[Any]:
    """The final state of the current flow run, with the report as its data; `key` names the artifact."""
    message = in_one_line(report)
    create_table_artifact(report.table(), key=key, description=message)
    return _STATES[report.status](message=message, data=report)
