"""The one place where flows get their settings, and where their runs end.

- No persisted results: what was done is the content store's to say, and the registries'.
- SIGTERM, by which a worker cancels a run, ends it in order: what has arrived is kept, and the run tells what it has. Prefect's
  own handler raises an exception in the midst of whatever the main thread does. A command line has handlers of its own.
- What was there before a run is no garbage of it: to look through all that Prefect imports, again and again, took a twentieth
  of the time of a run with many small tasks.
- What a user can cause is one line: the message of the state, without the tracebacks that Prefect's engine writes beside it.
"""

import gc
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import Any, ParamSpec

from prefect import Flow, flow
from prefect.client.schemas.objects import State
from prefect.exceptions import CancelledRun, FailedRun
from prefect.states import Cancelled, Failed

from flows.meanwhile import awaited
from flows.runner import RUNNER
from ocispec.errors import DistError
from tasks.stopping import Stopped, current, stopped_by

P = ParamSpec("P")

_ENDED = "ended by its worker, as on a cancellation"
# They write what ends a run: one with the run's id, one beside it.
_LOGGERS = ("prefect.flow_runs", "prefect.engine")


def flow_of(name: str, *, run_name: Callable[[], str]) -> Callable[[Callable[P, State[Any]]], Flow[P, State[Any]]]:
    """Make a flow of a plain function; `run_name` is called inside its run and gives what people see."""

    def decorate(function: Callable[P, State[Any]]) -> Flow[P, State[Any]]:
        return flow(name=name, flow_run_name=run_name, task_runner=RUNNER, persist_result=False)(_ending(function))

    return decorate


def _ending(function: Callable[P, State[Any]]) -> Callable[P, State[Any]]:
    """The same function, but a signal ends it in order, and an error of ours is the message of a state."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> State[Any]:
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(_told)
        with _terminable(), _frozen(), awaited():
            try:
                return function(*args, **kwargs)
            except Stopped as exc:
                return Cancelled(message=str(exc), data=exc)
            except DistError as exc:
                return Failed(message=str(exc), data=exc)

    return run


def _told(record: logging.LogRecord) -> bool:
    """Whether there is more in a record than that a run did not succeed, which its state has said."""
    return not (record.exc_info and isinstance(record.exc_info[1], (CancelledRun, DistError, FailedRun)))


@contextmanager
def _frozen() -> Iterator[None]:
    """Have the garbage collector leave out, in this block, what is there before it."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _terminable() -> Iterator[None]:
    """Have the first SIGTERM in this block end the run in order, if it is under way; any other is whose it was before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopping = current()

    def end(number: int, _frame: FrameType | None) -> None:
        if stopping.reason or not stopping.request(_ENDED):
            signal.signal(number, before)
            signal.raise_signal(number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        with stopped_by(stopping):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)
