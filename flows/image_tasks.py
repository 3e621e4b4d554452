"""One task run for each image (`grain: image`), whose units of work run in threads.

The walk is the same as for one task run per descriptor. Only the pool differs: the units of an image do not become task runs.
They run in threads, in the context of the image's task run, with the retries of `transfer.attempts`. The task run begins with
the first unit of the image and ends with the image.
"""

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from prefect_dist.flows.fetch_parts import FetchParts
from prefect_dist.flows.mirror_parts import MirrorParts
from prefect_dist.flows.pool import PrefectPool
from prefect_dist.ocispec import Descriptor
from prefect_dist.transfer import units
from prefect_dist.transfer.attempts import RETRIES
from prefect_dist.transfer.cancellation import Stopped
from prefect_dist.transfer.fetching import Fetched
from prefect_dist.transfer.image_report import Failure
from prefect_dist.transfer.pool import Ok, Outcome, Raised, Scope, Unit
from prefect_dist.transfer.session import Session
from prefect_dist.transfer.threads import ThreadPool
from prefect_dist.transfer.units import ImageFailed, ImageSummary
from prefect_dist.transfer.walk_state import Admit, ImageState

if TYPE_CHECKING:
    from prefect_dist.transfer.content import Receipt

T = TypeVar("T")
_LISTED = 3  # failures in the message of a task run
End = Callable[[Outcome[T] | Raised], None]


