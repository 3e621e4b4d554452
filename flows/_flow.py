"""Makes flows of plain functions: `flow_of` sets the options of every flow, and the end of every run.

- Results are not persisted, except for the summary of a run of a deployment (`flows.results`).
- A worker cancels a run with SIGTERM. The first SIGTERM stops the run gracefully: downloaded content is kept, and the run
  reports its results. Prefect's own handler would raise an exception at any point of the main thread. The command has other
  handlers. A run without a worker asks Prefect for its state, and stops in the same way.
- Objects that exist before a run are frozen out of the garbage collector. Scanning the modules of Prefect took about 5 % of the
  time of a run with many small tasks.
- A failure that a user can cause is one line: the message of the state. In a process that a worker or runner started for one
  flow run, Prefect also logs the traceback of the failure of that run. The traceback is dropped. Other flows keep theirs.
"""

import gc
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from types import FrameType
from typing import Any, ParamSpec, TypeVar, cast

from prefect import Flow
from prefect.client.schemas.objects import State
from prefect.exceptions import CancelledRun, FailedRun
from prefect.runtime import flow_run
from prefect.states import Cancelled, Failed
from pydantic import TypeAdapter

from prefect_dist.flows.background import await_calls
from prefect_dist.flows.final_state import finish
from prefect_dist.flows.parent_run import stop_if_cancelled
from prefect_dist.flows.pool import RUNNER
from prefect_dist.flows.results import keep_no_task_results
from prefect_dist.mirror.report import RunReport
from prefect_dist.ocispec.errors import DistError
from prefect_dist.transfer.cancellation import Stopped, current_token, use_token

P = ParamSpec("P")
R = TypeVar("R")

_ENDED = "terminated by the worker, as on a cancellation"
# Prefect writes the exception that ends the process of a flow run to these loggers.
_LOGGERS = ("prefect.flow_runs", "prefect.engine")


def flow_of(name: str, *, run_name: Callable[[], str]) -> Callable[[Callable[P, RunReport]], Flow[P, RunReport]]:
    """Return a decorator that makes a flow of a plain function, which returns a report.

    `run_name` returns the name of the current run. A call of the flow returns the report. The call raises `RunFailed` or
    `RunStopped` if the run failed or was stopped.
    """

    def decorate(function: Callable[P, RunReport]) -> Flow[P, RunReport]:
        # A call of the flow returns the data of the state.
        run = cast("Callable[P, RunReport]", _wrap_run(function))
        return _Flow(run, name=name, flow_run_name=run_name, task_runner=RUNNER, persist_result=False)

    return decorate


class _Flow(Flow[P, R]):
    """A flow that serializes its parameters with pydantic. Prefect uses an encoder of FastAPI, which takes 0.2 s to import."""

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters as JSON values, for the API."""
        serialized: dict[str, Any] = TypeAdapter(dict[str, Any]).dump_python(parameters, mode="json")
        return serialized


def _wrap_run(function: Callable[P, RunReport]) -> Callable[P, State[Any]]:
    """Wrap a function: a cancellation stops the run gracefully, and the report or the error becomes the final state."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> State[Any]:
        _drop_traceback_of_process()
        storage = keep_no_task_results()
        with use_token(current_token()), _handle_sigterm(), _watch_state(), _freeze_garbage(), await_calls():
            try:
                return finish(function(*args, **kwargs), storage)
            except Stopped as exc:
                return Cancelled(message=str(exc), data=exc)
            except DistError as exc:
                return Failed(message=str(exc), data=exc)

    return run


def _drop_traceback_of_process() -> None:
    """Drop the traceback of the failure of the current flow run, if this process was started for that run.

    Prefect logs the traceback after the flow function has returned, immediately before the process ends. So the filter stays.
    """
    run_id = flow_run.id
    if run_id and _is_started_by_worker(run_id):
        expected = _ExpectedFailure(run_id)
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(expected)


def _is_started_by_worker(run_id: str) -> bool:
    """Return True if a worker or runner started this process for one flow run, which is this one."""
    return os.environ.get("PREFECT__FLOW_RUN_ID") == run_id


def _watch_state() -> AbstractContextManager[None]:
    """Return a block that stops the current flow run if it is cancelled in Prefect, unless a worker does that."""
    run_id = flow_run.id
    return nullcontext() if run_id is None or _is_started_by_worker(run_id) else stop_if_cancelled(run_id)


class _ExpectedFailure(logging.Filter):
    """Rejects log records with the traceback of an expected failure of one flow run."""

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self._run_id = run_id

    def filter(self, record: logging.LogRecord) -> bool:
        """Return true if the log keeps a record."""
        if not (record.exc_info and isinstance(record.exc_info[1], (CancelledRun, DistError, FailedRun))):
            return True
        return getattr(record, "flow_run_id", None) != self._run_id and self._run_id not in record.getMessage()


@contextmanager
def _freeze_garbage() -> Iterator[None]:
    """Exclude objects that exist before this block from garbage collection in the block."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _handle_sigterm() -> Iterator[None]:
    """Stop the run gracefully on the first SIGTERM in this block. The previous handler gets every further SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    cancel = current_token()

    def end(number: int, _frame: FrameType | None) -> None:
        if cancel.reason or not cancel.request_in_thread(_ENDED):
            signal.signal(number, before)
            signal.raise_signal(number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
