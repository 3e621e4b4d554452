"""Stops a run that was cancelled in Prefect, or whose parent was, and starts no shard whose parent run has ended.

A worker ends the process of a cancelled run. A run in the process of a command or program has no worker: it asks for its state.

The parent of shards cancels them through Prefect, and Prefect can lose this cancellation: the worker ignores the event of a run
whose process it is just starting, and the state Running of the new process then replaces the state Cancelling. The parent
notices the new state and cancels again, but the worker kills the parent 30 s after the parent was cancelled. So each shard also
asks for the state of its parent. A shard that waits for a worker cannot ask, and starts only if its parent has not ended.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State, StateType

from prefect_dist.flows.api import CALL_ERRORS, brief, client
from prefect_dist.storage.background import repeat_in_thread
from prefect_dist.transfer.cancellation import Stopped, current_token

_PAUSE_S = 10.0
_ENDED = (StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED)


def require_parent(parent: str) -> None:
    """Check that the parent run may use the result of a shard that starts now.

    A crashed parent may use the result: a crashed run may start again, and then finishes its shards.

    Raises:
        Stopped: the parent has ended.
    """
    state = _read_state(client(), parent)
    if state is not None and state.type in _ENDED:
        raise Stopped(f"the parent run has ended as {state.name}, and needs no result of this shard")


@contextmanager
def stop_with_parent(parent: str) -> Iterator[None]:
    """Cancel the run of this block if its parent run is cancelled. Ask for the parent's state at once and every 10 s."""
    with _stop_with(parent, "the parent run was cancelled"):
        yield


@contextmanager
def stop_if_cancelled(run: str) -> Iterator[None]:
    """Cancel the run of this block, which is `run`, if it is cancelled in Prefect. Ask for its state at once and every 10 s."""
    with _stop_with(run, "the run was cancelled in Prefect"):
        yield


@contextmanager
def _stop_with(run: str, reason: str) -> Iterator[None]:
    api, token = client(), current_token()

    def watch() -> bool:
        if not _is_cancelled(api, run):
            return False
        if not token.request(reason):  # the session of the run is not open yet
            token.set(reason)
        return True

    with repeat_in_thread(watch, pause_s=_PAUSE_S, name="state of the run"):
        yield


def _is_cancelled(api: SyncPrefectClient, run: str) -> bool:
    """Return whether a run is cancelled or about to be."""
    state = _read_state(api, run)
    return state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED)


def _read_state(api: SyncPrefectClient, run: str) -> State[Any] | None:
    """Return the state of a run, or None if the API does not answer, which says nothing about the run.

    The end of a run waits for this call, and a worker kills a shard that does not end within 30 s of its cancellation.
    """
    try:
        with brief():
            return api.read_flow_run(UUID(run)).state
    except (*CALL_ERRORS, ValueError):  # ValueError: the answer is not from Prefect, but from a proxy
        return None
