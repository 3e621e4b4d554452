"""Parts of a run with many images. A part is a flow run with the tasks of some of the images.

Prefect draws no graph with more than 10,000 nodes, and people can read the graph of a part. A part is open from the first task
until the last image of the part ends. Parts overlap: a slow blob of one part does not delay the next part.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context, copy_context
from typing import Any, Self, TypeVar

from prefect import Flow, flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from prefect_dist.flows.api import CALL_ERRORS, ApiUnavailable, brief, client, require_api
from prefect_dist.flows.pool import RUNNER
from prefect_dist.ocispec.units import format_count
from prefect_dist.transfer.cancellation import Stopped
from prefect_dist.transfer.pool import Pool
from prefect_dist.transfer.walk_state import ImageState

T = TypeVar("T")
# A busy server creates a flow run late; a server that hangs must not hold the walk.
_BEGINS_S = 60.0
_PAUSE_S = 1.0


class Part:
    """One flow run, named `label`, for `count` images. Only the thread of the walk may use it.

    Prefect also records the flow run as a task run, so the flow run counts as a run of `pool`.
    """

    def __init__(self, flow_name: str, label: str, count: int, pool: Pool) -> None:
        self._flow_name, self._label, self._count, self._left = flow_name, label, count, count
        self._thread, self._pool, self._cancel = ThreadPoolExecutor(1), pool, pool.session.cancel
        self._failed = self._vetoed = 0
        self._context: Context | None = None
        self._begun, self._over = threading.Event(), threading.Event()
        self._flow: Future[None] | None = None

    @property
    def is_over(self) -> bool:
        """True if all images have ended."""
        return not self._left

    def run(self, submit: Callable[[], T], /) -> T:
        """Call `submit` in the context of the flow run. The first call starts the flow run.

        Raises:
            ApiUnavailable: Prefect did not create the flow run in time.
            Stopped: the run was cancelled meanwhile.
        """
        if self._flow is None:
            require_api(self._cancel)
            self._flow = self._thread.submit(copy_context().run, self._run)
            self._pool.runs += 1
        self._await_begin()
        if self._context is None:
            self._flow.result()  # raises an error of the flow run, except for the loss of the API
            self._cancel.check()
            raise RuntimeError(f"{self._label}: the flow run ended before its tasks")
        return self._context.run(submit)

    def end_image(self, *, has_failed: bool, is_vetoed: bool) -> None:
        """Count an image that ended. The flow run ends with the last image."""
        self._left -= 1
        self._failed += has_failed
        self._vetoed += is_vetoed
        if not self._left:
            self.close()

    def close(self) -> None:
        """End the flow run, and return before Prefect has recorded the end."""
        self._over.set()

    def wait(self) -> None:
        """Wait until Prefect has ended the flow run."""
        self._thread.shutdown()

    def _await_begin(self) -> None:
        deadline = time.monotonic() + _BEGINS_S
        while not self._begun.wait(_PAUSE_S):
            self._cancel.check()
            if time.monotonic() > deadline:
                raise ApiUnavailable(f"Prefect API {client().api_url} did not create {self._label} in {_BEGINS_S:.0f} s")

    def _run(self) -> None:
        @flow(name=self._flow_name, flow_run_name=self._label, task_runner=RUNNER, persist_result=False)
        def part() -> State[Any]:
            self._context = copy_context()
            self._begun.set()
            self._over.wait()
            return self._state()

        try:
            self._record(part)
        except CALL_ERRORS as exc:  # the API did not record the part
            self._cancel.set(f"Prefect API {client().api_url}: {exc}", cause=exc)
        except (ApiUnavailable, Stopped) as exc:
            self._cancel.set(str(exc), cause=exc)
        finally:
            self._begun.set()

    def _record(self, part: Flow[[], Any]) -> None:
        """Run the flow. A busy server may refuse to create the flow run. Then the flow starts again, while the API answers.

        Raises:
            ApiUnavailable: the API does not answer.
            Stopped: the run was cancelled meanwhile.
        """
        deadline = time.monotonic() + _BEGINS_S
        while True:
            try:
                with brief():
                    part(return_state=True)
            except CALL_ERRORS:
                if self._context is not None or time.monotonic() > deadline:
                    raise
                require_api(self._cancel)
                self._cancel.pause(_PAUSE_S)
            else:
                return

    def _state(self) -> State[Any]:
        images = format_count(self._count, "image")
        if self._left:
            return Failed(message=f"{self._left} of {images} did not end")
        if self._failed:
            return Failed(message=f"{self._failed} of {images} failed")
        if self._vetoed:
            return Completed(name="Vetoed", message=f"{self._vetoed} of {images} vetoed")
        return Completed(message=images)


class Parts:
    """The parts of the run `name`. The end of the block waits until Prefect has ended all flow runs."""

    def __init__(self, flow_name: str, name: str, pool: Pool) -> None:
        self._flow_name, self._name, self._pool = flow_name, name, pool
        self._parts: list[Part] = []
        self._of: dict[ImageState, Part] = {}

    def add(self, images: Sequence[ImageState]) -> Part:
        """Make a part of some images. Return the part."""
        label = f"{self._name}, part {len(self._parts) + 1}"
        part = Part(self._flow_name, label, len(images), self._pool)
        self._parts.append(part)
        for image in images:
            image.scope = self._of[image] = part
        return part

    def end_image(self, image: ImageState, *, is_vetoed: bool = False) -> None:
        """Count an image that ended."""
        if (part := self._of.get(image)) is not None:
            part.end_image(has_failed=bool(image.failures), is_vetoed=is_vetoed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:  # ends tasks that wait for a registry
            self._pool.session.cancel.set(f"the run failed: {error}", cause=error)
        for part in self._parts:
            part.close()
        for part in self._parts:
            part.wait()
