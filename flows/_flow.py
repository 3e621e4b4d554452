"""The one place where flows get their settings, and where their runs end.

- No persisted results, but for the summary of a deployment's run (`flows.results`).
- SIGTERM, by which a worker cancels a run, ends it in order: what has arrived is kept, and the run reports it. Prefect's
  own handler raises an exception in the midst of whatever the main thread does. A command line has handlers of its own.
- Objects that existed before a run are frozen out of the garbage collector: scanning all that Prefect imports took about 5 % of
  the time of a run with many small tasks.
- A failure that a user can cause is one line, the message of the state. In a process that a worker or runner started for one
  flow run, Prefect also logs the traceback of that run's failure; it is dropped. Other flows keep their tracebacks.
"""

import gc
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import Any, ParamSpec, TypeVar, cast

from prefect import Flow, flow
from prefect.client.schemas.objects import State
from prefect.exceptions import CancelledRun, FailedRun
from prefect.runtime import flow_run
from prefect.states import Cancelled, Failed

from prefect_dist.flows.background import drained
from prefect_dist.flows.final_state import finish
from prefect_dist.flows.pool import RUNNER
from prefect_dist.flows.results import keep_no_task_results
from prefect_dist.mirror.run_report import Report
from prefect_dist.ocispec.errors import DistError
from prefect_dist.transfer.cancellation import Stopped, current_token, use_token

P = ParamSpec("P")
R = TypeVar("R", bound=Report)

_ENDED = "ended by its worker, as on a cancellation"
# The loggers to which Prefect writes the exception that ends the process of a flow run.
_LOGGERS = ("prefect.flow_runs", "prefect.engine")


def flow_of(name: str, *, run_name: Callable[[], str]) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Make a flow of a plain function that returns a report. `run_name` is called inside a run and returns its name.

    A call of the flow returns the report. It raises `RunFailed` or `RunStopped` if the status of the report says so.
    """

    def decorate(function: Callable[P, R]) -> Flow[P, R]:
        run = cast("Callable[P, R]", _wrap_run(name, function))  # Prefect makes the report of the state that is returned
        return flow(name=name, flow_run_name=run_name, task_runner=RUNNER, persist_result=False)(run)

    return decorate


def _wrap_run(name: str, function: Callable[P, R]) -> Callable[P, State[Any]]:
    """Wrap a function so that a signal ends it in order, and so that its report or its error becomes the final state."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> State[Any]:
        _drop_traceback_of_process()
        storage = keep_no_task_results()
        with _handle_sigterm(), _freeze_garbage(), drained():
            try:
                return finish(name, function(*args, **kwargs), storage)
            except Stopped as exc:
                return Cancelled(message=str(exc), data=exc)
            except DistError as exc:
                return Failed(message=str(exc), data=exc)

    return run


def _drop_traceback_of_process() -> None:
    """Drop the traceback of the current flow run's failure, if this process was started for that run.

    Prefect writes it after the flow function has returned, immediately before the process ends. So the filter stays.
    """
    run_id = flow_run.id
    if run_id and os.environ.get("PREFECT__FLOW_RUN_ID") == run_id:
        expected = _ExpectedFailure(run_id)
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(expected)


class _ExpectedFailure(logging.Filter):
    """Rejects the records that show the expected failure of one flow run with its traceback."""

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self._run_id = run_id

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to keep a record."""
        if not (record.exc_info and isinstance(record.exc_info[1], (CancelledRun, DistError, FailedRun))):
            return True
        return getattr(record, "flow_run_id", None) != self._run_id and self._run_id not in record.getMessage()


@contextmanager
def _freeze_garbage() -> Iterator[None]:
    """Have the garbage collector leave out, in this block, what is there before it."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _handle_sigterm() -> Iterator[None]:
    """Have the first SIGTERM in this block end the run in order, if it is under way; any other is whose it was before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    cancel = current_token()

    def end(number: int, _frame: FrameType | None) -> None:
        if cancel.reason or not cancel.request(_ENDED):
            signal.signal(number, before)
            signal.raise_signal(number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        with use_token(cancel):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)
