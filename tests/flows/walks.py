"""Walks without Prefect: tasks that end when the test says so, and a keeper that has nothing."""
# ruff: noqa: ARG002 - the interfaces are those of a walk

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from prefect import Task
from prefect.states import Completed

from prefect_dist.flows.wanted import Errand, Image, Node
from prefect_dist.ocispec import Descriptor, Reference
from prefect_dist.ocispec.platform import Platforms
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.storage.presence import Presence
from prefect_dist.tasks.fetch import Fetched
from prefect_dist.transfer.content import Receipt

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State


class Job:
    """A task run: the future that `flows.runner.outcome` reads."""

    def __init__(self) -> None:
        self.task_run_id = uuid4()
        self.wrapped_future: Future[Any] = Future()

    def add_done_callback(self, fn: Callable[[Any], None], /) -> None:
        """Call `fn` when the task ends."""
        self.wrapped_future.add_done_callback(lambda _: fn(self))

    def end(self, result: object) -> None:
        """End the task with a result."""
        state: State[Any] = Completed(data=SimpleNamespace(result=result))
        self.wrapped_future.set_result(state)


class Work:
    """A task that is submitted to the test: `run` gets each task run and its arguments."""

    def __init__(self, run: Callable[..., None]) -> None:
        self._run = run

    def with_options(self, **_: object) -> "Work":
        """The same task."""
        return self

    def submit(self, *arguments: Any, **_: object) -> Job:
        """Begin a task run."""
        job = Job()
        self._run(job, *(argument.value for argument in arguments))
        return job

    @property
    def task(self) -> Task[..., Any]:
        """The task, as far as a walk knows it."""
        return cast("Task[..., Any]", self)


class Bringing:
    """The course of a walk that fetches content. `when_ended` is called with each image that ended."""

    misses_nothing = True

    def __init__(self, when_ended: Callable[[Image], None], fetch: Callable[[Job, Descriptor], None]) -> None:
        self._when_ended, self._work = when_ended, Work(fetch)

    def bring(self, node: Node, source: Reference) -> tuple[Task[..., Any], Sequence[Reference], Sequence[object]]:
        """A task of the test."""
        return self._work.task, (), (node.descriptor,)

    def ended(self, image: Image, /) -> None:
        """Report it to the test."""
        self._when_ended(image)

    def onward(self, image: Image, /) -> Sequence[Errand]:
        """Nothing."""
        return ()


class Nothing:
    """The keeper of an empty store, which records every name."""

    def look(self, reference: Reference, root: Descriptor, *, platforms: Platforms) -> Presence:
        """Nothing is there."""
        return Presence((), (root,))

    def hold(self, root: Descriptor, *, platforms: Platforms) -> Presence:
        """Nothing is there."""
        return Presence((), (root,))

    def record(
        self, reference: Reference, root: Descriptor, *, platforms: Platforms, referrers: tuple[Referrer, ...] | None
    ) -> None:
        """Record nothing."""


def fetched(job: Job, _descriptor: Descriptor) -> None:
    """End a task that fetches a blob."""
    job.end(Fetched(Receipt("fetched"), ()))
