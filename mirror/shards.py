"""Divides the images of a mirror run, or the targets of a check, into shards, which several processes carry out.

Images with a common target repository stay in one shard, so that mounts and lists of referrers stay together, as long as a
shard does not become too large. Shards are balanced by bytes: the largest group of images goes first, to the shard with the
fewest bytes.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from prefect_dist.mirror.plan import Load, PlannedImage
from prefect_dist.ocispec import Digest, Reference

MOST_TASKS = 1000
"""The most tasks of a shard with more than one image. Prefect's UI draws the graph of a run of this size."""

MOST_TAGS = 1000
"""The most targets of one repository in a shard of a check."""

# Each worker gets up to three shards of a large run, so that a fast worker does not wait long for the slowest shard.
_PER_WORKER = 3
# A process starts in about five seconds. Shards of fewer tasks would cost more time to start than to carry out.
_LEAST_TASKS = 300


@dataclass(slots=True)
class _Group:
    """Images that belong together, the bytes of their content, and the number of their tasks."""

    images: list[PlannedImage] = field(default_factory=list)
    size: int = 0
    tasks: int = 0

    def add(self, image: PlannedImage) -> None:
        """Add an image."""
        self.images.append(image)
        self.size += image.load.size
        self.tasks += _count_tasks(image)

    def merge(self, other: "_Group") -> None:
        """Add the images of another group."""
        self.images += other.images
        self.size += other.size
        self.tasks += other.tasks


def weigh_images(images: Iterable[PlannedImage]) -> list[PlannedImage]:
    """Return images with their load instead of their content.

    Content that several of the images in a target repository have counts for the first of them. An image keeps its manifests if
    its digest tags are mirrored: the search for orphaned tags needs the manifests.
    """
    known = defaultdict[str, set[Digest]](set)
    return [_weigh(image, known[image.actions[0].target.locator]) for image in images]


def _weigh(image: PlannedImage, known: set[Digest]) -> PlannedImage:
    new = {one.digest: one.size for one in image.content if one.digest not in known}
    known.update(new)
    content, sent = (
        tuple(one for one in found if one.is_manifest and image.item.related.tagged) for found in (image.content, image.sent)
    )
    return replace(image, content=content, sent=sent, load=Load(len(new), sum(new.values())))


def divide_images(
    images: Sequence[PlannedImage], *, workers: int, most_tasks: int = MOST_TASKS
) -> list[tuple[PlannedImage, ...]]:
    """Return weighed images in shards for `workers` processes. Each image is in exactly one shard, and no shard is empty.

    A shard has at most `most_tasks` tasks by the load of its images, except for a single image with more. The images of a shard
    have the order of `images`. Equal arguments give equal shards.
    """
    groups = [part for group in _group_by_repository(images) for part in _split(group, most_tasks)]
    total = sum(group.tasks for group in groups)
    shards = _fill(groups, min(len(groups), _count_shards(total, workers, most_tasks)), most_tasks)
    place = {image: number for number, image in enumerate(images)}
    return [tuple(sorted(shard.images, key=place.__getitem__)) for shard in shards]


def divide_targets(targets: Sequence[Reference], *, workers: int, most: int = MOST_TAGS) -> list[tuple[Reference, ...]]:
    """Return the targets of a check in shards for `workers` processes. Each target is in exactly one shard.

    The targets of a repository stay in one shard, in parts of at most `most`: they share content, which a check looks up once.
    The largest part goes first, to the shard with the fewest targets. Equal arguments give equal shards.
    """
    by_repository = defaultdict[str, list[Reference]](list)
    for target in targets:
        by_repository[target.locator].append(target)
    parts = [found[start : start + most] for found in by_repository.values() for start in range(0, len(found), most)]
    shards = [list[Reference]() for _ in range(min(len(parts), _count_shards(len(targets), workers, most)))]
    heap = [(0, number) for number in range(len(shards))]
    for part in sorted(parts, key=len, reverse=True):
        size, number = heapq.heappop(heap)
        shards[number] += part
        heapq.heappush(heap, (size + len(part), number))
    return [tuple(shard) for shard in shards]


def _count_shards(tasks: int, workers: int, most_tasks: int) -> int:
    """Return the number of shards: the same number for each worker, with shards that are neither too small nor too large."""
    rounds = min(_PER_WORKER, max(1, tasks // (_LEAST_TASKS * workers)))
    return workers * max(rounds, -(-tasks // (most_tasks * workers)))


def _group_by_repository(images: Iterable[PlannedImage]) -> Iterator[_Group]:
    """Yield groups of images that have no target repository in common, in the order of their first images."""
    leader: dict[str, str] = {}

    def find(repository: str) -> str:
        while leader.setdefault(repository, repository) != repository:
            leader[repository] = leader[leader[repository]]  # shortens the way for later calls
            repository = leader[repository]
        return repository

    planned = list(images)
    for image in planned:
        first, *others = sorted({action.target.locator for action in image.actions})
        for other in others:
            leader[find(other)] = find(first)
    groups = defaultdict[str, _Group](_Group)
    for image in planned:
        groups[find(image.actions[0].target.locator)].add(image)
    yield from groups.values()


def _count_tasks(image: PlannedImage) -> int:
    """Return the number of tasks of an image: one per descriptor of its load, and one per publication."""
    return image.load.count + max(len(image.due), 1)


def _split(group: _Group, most_tasks: int) -> Iterator[_Group]:
    """Yield a group in parts of at most `most_tasks` tasks. A part has at least one image."""
    part = _Group()
    for image in group.images:
        if part.images and part.tasks + _count_tasks(image) > most_tasks:
            yield part
            part = _Group()
        part.add(image)
    yield part


def _fill(groups: Iterable[_Group], count: int, most_tasks: int) -> list[_Group]:
    """Return shards with all groups. The largest group goes first, to the shard with the fewest bytes that has room."""
    shards = [_Group() for _ in range(count)]
    # The number makes the order of equal shards definite. A shard without room is set aside.
    heap = [(0, number) for number in range(count)]
    for group in sorted(groups, key=lambda one: one.size, reverse=True):
        full = list[tuple[int, int]]()
        while heap and shards[heap[0][1]].images and shards[heap[0][1]].tasks + group.tasks > most_tasks:
            full.append(heapq.heappop(heap))
        if heap:
            _, number = heapq.heappop(heap)
        else:
            shards.append(_Group())
            number = len(shards) - 1
        shards[number].merge(group)
        heapq.heappush(heap, (shards[number].size, number))
        for one in full:
            heapq.heappush(heap, one)
    return [shard for shard in shards if shard.images]