class ImagePool(PrefectPool):
    """Runs the units of an image in threads, and every other unit as a task run. Leaving the block waits for the threads.

    `raised` is the exception that ended the task run of an image, if any: the walk has to end with this exception.
    """

    def __init__(self, session: Session, *, window: int, retries: int = RETRIES) -> None:
        super().__init__(session, window=window, retries=retries)
        self.threads = ThreadPool(session, window=window, retries=retries)
        self.raised: Raised | None = None
        self._open: set[ImageTask] = set()

    @property
    def waiting(self) -> AbstractSet[Hashable]:
        """Return the keys of the units that wait for a Retry-After."""
        return super().waiting | self.threads.waiting

    @contextmanager
    def on_wait(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call `listener` for each unit that starts to wait during the block."""
        with super().on_wait(listener), self.threads.on_wait(listener):
            yield

    def counts(self, unit: Unit[Any], /) -> bool:
        """Return True for a unit with a task run of its own."""
        return not isinstance(unit.scope, ImageTask)

    def release_held(self, in_flight: Iterable[Hashable], /) -> None:
        """Start the units of an image whose task run has not begun, if every unit in flight belongs to such an image.

        Task runs inherit the tags of a block in the calling flow, and a limit on such a tag delays them. The image with the
        slot may wait for a unit of a delayed image: for shared content, or for room in the window. Then no unit would ever end.
        The run has a slot, so it may send requests.
        """
        images = [key.image for key in in_flight if isinstance(key, _Key)]
        if images and all(image.is_delayed for image in images) and any(not image.is_delayed for image in self._open):
            images[0].begin()

    def start(self, unit: Unit[T], end: End[T]) -> Hashable:
        """Start a unit in the task run of its image, or submit the task of the unit.

        Raise the exception that ended the task run of an image, such as the exception by which Prefect suspends a flow run.
        """
        if self.raised is not None:
            raise self.raised.error
        if isinstance(unit.scope, ImageTask):
            return unit.scope.start(unit, end)
        return super().start(unit, end)

    def open_task(self, image: "ImageTask", scope: Scope | None, parents: tuple[object, ...]) -> None:
        """Submit the task of an image, in the flow run of `scope`.

        The task has no registry, and so no tag with a limit. Otherwise the units of images that wait for the limit could fill
        the window of the pool, and the images that hold the limit would never end.
        """
        unit = Unit(work=units.walk_image, arguments=(image,), parents=parents, scope=scope)
        super().start(unit, image.take_end)
        self._open.add(image)
        self.runs += 1

    def end_task(self, image: "ImageTask") -> None:
        """Note that the last unit of an image has ended."""
        self._open.discard(image)

    def __enter__(self) -> Self:
        self.threads.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.threads.__exit__(kind, error, trace)


@dataclass(eq=False, frozen=True, slots=True)
class _Key:
    """The key of a unit of an image."""

    image: "ImageTask"


class ImageTask:
    """The task run of one image. `scope` is the child flow run of the task run, if any.

    The thread of the walk calls `start` and `end`, and the thread of the task run calls `walk`.
    """

    def __init__(self, pool: ImagePool, image: ImageState, scope: Scope | None) -> None:
        self.name = str(image.reference)
        self._pool, self._image, self._scope = pool, image, scope
        self._guard = threading.Lock()
        self._context: Context | None = None
        self._queued: list[tuple[Hashable, Unit[Any], End[Any]]] = []
        self._is_open = False
        self._ended, self._closed = threading.Event(), threading.Event()
        self._content: list[tuple[Descriptor, Receipt]] = []
        self._failures: tuple[Failure, ...] = ()
        self._is_vetoed = False

    @property
    def is_delayed(self) -> bool:
        """Return True until the task run begins."""
        return self._context is None

    def walk(self) -> ImageSummary:
        """Start the units of the image in the context of the calling task run, until `end`. Return the content.

        Raises:
            Stopped: the run was cancelled.
            ImageFailed: the image failed.
        """
        self.begin()
        self._ended.wait()
        if self._failures:
            stopped = next((one.error for one in self._failures if isinstance(one.error, Stopped)), None)
            raise stopped or ImageFailed(_describe_failures(self._failures))
        return ImageSummary(tuple(self._content), is_vetoed=self._is_vetoed)

    def start(self, unit: Unit[T], end: End[T]) -> Hashable:
        """Start a unit in a thread. The first unit opens the task run. Return the key of the unit."""
        if not self._is_open:
            parents = () if self._image.origin is None else (self._image.origin,)
            self._pool.open_task(self, self._scope, parents)
            self._is_open = True
        key = _Key(self)
        with self._guard:
            context, raised = self._context, self._pool.raised
            if context is None and raised is None:
                self._queued.append((key, unit, end))
        if raised is not None:
            end(raised)
        elif context is not None:
            self._submit(context, key, unit, end)
        return key

    def end(self, *, is_vetoed: bool = False) -> None:
        """End the task run: after the last unit of the image, or early if the run was interrupted."""
        if self._ended.is_set():
            return
        interrupted = self._pool.session.cancel.error if self._image.open else None
        failures = [] if interrupted is None else [Failure(descriptor=None, error=interrupted)]
        self._failures, self._is_vetoed = (*self._image.failures, *failures), is_vetoed
        self._pool.end_task(self)
        self._ended.set()

    def take_end(self, outcome: Outcome[ImageSummary] | Raised) -> None:
        """Take the end of the task run.

        Units also start if Prefect ended the task run early, such as by a failed call. They do not start after an exception
        that ends the flow run.
        """
        if isinstance(outcome, Raised):
            with self._guard:
                self._pool.raised = outcome
                queued, self._queued = self._queued, []
            for _, _, end in queued:
                end(outcome)
        else:
            self.begin()
        self._closed.set()

    def wait(self) -> None:
        """Wait until Prefect has recorded the end of the task run."""
        if self._is_open:
            self._closed.wait()

    def run(self, submit: Callable[[], T], /) -> T:
        """Call `submit` in the child flow run of the image."""
        return submit() if self._scope is None else self._scope.run(submit)

    def begin(self) -> None:
        """Start the units of the image in the current context, unless an earlier call started the units."""
        context = copy_context()
        with self._guard:
            if self._context is not None:
                return
            self._context, queued = context, self._queued
            self._queued = []
        for key, unit, end in queued:
            self._submit(context, key, unit, end)

    def _submit(self, context: Context, key: Hashable, unit: Unit[T], end: End[T]) -> None:
        context.copy().run(self._pool.threads.submit, key, unit, partial(self._take, unit, end))

    def _take(self, unit: Unit[T], end: End[T], outcome: Outcome[T] | Raised) -> None:
        if isinstance(outcome, Ok) and isinstance(outcome.value, Fetched) and isinstance(unit.arguments[0], Descriptor):
            self._content.append((unit.arguments[0], outcome.value.receipt))
        end(outcome)


class ImageTasks:
    """Opens the task runs of images, at most twice as many as units in flight. `parts` are the child flow runs of a large run.

    More open task runs would occupy all threads of Prefect's task runner, and the units of other images would wait forever.
    """

    def __init__(self, parts: FetchParts | MirrorParts, pool: ImagePool) -> None:
        self._parts, self._pool = parts, pool
        self._tasks: dict[ImageState, ImageTask] = {}
        self._waiting: deque[tuple[ImageState, Admit]] = deque()
        self._open = 0

    def divide(self, images: Sequence[Any], admit: Admit) -> None:
        """Divide many images into parts, and admit images while task runs are free. `images` is as the parts expect it."""
        self._parts.divide(images, partial(self._add, admit))

    def end_image(self, image: ImageState, *, is_vetoed: bool = False) -> None:
        """End the task run of an image, and admit the next image."""
        self._tasks[image].end(is_vetoed=is_vetoed)
        self._open -= 1
        self._parts.end_image(image, is_vetoed=is_vetoed)
        self._admit_next()

    def __enter__(self) -> Self:
        self._parts.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:  # ends the units in flight
            self._pool.session.cancel.set(f"the run failed: {error}", cause=error)
        for task in self._tasks.values():
            task.end()
        for task in self._tasks.values():
            task.wait()
        self._parts.__exit__(kind, error, trace)

    def _add(self, admit: Admit, images: Sequence[ImageState]) -> None:
        for image in images:
            image.scope = self._tasks[image] = ImageTask(self._pool, image, image.scope)
            self._waiting.append((image, admit))
        self._admit_next()

    def _admit_next(self) -> None:
        while self._waiting and self._open < 2 * self._pool.window:
            image, admit = self._waiting.popleft()
            self._open += 1
            admit([image])


def _describe_failures(failures: Sequence[Failure]) -> str:
    """Return the first distinct errors, and the number of further errors."""
    texts = list(dict.fromkeys(map(_describe_failure, failures)))
    more = [f"and {len(texts) - _LISTED} more"] if len(texts) > _LISTED else []
    return "; ".join((*texts[:_LISTED], *more))


def _describe_failure(failure: Failure) -> str:
    """Return the error with the descriptor. The subject of an error names the descriptor."""
    is_named = failure.descriptor is None or failure.error.subject is not None
    return str(failure.error) if is_named else f"{failure.descriptor}: {failure.error}"
