"""Parts of a large mirror run: the number of open parts, and their ends."""

from types import SimpleNamespace
from typing import cast

import pytest

from prefect_dist.flows import mirror_parts as module
from prefect_dist.flows.mirror_parts import MOST_OPEN, MirrorParts
from prefect_dist.mirror.plan import PlannedImage
from prefect_dist.ocispec import Reference
from prefect_dist.transfer.cancellation import CancelToken
from prefect_dist.transfer.walk_state import ImageState
from tests.transfer.pools import HeldPool


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TASKS", 2)


def make_pool(cancel: CancelToken | None = None) -> HeldPool:
    """Return a pool that starts no unit in these tests."""
    return HeldPool(lambda _pool, _item: None, cancel=cancel)


def images(name: str, count: int) -> list[tuple[ImageState, PlannedImage]]:
    """Return images with two publications each. Each image fills a part."""
    planned = cast("PlannedImage", SimpleNamespace(content=(), due=(1, 2)))
    return [(ImageState(Reference.parse(f"{name}.example/app:v{number}")), planned) for number in range(count)]


def test_the_next_part_is_admitted_when_one_ends() -> None:
    admitted = list[ImageState]()
    with MirrorParts("run", make_pool()) as parts:
        parts.divide(images("a", 500), admitted.extend)
        assert len(admitted) == MOST_OPEN
        for count in range(1, 500 - MOST_OPEN + 1):
            parts.end_image(admitted[count], is_vetoed=False)
            assert len(admitted) == MOST_OPEN + count


def test_parts_of_one_registry_do_not_delay_parts_of_another_registry() -> None:
    admitted = list[ImageState]()
    with MirrorParts("run", make_pool()) as parts:
        parts.divide(images("a", 9), admitted.extend)
        parts.divide(images("b", 9), admitted.extend)
    assert [image.reference.host for image in admitted] == ["a.example"] * MOST_OPEN + ["b.example"] * MOST_OPEN


def test_an_error_in_the_block_cancels_the_tasks() -> None:
    cancel = CancelToken()
    with pytest.raises(LookupError), MirrorParts("run", make_pool(cancel)):
        raise LookupError("no such record")
    assert cancel.reason == "the run failed: no such record"
