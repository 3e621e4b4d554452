"""Stops a shard whose parent run was cancelled.

The parent cancels its shards through Prefect, and Prefect can lose this cancellation: the worker ignores the event of a run
whose process it is just starting, and the state Running of the new process then replaces the state Cancelling. The parent
notices the new state and cancels again, but the worker kills the parent 30 s after the parent was cancelled. So each shard also
asks for the state of its parent.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType

from prefect_dist.flows.api import CALL_ERRORS, brief, client
from prefect_dist.storage.background import repeat_in_thread
from prefect_dist.transfer.cancellation import current_token

_PAUSE_S = 10.0


@contextmanager
def stop_with_parent(parent: str, *, pause_s: float = _PAUSE_S) -> Iterator[None]:
    """Cancel the run of this block if its parent run is cancelled. Ask for the parent's state at once and every 10 s."""
    api, token = client(), current_token()

    def watch() -> bool:
        if not _is_cancelled(api, parent):
            return False
        reason = "the parent run was cancelled"
        if not token.request(reason):  # the session of the run is not open yet
            token.set(reason)
        return True

    with repeat_in_thread(watch, pause_s=pause_s, name="parent run"):
        yield


def _is_cancelled(api: SyncPrefectClient, run: str) -> bool:
    """Return whether a run is cancelled or about to be. An API that does not answer says nothing about the run.

    The end of a shard waits for this call, and a worker kills a shard that does not end within 30 s of its cancellation.
    """
    try:
        with brief():
            state = api.read_flow_run(UUID(run)).state
    except CALL_ERRORS:
        return False
    return state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED)
