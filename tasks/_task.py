"""The one place where tasks get their settings.

Each setting survives a failure of its own:

- retries with growing, spread delays: a registry or a line that fails for a while. The error's class decides (`is_worth_it`).
- `AwaitingRetry` for a Retry-After: a registry that says when it wants to be asked again. The state's message has that time.
  The task itself then waits, in Prefect's state `Retrying`: Prefect's own sleep would not hear that the run is to stop.
- no cache, no persisted results: what is done is the content store's to say, not a copy of an answer (a blob may be gone).
- the tag `registry:<host>`: lets an operator limit what reaches one registry, over all runs, with a Prefect concurrency limit.

Tasks are plain functions for `ThreadPoolTaskRunner`; a coroutine submitted there would get an event loop of its own.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast
from uuid import UUID

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.runtime import task_run
from prefect.states import AwaitingRetry, Failed
from prefect.tasks import exponential_backoff
from prefect.utilities.annotations import quote

from prefect_dist.ocispec.errors import Corrupt, DistError
from prefect_dist.remotes import RegistryError
from prefect_dist.tasks.waiting import WAITING
from prefect_dist.transfer import cancellation as stopping

P = ParamSpec("P")
R = TypeVar("R")

RETRIES = 3
# Wrong bytes are fetched anew once: a flipped bit on the way is gone then, a wrong blob at the registry is not.
_RETRIES_CORRUPT = 1
# Prefect does not count AwaitingRetry states as retries, so they need an end of their own: a day, if the run has none before.
_LONGEST_WAIT = timedelta(days=1)
# When waiting task runs go on, by their ids.
_WAITS: dict[UUID, datetime] = {}


def is_worth_it(_task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether Prefect shall retry after this failed attempt. A plain function: Prefect 3.8 ignores any other callable."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, Corrupt):
        return run.run_count <= _RETRIES_CORRUPT
    return isinstance(error, DistError) and error.retryable


def task_of(name: str, *, run_name: Callable[[], str]) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a task of a plain function; `run_name` is called inside its run and gives what people see."""

    def decorate(function: Callable[P, R]) -> Task[P, R]:
        return task(
            name=name,
            task_run_name=run_name,
            retries=RETRIES,
            retry_delay_seconds=exponential_backoff(1),
            retry_jitter_factor=0.5,
            retry_condition_fn=is_worth_it,
            cache_policy=NO_CACHE,
            persist_result=False,
        )(_waiting(function))

    return decorate


def comes_again(error: DistError) -> bool:
    """Whether a task that raises this error now gets another attempt; for tasks that have results beside it to lose."""
    context = TaskRunContext.get()
    if context is None or not error.retryable:
        return False
    now = datetime.now(UTC)
    waits = isinstance(error, RegistryError) and error.exchange.retry_after_s is not None
    return (waits and _began(now) >= now - _LONGEST_WAIT) or context.task_run.run_count <= context.task.retries


def failed_if(failures: Sequence[str], result: R) -> R:
    """Return the result of a task run that handles several objects; the run's state is Failed if some of these failed.

    The state has the result as its data, and its message names the first failure and how many more there are.
    """
    if not failures or TaskRunContext.get() is None:
        return result
    more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    return cast("R", Failed(message=f"{failures[0]}{more}", data=result))


def argument(name: str) -> Any:
    """An argument of the task run that is being named; Prefect unquotes arguments only later."""
    value = task_run.parameters[name]
    return value.unquote() if isinstance(value, quote) else value


def _waiting(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a function so that a Retry-After becomes one state `AwaitingRetry` and one wait."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> Any:
        context = TaskRunContext.get()
        if context is not None and (until := _WAITS.pop(context.task_run.id, None)) is not None:
            with WAITING.including(context.task_run.id):
                stopping.current().pause((until - datetime.now(UTC)).total_seconds())
        try:
            return function(*args, **kwargs)
        except RegistryError as exc:
            seconds, now = exc.exchange.retry_after_s, datetime.now(UTC)
            if context is None or not exc.retryable or seconds is None or _began(now) < now - _LONGEST_WAIT:
                raise
            until = now + min(timedelta(seconds=seconds), _LONGEST_WAIT)
            _WAITS[context.task_run.id] = until
            return AwaitingRetry(scheduled_time=now, message=f"{exc}; until {until:%Y-%m-%d %H:%M:%S} UTC")

    return run


def _began(now: datetime) -> datetime:
    """When the present task run did; outside of one, `now`."""
    context = TaskRunContext.get()
    return (context.task_run.start_time if context else None) or now
