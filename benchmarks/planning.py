"""Measure the planning of a divided mirror: requests, CPU time, duration and memory of the parent.

    python -m benchmarks.planning [TAGS]

Both registries are fakes in a process of their own on loopback. Each repository has ten tags, and each image has a manifest, a
config and three layers, of which one is common to all images and one is common to the repository. The program plans a first
mirror, divides the plan, and records the results as if shards had published all images. Then the target gets all manifests, and
the program plans the mirror again, with nothing to do. No Prefect server takes part.
"""

import json
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.fetch import build_image
from prefect_dist.mirror import yamlfile
from prefect_dist.mirror.config import parse_mirror
from prefect_dist.mirror.direct import SilentObserver, WholeMirror
from prefect_dist.mirror.mirror_shard_files import MirrorShardInput, MirrorShardResult
from prefect_dist.mirror.results import MirrorResults
from prefect_dist.mirror.run import MirrorJob, run_mirror
from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import DistError
from prefect_dist.storage.runs import RunFiles
from prefect_dist.transfer.events import ignore_event
from prefect_dist.transfer.session import SessionSpec, open_session
from prefect_dist.transfer.threads import ThreadPool
from tests import images
from tests.fakes.registry import FakeRegistry

if TYPE_CHECKING:
    from prefect_dist.mirror.division import ShardRunner

_TAGS, _PER_REPOSITORY, _WORKERS, _CONCURRENCY = 10_000, 10, 10, 16


@dataclass(frozen=True, slots=True)
class PlanCosts:
    """The costs of one plan: seconds, CPU seconds and the peak memory of the process in bytes; and its number of images."""

    seconds: float
    cpu_s: float
    peak: int
    images: int


@dataclass(slots=True)
class PublishedShards:
    """Ends each shard at once, with the result that all images are published."""

    run: str = "run"
    workers: int = _WORKERS

    def find_submitted(self) -> Mapping[int, Digest]:
        """Return no shard of an earlier attempt."""
        return {}

    def prepare_planning(self) -> None:
        """Do nothing: no shard of an earlier attempt has run."""

    def carry_out(self, shards: Mapping[int, Digest], files: RunFiles) -> Iterator[tuple[int, DistError | None]]:
        """Yield each shard after writing its result."""
        for number in shards:
            name = f"shard-{number}.json"
            shard = MirrorShardInput.from_json(files.read(name) or b"", at=name)
            results = MirrorResults(referrers={target: {} for target in shard.targets})
            files.write(f"result-{number}.json", MirrorShardResult(results=results).to_json())
            yield number, None

    def read_result(self, number: int, files: RunFiles) -> bytes | None:
        """Return the result of a shard."""
        return files.read(f"result-{number}.json")


def main() -> None:
    """Measure, and print the costs."""
    if sys.argv[1:2] == ["plan"]:
        print(json.dumps(asdict(measure_plan(*sys.argv[2:]))))
        return
    tags = int(sys.argv[1]) if len(sys.argv) > 1 else _TAGS
    ours, theirs = multiprocessing.Pipe()
    registries = multiprocessing.Process(target=_serve, args=(theirs, tags), daemon=True)
    registries.start()
    source, target = ours.recv()
    with tempfile.TemporaryDirectory() as directory:
        for name in ("first mirror", "nothing to do"):
            costs = _run_measurement(source, target, directory)
            ours.send(name)
            print(
                f"{costs.images} tags, {name}: {ours.recv()} requests, {costs.cpu_s:.1f} s of CPU, {costs.seconds:.1f} s, "
                f"peak memory {costs.peak / 1e6:.0f} MB"
            )


def _serve(pipe: Connection, tags: int) -> None:
    """Serve the registries. After each plan, send the number of requests, and copy the manifests to the target."""
    with FakeRegistry() as source, FakeRegistry() as target:
        built = list(_build_images(tags))
        for repository, tag, image in built:
            images.load(source, repository, image, tag)
        pipe.send((source.host, target.host))
        before = 0
        while pipe.recv():
            total = len(source.requests) + len(target.requests)
            pipe.send(total - before)
            before = total
            for repository, tag, image in built:
                images.load(target, repository, image, tag)


def _build_images(tags: int) -> Iterator[tuple[str, str, images.BuiltImage]]:
    """Yield small images, with their repositories and tags."""
    for number in range(tags):
        repository = number // _PER_REPOSITORY
        layers = [b"common", f"repository {repository}".encode(), f"layer {number}".encode()]
        yield f"team-{repository % 97}/service-{repository}", f"v1.{number % _PER_REPOSITORY}.0", build_image(layers)


def _run_measurement(source: str, target: str, directory: str) -> PlanCosts:
    """Return the costs of a plan in a new process."""
    argv = [sys.executable, "-m", "benchmarks.planning", "plan", source, target, directory]
    return PlanCosts(**json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout))


def measure_plan(source: str, target: str, directory: str) -> PlanCosts:
    """Plan a mirror of all repositories, divide the plan, and return the costs."""
    config = Path(directory) / "mirror.yaml"
    entry = {"type": "registry", "source": source, "target": target}
    config.write_text(json.dumps({"lock": f"{directory}/lock.json", "sync": [entry]}))
    wanted = parse_mirror(yamlfile.read(str(config)))
    job = MirrorJob(flow="mirror", configuration=wanted.name, entries=wanted.entries, lock=wanted.lock, is_dry=False)
    runner: ShardRunner = PublishedShards()
    start, start_cpu = time.perf_counter(), time.process_time()
    spec = SessionSpec(store=f"{directory}/store", is_shared=True)
    with open_session(spec) as session, ThreadPool(session, window=_CONCURRENCY, retries=0) as pool:
        report = run_mirror(job, pool, WholeMirror(), ignore_event, SilentObserver(), shards=runner)
    return PlanCosts(
        seconds=time.perf_counter() - start,
        cpu_s=time.process_time() - start_cpu,
        peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        images=len(report.rows),
    )


if __name__ == "__main__":
    main()
