"""Divides the images of a mirror run into parts, by the number of their tasks.

Of the images that are handed over together, some parts are open at a time: a slow blob of one part does not delay the next one,
and the next part begins only when one ends.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from prefect_dist.flows.parts import Part, Parts
from prefect_dist.mirror.applying import Admit
from prefect_dist.mirror.plan import PlannedImage
from prefect_dist.transfer.cancellation import CancelToken
from prefect_dist.transfer.walk_state import ImageState

# Task runs of one flow run. Smaller parts cost: before one begins, its calls wait behind all events that the server has not
# recorded yet.
MOST_TASKS = 1000
# The parts that are open at a time, of the images that are handed over together.
MOST_OPEN = 4


class MirrorParts(Parts):
    """The parts of a mirror run, `name`."""

    def __init__(self, name: str, cancel: CancelToken) -> None:
        super().__init__("mirror-part", name, cancel)
        self._waiting: dict[Part, _Shards] = {}
        self._unparted = 0

    def divide(self, images: Sequence[tuple[ImageState, PlannedImage]], admit: Admit) -> None:
        """Have `admit` add images to the walk part by part.

        Few images stay in the flow run of the mirror itself, and are added at once.

        If Prefect's API does not answer, the run is cancelled, and all of them end as not begun.
        """
        shards = list(_split_shards(images))
        if len(shards) == 1 and self._unparted < MOST_TASKS:
            self._unparted += sum(len(planned.content) + len(planned.due) for _, planned in shards[0])
            admit([image for image, _ in shards[0]])
            return
        waiting = _Shards(deque([image for image, _ in shard] for shard in shards), admit)
        for shard in tuple(waiting.shards):
            self._waiting[self.add(shard)] = waiting
        for _ in range(MOST_OPEN):
            waiting.admit_next()

    def end_image(self, image: ImageState, *, is_vetoed: bool = False) -> None:
        """Count an image that ended. Once it is the last one of its part, the next part is admitted."""
        super().end_image(image, is_vetoed=is_vetoed)
        if (part := self._of.get(image)) is not None and part.is_over:
            self._waiting[part].admit_next()


@dataclass(frozen=True, slots=True)
class _Shards:
    """Images that were handed over together and are not admitted yet, in shards of one part each."""

    shards: deque[list[ImageState]]
    admit: Admit

    def admit_next(self) -> None:
        """Admit the next shard, if there is one."""
        if self.shards:
            self.admit(self.shards.popleft())


def _split_shards(images: Iterable[tuple[ImageState, PlannedImage]]) -> Iterator[list[tuple[ImageState, PlannedImage]]]:
    """Images in their order, so many together as one flow run may have."""
    shard, content, publications = list[tuple[ImageState, PlannedImage]](), set[object](), 0
    for image, planned in images:
        shard.append((image, planned))
        content.update(descriptor.digest for descriptor in planned.content)
        publications += len(planned.due)
        if len(content) + publications >= MOST_TASKS:
            yield shard
            shard, content, publications = [], set(), 0
    if shard:
        yield shard
