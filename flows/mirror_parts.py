"""Divides the images of a mirror run into parts, by the number of their tasks.

Several parts are open at a time, so that a slow blob of one part does not delay other parts. The next part begins when an open
part ends.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from prefect_dist.flows.parts import Part, Parts
from prefect_dist.mirror.plan import PlannedImage
from prefect_dist.transfer.pool import Pool
from prefect_dist.transfer.walk_state import Admit, ImageState

# The most task runs of one part. Smaller parts cost time: before a part begins, its first calls wait until the server has
# recorded all earlier events.
MOST_TASKS = 1000
# The most open parts of images that were planned together.
MOST_OPEN = 4


class MirrorParts(Parts):
    """The parts of the mirror run `name`."""

    def __init__(self, name: str, pool: Pool) -> None:
        super().__init__("mirror-part", name, pool)
        self._waiting: dict[Part, _Shards] = {}
        self._unparted = 0

    def divide(self, images: Sequence[tuple[ImageState, PlannedImage]], admit: Admit) -> None:
        """Add images to the walk with `admit`, part by part.

        Few images stay in the flow run of the mirror itself, and are added at once. If Prefect's API does not answer, the run
        is cancelled, and the images end without having been started.
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
        """Count an image that ended. After the last image of a part, admit the next part."""
        super().end_image(image, is_vetoed=is_vetoed)
        if (part := self._of.get(image)) is not None and part.is_over:
            self._waiting[part].admit_next()


@dataclass(frozen=True, slots=True)
class _Shards:
    """Images that were planned together and are not admitted yet. Each shard becomes one part."""

    shards: deque[list[ImageState]]
    admit: Admit

    def admit_next(self) -> None:
        """Admit the next shard, if any is left."""
        if self.shards:
            self.admit(self.shards.popleft())


def _split_shards(images: Iterable[tuple[ImageState, PlannedImage]]) -> Iterator[list[tuple[ImageState, PlannedImage]]]:
    """Yield the images in their order, in shards of about `MOST_TASKS` tasks."""
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
