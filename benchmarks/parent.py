"""Measure the memory of the parent of a divided mirror, and the size of the files that it writes.

    python -m benchmarks.parent [IMAGES]

Each image has one platform and one target, and five descriptors: the manifest, the config and three layers. One layer is common
to all images, one is common to a repository of ten tags. As in a run, the images of a task share equal descriptors. The
program makes the plan of a first mirror, writes the lock file before and after the publication, divides the plan, and makes
the files of the shards. It sends no request.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prefect_dist.mirror.bookkeeping import record_intent, record_results
from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.lock import Lock
from prefect_dist.mirror.mirror_shard_files import MirrorShardInput
from prefect_dist.mirror.plan import Plan, PlannedImage, SyncItem, TargetAction
from prefect_dist.mirror.results import MirrorResults
from prefect_dist.mirror.shards import divide_images, weigh_images
from prefect_dist.ocispec import Descriptor, Digest, Reference, mediatypes

_IMAGES, _TAGS, _WORKERS = 20_000, 10, 10
_BATCH = 100  # images per task of planning
_ENTRY = Entry(at="mirror.yaml:3: sync[0]", source="source.example", type="registry", targets=())


def main() -> None:
    """Measure, and print the figures per image."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else _IMAGES
    start = _peak()
    plan = Plan(images=tuple(_plan_images(count)), is_dry=False)
    print(f"plan: {(_peak() - start) / count:.0f} bytes of memory per image")
    shards, seconds = _time(lambda: divide_images(plan.images, workers=_WORKERS))
    print(f"division: {len(shards)} shards, {seconds / count * 1e6:.0f} us of CPU per image")
    written, seconds = _time(lambda: sum(len(MirrorShardInput(images=images).to_json()) for images in shards))
    print(f"inputs of shards: {written / count:.0f} bytes, {seconds / count * 1e6:.0f} us of CPU per image")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "mirror.lock.json"
        lock = Lock(str(path))
        _, intent_s = _time(lambda: lock.update(lambda locked: record_intent(plan, locked)))
        results = MirrorResults(begun=frozenset(action.target for action in plan.actions))
        _, results_s = _time(lambda: lock.update(lambda locked: record_results(plan, results, {}, locked)))
        print(f"lock file: {path.stat().st_size / count:.0f} bytes per image")
    print(f"lock file: {intent_s / count * 1e6:.0f} us of CPU per image before, {results_s / count * 1e6:.0f} us after")
    print(f"peak with plan, shards and lock file: {(_peak() - start) / count:.0f} bytes of memory per image")


def _plan_images(count: int) -> Iterator[PlannedImage]:
    """Yield the plans of new images, in the form for the division into shards."""
    for start in range(0, count, _BATCH):
        shared = dict[Descriptor, Descriptor]()
        yield from weigh_images(_plan_image(number, shared) for number in range(start, min(start + _BATCH, count)))


def _plan_image(number: int, shared: dict[Descriptor, Descriptor]) -> PlannedImage:
    """Return the plan of a new image with an instance of each descriptor in `shared`."""
    repository, tag = f"team-{number // _TAGS % 97}/service-{number // _TAGS}", f"v1.{number % _TAGS}.0"
    source, target = (Reference.parse(f"{host}.example/{repository}:{tag}") for host in ("source", "target"))
    item = SyncItem(entry=_ENTRY, source=source, targets=(target,))
    manifest = _descriptor(mediatypes.OCI_MANIFEST, f"manifest {number}", 1000)
    found = (
        manifest,
        _descriptor(mediatypes.OCI_CONFIG, f"config {number}", 2000),
        _descriptor(mediatypes.OCI_LAYER, "common", 30_000_000),
        _descriptor(mediatypes.OCI_LAYER, f"repository {number // _TAGS}", 20_000_000),
        _descriptor(mediatypes.OCI_LAYER, f"layer {number}", 10_000_000),
    )
    content = tuple(shared.setdefault(one, one) for one in found)
    action = TargetAction(item=item, target=target, change="add", new=manifest)
    return PlannedImage(item=item, root=manifest, content=content, sent=content, actions=(action,))


def _descriptor(media_type: str, text: str, size: int) -> Descriptor:
    return Descriptor(media_type=media_type, digest=Digest.of(text.encode()), size=size)


def _time(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return a result and the CPU seconds that it took."""
    start = time.process_time()
    return work(), time.process_time() - start


def _peak() -> int:
    """Return the peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
