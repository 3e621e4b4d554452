"""Compare fetches of 1 GiB and of 800 small descriptors with floors (`make bench`).

The Prefect server is real and warm. The registry is a real HTTP server (nginx) on loopback, because a registry on the same
cores would cost more than the fetch. In each round a fetch and its floors run one after the other. The bar applies to
the median of the ratios of all rounds, because machines can be slow for minutes. The exit status is 1 if a bar is missed.
"""

import hashlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from prefect_dist.ocispec.units import size
from tests import images
from tests.images import BuiltImage
from tests.peers.nginx import put, static_registry
from tests.peers.prefect import prefect_server

ROUNDS = 7
WORKERS = "16"
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Case:
    """Number of platforms of an image, and number and size of the layers of each platform."""

    name: str
    manifests: int
    layers: int
    layer_bytes: int

    def build(self) -> BuiltImage:
        """Return the image. The content is random, so that no server and no disk can compress the layers."""
        built = [build_image([os.urandom(self.layer_bytes) for _ in range(self.layers)]) for _ in range(self.manifests)]
        return built[0] if self.manifests == 1 else images.index(built)


BIG = Case("1 GiB in 4 layers", manifests=1, layers=4, layer_bytes=256 * _MIB)
TINY = Case("1 MiB in 4 layers", manifests=1, layers=4, layer_bytes=_MIB // 4)
SMALL = Case("800 small descriptors", manifests=42, layers=17, layer_bytes=1000)


def main() -> None:
    """Measure, and compare with the bars."""
    with (
        tempfile.TemporaryDirectory(dir=".") as scratch,
        static_registry(Path(scratch) / "registry") as registry,
        prefect_server(Path(scratch) / "prefect") as server,
    ):
        bench = FetchBench(Path(scratch), registry.host, server.url)
        verdicts = [
            bench.compare_bytes(BIG, bar=1.5),
            bench.compare_tasks(SMALL, bar=1.8),
            bench.compare_memory(BIG, TINY, bar_bytes=64 * _MIB),
        ]
    sys.exit(not all(verdicts))


class Work(NamedTuple):
    """A measurement: seconds, peak memory in bytes, and CPU seconds of the process."""

    seconds: float
    peak_bytes: int
    cpu_s: float


class FetchBench:
    """Measures fetches, with files below one scratch directory."""

    def __init__(self, scratch: Path, host: str, api: str) -> None:
        self._scratch, self._host, self._api = scratch, host, api
        self._stores = itertools.count()
        self._digests: dict[Case, list[str]] = {}
        self._peaks: dict[Case, int] = {}

    def compare_bytes(self, case: Case, *, bar: float) -> bool:
        """Compare a fetch with the sum of both floors."""
        tasks = len(self._publish(case)) + 1
        floor, noop, fetch = [], [], []
        for _ in range(ROUNDS):
            floor.append(self._measure_floor(case))
            noop.append(self._run_work("noop", str(tasks), WORKERS).seconds)
            fetch.append(self._measure_fetch(case))
        print(
            f"{case.name}: read, hash, write {format_times(floor)}; {tasks} no-op tasks {format_times(noop)}; "
            f"dist fetch {format_times(fetch)}"
        )
        ratios = [took / (bytes_ + tasks_) for took, bytes_, tasks_ in zip(fetch, floor, noop, strict=True)]
        return meets_bar(f"{case.name} / (floor + no-op tasks)", ratios, bar)

    def compare_tasks(self, case: Case, *, bar: float) -> bool:
        """Compare a fetch with the same number of tasks that do nothing."""
        tasks = len(self._publish(case)) + 1
        noop, fetch = [], []
        for _ in range(ROUNDS):
            noop.append(self._run_work("noop", str(tasks), WORKERS).seconds)
            fetch.append(self._measure_fetch(case))
        print(f"{case.name}: {tasks} no-op tasks {format_times(noop)}; dist fetch {format_times(fetch)}")
        return meets_bar(f"{case.name} / no-op tasks", [took / least for took, least in zip(fetch, noop, strict=True)], bar)

    def compare_memory(self, big: Case, tiny: Case, *, bar_bytes: int) -> bool:
        """Compare the peak memory of a large and of a small fetch."""
        for case in (big, tiny):
            self._publish(case)
            self._measure_fetch(case)
        more = self._peaks[big] - self._peaks[tiny]
        print(f"peak memory: {size(self._peaks[big])} for {big.name}, {size(self._peaks[tiny])} for {tiny.name}")
        return meets_bar("difference of the peaks in MiB", [more / _MIB], bar_bytes / _MIB)

    def _publish(self, case: Case) -> list[str]:
        if case not in self._digests:
            image = case.build()
            put(self._scratch / "registry", repository_of(case), image, "v1")
            self._digests[case] = image.descriptors
        return self._digests[case]

    def _measure_floor(self, case: Case) -> float:
        directory = self._scratch / "floor"
        directory.mkdir()
        try:
            layers = self._digests[case][1 : case.layers + 1]
            return self._run_work("floor", self._host, repository_of(case), str(directory), *layers).seconds
        finally:
            shutil.rmtree(directory)

    def _measure_fetch(self, case: Case) -> float:
        """Return the seconds of a fetch into a new store.

        Stores of many files remain until the end of the benchmark. For minutes after a deletion, ext4 passes over the
        inodes of the deleted files whenever ext4 creates a file. This takes up to 0.8 ms, as much as the rest of the work for
        a small blob.
        """
        store = self._scratch / f"store-{next(self._stores)}"
        work = self._run_work("fetch", f"{self._host}/{repository_of(case)}:v1", str(store), WORKERS)
        self._peaks[case] = work.peak_bytes
        if case.manifests == 1:
            shutil.rmtree(store)
        return work.seconds

    def _run_work(self, *arguments: str) -> Work:
        return run_work(self._api, *arguments)


def run_work(api: str, *arguments: str) -> Work:
    """Run `benchmarks.work` with a Prefect server."""
    quiet = {"PREFECT_LOGGING_LEVEL": "ERROR", "PREFECT_API_URL": api, "PATH": "/usr/bin:/bin"}
    argv = [sys.executable, "-m", "benchmarks.work", *arguments]
    done = subprocess.run(argv, env=quiet, stdout=subprocess.PIPE, check=True)
    return Work(**json.loads(done.stdout.splitlines()[-1]))


def build_image(blobs: Sequence[bytes]) -> BuiltImage:
    """Return an image with these layers. The layers may be any bytes, because the benchmarks do not unpack them."""
    config = json.dumps({"architecture": "amd64", "os": "linux", "of": images.digest_of(blobs[-1])}).encode()
    layers = [{"mediaType": images.OCI_LAYER, "digest": images.digest_of(b), "size": len(b)} for b in blobs]
    manifest = {
        "schemaVersion": 2,
        "mediaType": images.OCI_MANIFEST,
        "config": {"mediaType": images.OCI_CONFIG, "digest": images.digest_of(config), "size": len(config)},
        "layers": layers,
    }
    raw = json.dumps(manifest).encode()
    root = images.Manifest(f"sha256:{hashlib.sha256(raw).hexdigest()}", images.OCI_MANIFEST, raw)
    content_by_digest = {images.digest_of(content): content for content in (config, *blobs)}
    return BuiltImage(blobs=content_by_digest, manifests=(root,), platform="linux/amd64")


def repository_of(case: Case) -> str:
    """Return the repository of the image of a case."""
    return f"bench/m{case.manifests}-l{case.layers}-b{case.layer_bytes}"


def format_times(seconds: list[float]) -> str:
    """Return the median and the range of some times, for people."""
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


def meets_bar(name: str, values: list[float], bar: float, *, at_least: bool = False) -> bool:
    """Print the median of some values. Return True if the median is at most the bar, or with `at_least` at least the bar."""
    value = statistics.median(values)
    met = value >= bar if at_least else value <= bar
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    print(f"  {name}: {value:.2f}{spread}, bar {bar:.2f}: {'met' if met else 'MISSED'}")
    return met


if __name__ == "__main__":
    main()
