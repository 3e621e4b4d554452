"""How flows run their tasks, and read what they answered."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from prefect_dist.mirror.hosts_file import MAX_CONCURRENCY
from prefect_dist.ocispec.errors import DistError

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture

# Threads are made as they are needed. The parameter `concurrency` of a flow bounds how many of them work at once.
# The others are for tasks that wait for a Retry-After: such a task holds a thread, and does not count.
_MAX_THREADS = 4 * MAX_CONCURRENCY
RUNNER = cast("TaskRunner[PrefectFuture[Any]]", ThreadPoolTaskRunner(max_workers=_MAX_THREADS))


@dataclass(frozen=True, slots=True)
class Unsubmitted:
    """The future of a task that could not be submitted; it has ended with this error."""

    error: DistError

    def add_done_callback(self, fn: Callable[[Any], None], /) -> None:
        """Call `fn` at once."""
        fn(self)


def outcome(future: Any) -> object:
    """The result of a task, or the error that it ended with.

    Not `future.result()`: that goes to an event loop and back for what is in memory here, at a tenth of a small task's cost.
    """
    if isinstance(future, Unsubmitted):
        return future.error
    state = future.wrapped_future.result()
    return state.data.result if state.is_completed() else state.result(raise_on_failure=False)


def message(error: object) -> str:
    """One line for the error that a task ended with."""
    if isinstance(error, DistError):
        return str(error)
    return " ".join(f"{type(error).__name__}: {error}".split())
