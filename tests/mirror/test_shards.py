"""The division of a mirror run into shards: each image once, related repositories together, and balanced bytes."""

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.plan import Load, PlannedImage, SyncItem, TargetAction
from prefect_dist.mirror.shards import divide_images, divide_targets, weigh_images
from prefect_dist.ocispec import Descriptor, Digest, Reference, mediatypes

ENTRY = Entry(at="mirror.yaml:1: sync[0]", source="registry.example/app", type="repository", targets=())


def layer(number: int, size: int) -> Descriptor:
    return Descriptor(media_type=mediatypes.OCI_LAYER, digest=Digest.of(str(number).encode()), size=size)


def image(name: str, targets: Sequence[str], content: Sequence[Descriptor]) -> PlannedImage:
    item = SyncItem(
        entry=ENTRY,
        source=Reference.parse(f"source.example/{name}"),
        targets=tuple(Reference.parse(f"{target}:v1") for target in targets),
    )
    actions = tuple(TargetAction(item=item, target=target, change="add") for target in item.targets)
    return PlannedImage(item=item, root=None, content=tuple(content), sent=tuple(content), actions=actions)


@st.composite
def planned_images(draw: st.DrawFn) -> list[PlannedImage]:
    repositories = st.sampled_from([f"target.example/r{number}" for number in range(12)])
    layers = st.builds(layer, st.integers(0, 40), st.integers(1, 10_000))
    count = draw(st.integers(0, 30))
    return weigh_images(
        image(
            f"i{number}",
            draw(st.lists(repositories, min_size=1, max_size=3, unique=True)),
            draw(st.lists(layers, max_size=6)),
        )
        for number in range(count)
    )


def tasks_of(shard: Sequence[PlannedImage]) -> int:
    return sum(found.load.count + len(found.due) for found in shard)


def bytes_of(shard: Sequence[PlannedImage]) -> int:
    return sum(found.load.size for found in shard)


def test_common_content_of_a_repository_counts_for_its_first_image() -> None:
    base, own, other = layer(1, 100), layer(2, 20), layer(3, 3)
    places = ["target.example/app"], ["target.example/app"], ["target.example/else"]

    weighed = weigh_images(map(image, "abc", places, [(base, own), (base, base, other), (base, own)]))

    assert [one.load for one in weighed] == [Load(2, 120), Load(1, 3), Load(2, 120)]
    assert [(one.content, one.sent) for one in weighed] == [((), ())] * 3


@given(planned_images(), st.integers(1, 8), st.integers(3, 40))
def test_each_image_is_in_exactly_one_shard_and_no_shard_is_too_large(
    planned: list[PlannedImage], workers: int, most_tasks: int
) -> None:
    shards = divide_images(planned, workers=workers, most_tasks=most_tasks)
    assert sorted(map(id, (one for shard in shards for one in shard))) == sorted(map(id, planned))
    assert all(len(shard) == 1 or tasks_of(shard) <= most_tasks for shard in shards)
    assert all(shards)
    assert shards == divide_images(planned, workers=workers, most_tasks=most_tasks)


@given(planned_images(), st.integers(1, 8))
def test_images_with_a_common_target_repository_share_a_shard_and_keep_their_order(
    planned: list[PlannedImage], workers: int
) -> None:
    shards = divide_images(planned, workers=workers)
    homes: dict[str, set[int]] = {}
    for number, shard in enumerate(shards):
        places = [planned.index(one) for one in shard]
        assert all(before < after for before, after in pairwise(places))
        for one in shard:
            for action in one.actions:
                homes.setdefault(action.target.locator, set()).add(number)
    assert all(len(found) == 1 for found in homes.values())


@given(st.lists(st.integers(1, 1_000_000), min_size=1, max_size=200), st.integers(1, 8))
def test_the_bytes_of_shards_differ_by_at_most_the_largest_group(sizes: list[int], workers: int) -> None:
    planned = weigh_images(
        image(f"i{number}", [f"target.example/r{number}"], [layer(number, size)]) for number, size in enumerate(sizes)
    )
    found = [bytes_of(shard) for shard in divide_images(planned, workers=workers)]
    assert max(found) - min(found) <= max(sizes)


def test_each_worker_gets_equally_many_shards_several_of_a_large_run_and_one_of_a_small_run() -> None:
    def run(count: int) -> list[PlannedImage]:
        return weigh_images(image(f"i{one}", [f"target.example/r{one}"], [layer(one, 100)]) for one in range(count))

    assert len(divide_images(run(10), workers=3)) == 3
    assert len(divide_images(run(2), workers=3)) == 2
    assert len(divide_images(run(1000), workers=3)) == 6
    assert len(divide_images(run(20_000), workers=3)) == 42
    assert divide_images([], workers=3) == []


@given(st.lists(st.integers(1, 40), max_size=20), st.integers(2, 5), st.integers(5, 50))
def test_each_target_of_a_check_is_in_one_shard_and_shards_are_balanced(sizes: list[int], workers: int, most: int) -> None:
    targets = [
        Reference.parse(f"target.example/r{repository}:v{tag}") for repository, size in enumerate(sizes) for tag in range(size)
    ]

    shards = divide_targets(targets, workers=workers, most=most)

    assert sorted(map(str, targets)) == sorted(str(target) for shard in shards for target in shard)
    assert all(shards)
    assert divide_targets(targets, workers=workers, most=most) == shards
    places = [(target.locator, number) for number, shard in enumerate(shards) for target in shard]
    for repository, size in enumerate(sizes):
        found = {number for locator, number in places if locator == f"target.example/r{repository}"}
        assert len(found) <= -(-size // most)
    parts = min(most, max(sizes, default=0))  # the largest part is the largest difference
    assert max(map(len, shards), default=0) - min(map(len, shards), default=0) <= parts
