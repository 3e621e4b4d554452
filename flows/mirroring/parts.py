"""Parts of a large mirror run: flow runs for the tasks of some images, so that their graphs stay readable.

A part is open from its first task until its last image ends. Parts overlap: a slow blob of one does not delay the next one.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context, copy_context
from typing import Any, Self, TypeVar

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.api import CALL_ERRORS, brief, client, require_api
from flows.mirroring.plan import Image as Planned
from flows.runner import RUNNER
from flows.wanted import Image
from ocispec.units import counted
from tasks.stopping import Stopping

T = TypeVar("T")
# What one flow run brings, counted in tasks: people can still read its graph, and Prefect draws none of more than 10,000.
# Smaller parts cost: before one begins, its calls wait behind all events that the server has not digested yet.
MOST_TASKS = 1000
# A part needs a thread while it is open.
_MOST_OPEN = 1000


class Part:
    """One flow run, `label`, for `count` images. Used by the thread of the walk only."""

    def __init__(self, label: str, count: int, threads: ThreadPoolExecutor, stopping: Stopping) -> None:
        self._label, self._count, self._left, self._threads, self._stopping = label, count, count, threads, stopping
        self._failed = self._vetoed = 0
        self._context: Context | None = None
        self._begun, self._over = threading.Event(), threading.Event()
        self._flow: Future[None] | None = None

    @property
    def is_begun(self) -> bool:
        """Whether there is a flow run."""
        return self._flow is not None

    def run(self, submit: Callable[[], T], /) -> T:
        """Call `submit` in the context of the flow run, which begins with the first call.

        Raises:
            ApiUnavailable, Stopped: it could not begin.
        """
        if self._flow is None:
            require_api(self._stopping)
            self._flow = self._threads.submit(copy_context().run, self._run)
        self._begun.wait()
        if self._context is None:
            self._flow.result()  # raises what broke the flow run, other than a lost API
            self._stopping.check()
            raise RuntimeError(f"{self._label}: the flow run ended before its tasks")
        return self._context.run(submit)

    def ended(self, *, has_failed: bool, is_vetoed: bool) -> None:
        """Count an image that ended. The flow run ends with the last one."""
        self._left -= 1
        self._failed += has_failed
        self._vetoed += is_vetoed
        if not self._left:
            self.close()

    def close(self) -> None:
        """End the flow run."""
        self._over.set()

    def _run(self) -> None:
        @flow(name="mirror-part", flow_run_name=self._label, task_runner=RUNNER, persist_result=False)
        def part() -> State[Any]:
            self._context = copy_context()
            self._begun.set()
            self._over.wait()
            return self._state()

        try:
            with brief():
                part(return_state=True)
        except CALL_ERRORS as exc:  # the API does not record the part
            self._stopping.set(f"Prefect API {client().api_url}: {exc}")
        finally:
            self._begun.set()

    def _state(self) -> State[Any]:
        images = counted(self._count, "image")
        if self._failed:
            return Failed(message=f"{self._failed} of {images} failed")
        if self._vetoed:
            return Completed(name="Vetoed", message=f"{self._vetoed} of {images} vetoed")
        return Completed(message=images)


class Parts:
    """Divides the images of a run, `name`, into parts. Leaving the block waits until Prefect has ended all flow runs."""

    def __init__(self, name: str, stopping: Stopping) -> None:
        self._name, self._stopping = name, stopping
        self._threads = ThreadPoolExecutor(_MOST_OPEN)
        self._parts: list[Part] = []
        self._of: dict[Image, Part] = {}
        self._unparted = 0

    @property
    def count(self) -> int:
        """The number of flow runs, each of which Prefect records as a task run, too."""
        return sum(part.is_begun for part in self._parts)

    def divide(self, images: Sequence[tuple[Image, Planned]]) -> None:
        """Give images that are to be brought their scope. Few images stay in the flow run of the mirror itself."""
        shards = list(_sharded(images))
        if len(shards) == 1 and self._unparted < MOST_TASKS:
            self._unparted += sum(len(planned.content) + len(planned.due) for _, planned in shards[0])
            return
        for shard in shards:
            part = Part(f"{self._name}, part {len(self._parts) + 1}", len(shard), self._threads, self._stopping)
            self._parts.append(part)
            for image, _ in shard:
                image.scope = self._of[image] = part

    def ended(self, image: Image, *, is_vetoed: bool) -> None:
        """Count an image that ended."""
        if (part := self._of.get(image)) is not None:
            part.ended(has_failed=bool(image.failures), is_vetoed=is_vetoed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for part in self._parts:
            part.close()
        self._threads.shutdown()


def _sharded(images: Iterable[tuple[Image, Planned]]) -> Iterator[list[tuple[Image, Planned]]]:
    """Images in their order, so many together as one flow run may have."""
    shard, content, publications = list[tuple[Image, Planned]](), set[object](), 0
    for image, planned in images:
        shard.append((image, planned))
        content.update(descriptor.digest for descriptor in planned.content)
        publications += len(planned.due)
        if len(content) + publications >= MOST_TASKS:
            yield shard
            shard, content, publications = [], set(), 0
    if shard:
        yield shard
