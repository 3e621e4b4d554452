"""The reports of flow runs, from their final states."""

from typing import Any

from prefect_dist.mirror.run_result import RunFailed


def result_of(state: Any) -> Any:
    """Return the report of a run that ended in this state, or the error that ended it before it had a report."""
    ended = state.result(raise_on_failure=False)
    return ended.report if isinstance(ended, RunFailed) else ended
