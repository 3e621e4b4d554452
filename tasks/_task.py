"""The settings of tasks, in one place.

Each setting protects against one kind of failure:

- Retries with growing, spread delays: a registry or a line fails for a while. `transfer.attempts` has the rules.
- `AwaitingRetry` for a Retry-After: a registry states the time for the next request. The message of the state has the time. The
  task then waits in Prefect's state `Retrying`, because Prefect's own sleep ignores the cancellation of a run.
- No cache and no persisted results: only the content store knows which content exists. A cached result would name blobs that
  may be gone.
- The tag `registry:<host>`: a Prefect concurrency limit on the tag bounds the requests to one registry, over all runs.

Tasks are plain functions for `ThreadPoolTaskRunner`. A submitted coroutine would get a separate event loop.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar
from uuid import UUID

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.runtime import task_run
from prefect.states import AwaitingRetry, Completed, Failed
from prefect.tasks import exponential_backoff
from prefect.utilities.annotations import quote

from prefect_dist.ocispec.errors import DistError
from prefect_dist.transfer.attempts import RETRIES, Attempt, is_retried, use_attempt
from prefect_dist.transfer.pool import WaitingUnits
from prefect_dist.transfer.session import Session, current_session
from prefect_dist.transfer.units import Answers, ImageSummary

P = ParamSpec("P")
R = TypeVar("R")

# The ids of task runs that wait for a Retry-After.
WAITING = WaitingUnits()
# By the ids of waiting task runs: the time to continue, and the number of waits. Prefect counts the attempt after a wait, too.
_WAITS: dict[UUID, datetime] = {}
_WAITED: Counter[UUID] = Counter()


def task_for(
    work: Callable[Concatenate[Session, P], R],
    name: str,
    *,
    run_name: Callable[[], str],
) -> Task[P, R]:
    """Make the task of a unit of work. The unit gets the session of the task's run.

    `run_name` is called inside a task run and returns the name of the run.
    """

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        session = current_session()
        with session.cancel.raise_stopped():
            return work(session, *args, **kwargs)

    _, *parameters = inspect.signature(work).parameters.values()
    run.__signature__ = inspect.signature(work).replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__name__, run.__doc__ = work.__name__, work.__doc__
    bind = task(
        name=name,
        task_run_name=run_name,
        retries=RETRIES,
        retry_delay_seconds=exponential_backoff(1),
        retry_jitter_factor=0.5,
        retry_condition_fn=_is_retried_by_prefect,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    return bind(_with_attempts(run))


def argument(name: str) -> Any:
    """Return an argument of the task run that gets a name. Prefect unquotes arguments only later."""
    value = task_run.parameters[name]
    return value.unquote() if isinstance(value, quote) else value


def _is_retried_by_prefect(_task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Return whether Prefect retries after a failed attempt. A plain function: Prefect 3.8 ignores other callables."""
    return is_retried(state.result(raise_on_failure=False), run.run_count - _WAITED[run.id])


def _with_attempts(function: Callable[P, R]) -> Callable[P, Any]:
    """Wrap a function to set the current attempt. A Retry-After becomes one state `AwaitingRetry` and one wait."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> Any:
        context = TaskRunContext.get()
        if context is None:
            return function(*args, **kwargs)
        run_id = context.task_run.id
        if (until := _WAITS.pop(run_id, None)) is not None:
            with WAITING.add(run_id):
                current_session().cancel.pause((until - datetime.now(UTC)).total_seconds())
        began = context.task_run.start_time or datetime.now(UTC)
        attempt = Attempt(context.task_run.run_count - _WAITED[run_id], context.task.retries, began)
        try:
            with use_attempt(attempt):
                result = function(*args, **kwargs)
        except DistError as exc:
            if (seconds := attempt.wait_s(exc)) is None:
                if not attempt.has_successor(exc):
                    _WAITED.pop(run_id, None)
                raise
            now = datetime.now(UTC)
            _WAITS[run_id] = until = now + timedelta(seconds=seconds)
            _WAITED[run_id] += 1
            return AwaitingRetry(scheduled_time=now, message=f"{exc}; until {until:%Y-%m-%d %H:%M:%S} UTC")
        _WAITED.pop(run_id, None)
        if isinstance(result, Answers) and result.errors:
            return Failed(message=_first_of(result.errors), data=result)
        if isinstance(result, ImageSummary):
            return Completed(name="Vetoed" if result.is_vetoed else None, message=str(result), data=result)
        return result

    return run


def _first_of(errors: Sequence[DistError | str]) -> str:
    return f"{errors[0]} (and {len(errors) - 1} more)" if len(errors) > 1 else str(errors[0])
