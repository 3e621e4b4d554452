"""Units of work as Prefect task runs."""

from collections.abc import Callable, Hashable
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar, cast

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.utilities.annotations import opaque, quote

from prefect_dist.flows.api import CALL_ERRORS, ApiUnavailable, client
from prefect_dist.flows.limits import Blocked, TaskOptions
from prefect_dist.mirror.hosts_file import MAX_CONCURRENCY
from prefect_dist.ocispec.errors import DistError
from prefect_dist.tasks._task import WAITING
from prefect_dist.tasks.units import TASKS
from prefect_dist.transfer.attempts import RETRIES
from prefect_dist.transfer.pool import Failed, Ok, Outcome, Pool, Raised, Unexpected, Unit
from prefect_dist.transfer.session import Session

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture

T = TypeVar("T")
# The task runner makes threads on demand. The parameter `concurrency` of a flow limits the working threads. Further threads
# hold tasks that wait for a Retry-After.
_MAX_THREADS = 4 * MAX_CONCURRENCY
RUNNER = cast("TaskRunner[PrefectFuture[Any]]", ThreadPoolTaskRunner(max_workers=_MAX_THREADS))


class PrefectPool(Pool):
    """Runs each unit as a task run of the current flow run, or of the unit's scope.

    If Prefect's API does not accept a task run, the flow run stops. If a limit blocks a registry of a task, the flow run fails.
    If an operator sets the state of a task run to Cancelled, Prefect does not notify the task: the unit continues, and its
    result counts.
    """

    def __init__(self, session: Session, *, window: int, retries: int = RETRIES) -> None:
        super().__init__(session, window=window)
        self._options = TaskOptions(retries=retries)

    @property
    def waiting(self) -> AbstractSet[Hashable]:
        """Return the ids of the task runs that wait for a Retry-After."""
        return WAITING.keys

    def on_wait(self, listener: Callable[[], None]) -> AbstractContextManager[None]:
        """Call `listener` for each task run that starts to wait during the block."""
        return WAITING.on_wait(listener)

    def start(self, unit: Unit[T], end: Callable[[Outcome[T] | Raised], None]) -> Hashable:
        """Submit the task of a unit. Return the id of the task run.

        Prefect draws an arrow from each result in `wait_for`. The arguments are quoted: otherwise Prefect draws an arrow from
        any task with an equal string in the result. The parents are results instead of futures: for a future, Prefect needs
        an event loop, at a tenth of the cost of a small task.
        """
        try:
            task = self._options.configure(TASKS[unit.work], unit.hosts)

            def submit() -> "PrefectFuture[Any]":
                wait_for = [opaque(parent) for parent in unit.parents]
                future: PrefectFuture[Any] = task.submit(*map(quote, unit.arguments), **unit.options, wait_for=wait_for)
                return future

            future = submit() if unit.scope is None else unit.scope.run(submit)
        except Blocked as exc:
            self.session.cancel.fail(exc)
            self.session.cancel.check()
            raise
        except (ApiUnavailable, *CALL_ERRORS) as exc:
            cancel = self.session.cancel
            reason = str(exc) if isinstance(exc, ApiUnavailable) else f"Prefect API {client().api_url}: {exc}"
            cancel.set(reason, cause=exc)
            cancel.check()
            raise
        future.add_done_callback(lambda ended: end(_outcome(ended)))
        return future.task_run_id


def _outcome(future: Any) -> Outcome[Any] | Raised:
    """Return the outcome of a task run that ended.

    `future.result()` would need an event loop for a value in memory, at a tenth of the cost of a small task.
    """
    try:
        state = future.wrapped_future.result()
        result = state.data.result if state.is_completed() else state.result(raise_on_failure=False)
    except BaseException as exc:  # noqa: BLE001 - such as a suspended flow run; raised again in the thread of the walk
        return Raised(exc)
    if isinstance(result, DistError):
        return Failed(result)
    return Failed(Unexpected.of(result)) if isinstance(result, BaseException) else Ok(result)
