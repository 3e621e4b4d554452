"""Divides the images of a mirror run into parts, by the number of their tasks.

Of the images that are handed over together, some parts are open at a time: a slow blob of one part does not delay the next one,
and the next part begins only when one ends.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from prefect_dist.flows.parts import Part, Parts
from prefect_dist.flows.wanted import Image
from prefect_dist.mirror.plan import Image as Planned
from prefect_dist.transfer.cancellation import Stopping

# Task runs of one flow run. Smaller parts cost: before one begins, its calls wait behind all events that the server has not
# recorded yet.
MOST_TASKS = 1000
# The parts that are open at a time, of the images that are handed over together.
MOST_OPEN = 4


class MirrorParts(Parts):
    """The parts of a mirror run, `name`. `admit` adds images to the walk."""

    def __init__(self, name: str, stopping: Stopping, admit: Callable[[Sequence[Image]], None]) -> None:
        super().__init__("mirror-part", name, stopping)
        self._admit = admit
        self._waiting: dict[Part, deque[list[Image]]] = {}
        self._unparted = 0

    def divide(self, images: Sequence[tuple[Image, Planned]]) -> None:
        """Admit images part by part. Few images stay in the flow run of the mirror itself, and are admitted at once."""
        shards = list(_sharded(images))
        if len(shards) == 1 and self._unparted < MOST_TASKS:
            self._unparted += sum(len(planned.content) + len(planned.due) for _, planned in shards[0])
            self._admit([image for image, _ in shards[0]])
            return
        waiting = deque([image for image, _ in shard] for shard in shards)
        for shard in tuple(waiting):
            self._waiting[self.add(shard)] = waiting
        for _ in range(MOST_OPEN):
            self._admit_next(waiting)

    def ended(self, image: Image, *, is_vetoed: bool = False) -> None:
        """Count an image that ended. Once it is the last one of its part, the next part is admitted."""
        super().ended(image, is_vetoed=is_vetoed)
        if (part := self._of.get(image)) is not None and part.is_over:
            self._admit_next(self._waiting[part])

    def _admit_next(self, waiting: deque[list[Image]]) -> None:
        if waiting:
            self._admit(waiting.popleft())


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
