"""Divides the images of a mirror run into parts, by the number of their tasks."""

from collections.abc import Iterable, Iterator, Sequence

from flows.mirroring.plan import Image as Planned
from flows.parts import Parts
from flows.wanted import Image
from tasks.stopping import Stopping

# Task runs of one flow run. Smaller parts cost: before one begins, its calls wait behind all events that the server has not
# recorded yet.
MOST_TASKS = 1000


class MirrorParts(Parts):
    """The parts of a mirror run, `name`."""

    def __init__(self, name: str, stopping: Stopping) -> None:
        super().__init__("mirror-part", name, stopping)
        self._unparted = 0

    def divide(self, images: Sequence[tuple[Image, Planned]]) -> None:
        """Give images that are to be brought their scope. Few images stay in the flow run of the mirror itself."""
        shards = list(_sharded(images))
        if len(shards) == 1 and self._unparted < MOST_TASKS:
            self._unparted += sum(len(planned.content) + len(planned.due) for _, planned in shards[0])
            return
        for shard in shards:
            self.add([image for image, _ in shard])


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
