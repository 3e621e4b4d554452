"""`make bench`: fetches of 1 GiB and of 800 small descriptors against their floors, in one run on one machine.

A real warm Prefect server and a real HTTP server (nginx) on loopback: a registry would cost more than what is measured, on the
same cores. In each round a fetch and its floors run one after the other, and the median of the rounds' ratios is judged: these
machines are noisy, for minutes at a time. Exits with 1 if a bar is missed.
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
    """An image of so many layers of so many bytes, in so many platforms, and the bar for its fetch."""

    name: str
    manifests: int
    layers: int
    layer_bytes: int

    def build(self) -> BuiltImage:
        """The image, of random bytes that no server or disk can shorten."""
        found = [image_of([os.urandom(self.layer_bytes) for _ in range(self.layers)]) for _ in range(self.manifests)]
        return found[0] if self.manifests == 1 else images.index(found)


BIG = Case("1 GiB in 4 layers", manifests=1, layers=4, layer_bytes=256 * _MIB)
TINY = Case("1 MiB in 4 layers", manifests=1, layers=4, layer_bytes=_MIB // 4)
SMALL = Case("800 small descriptors", manifests=42, layers=17, layer_bytes=1000)


def main() -> None:
    """Measure and judge."""
    with (
        tempfile.TemporaryDirectory(dir=".") as scratch,
        static_registry(Path(scratch) / "registry") as registry,
        prefect_server(Path(scratch) / "prefect") as server,
    ):
        bench = Bench(Path(scratch), registry.host, server.url)
        verdicts = [bench.bytes(BIG, bar=1.5), bench.tasks(SMALL, bar=1.8), bench.memory(BIG, TINY, bar_bytes=64 * _MIB)]
    sys.exit(not all(verdicts))


class Bench:
    """The measurements, below one scratch directory."""

    def __init__(self, scratch: Path, host: str, api: str) -> None:
        self._scratch, self._host, self._api = scratch, host, api
        self._stores = itertools.count()
        self._digests: dict[Case, list[str]] = {}
        self._peaks: dict[Case, int] = {}

    def bytes(self, case: Case, *, bar: float) -> bool:
        """Compare a fetch with both floors together."""
        tasks = len(self._pushed(case)) + 1
        floor, noop, fetch = [], [], []
        for _ in range(ROUNDS):
            floor.append(self._floor(case))
            noop.append(self._work("noop", str(tasks), WORKERS)[0])
            fetch.append(self._fetch(case))
        print(f"{case.name}: read, hash, write {told(floor)}; {tasks} no-op tasks {told(noop)}; dist fetch {told(fetch)}")
        ratios = [took / (bytes_ + tasks_) for took, bytes_, tasks_ in zip(fetch, floor, noop, strict=True)]
        return judge(f"{case.name} / (floor + no-op tasks)", ratios, bar)

    def tasks(self, case: Case, *, bar: float) -> bool:
        """Compare a fetch with as many tasks that do nothing."""
        tasks = len(self._pushed(case)) + 1
        noop, fetch = [], []
        for _ in range(ROUNDS):
            noop.append(self._work("noop", str(tasks), WORKERS)[0])
            fetch.append(self._fetch(case))
        print(f"{case.name}: {tasks} no-op tasks {told(noop)}; dist fetch {told(fetch)}")
        return judge(f"{case.name} / no-op tasks", [took / least for took, least in zip(fetch, noop, strict=True)], bar)

    def memory(self, big: Case, tiny: Case, *, bar_bytes: int) -> bool:
        """Compare the peaks of a big and a tiny fetch."""
        for case in (big, tiny):
            self._pushed(case)
            self._fetch(case)
        more = self._peaks[big] - self._peaks[tiny]
        print(f"peak memory: {size(self._peaks[big])} for {big.name}, {size(self._peaks[tiny])} for {tiny.name}")
        return judge("difference of the peaks in MiB", [more / _MIB], bar_bytes / _MIB)

    def _pushed(self, case: Case) -> list[str]:
        if case not in self._digests:
            image = case.build()
            put(self._scratch / "registry", repository(case), image, "v1")
            self._digests[case] = image.descriptors
        return self._digests[case]

    def _floor(self, case: Case) -> float:
        directory = self._scratch / "floor"
        directory.mkdir()
        try:
            layers = self._digests[case][1 : case.layers + 1]
            return self._work("floor", self._host, repository(case), str(directory), *layers)[0]
        finally:
            shutil.rmtree(directory)

    def _fetch(self, case: Case) -> float:
        """Fetch into a new store.

        Stores of many files stay until all is measured: for minutes ext4 passes over the inodes of deleted files, one by one,
        whenever it makes a new file. That was seen to take 0.8 ms, as long as all else that is done for a small blob.
        """
        store = self._scratch / f"store-{next(self._stores)}"
        seconds, self._peaks[case] = self._work("fetch", f"{self._host}/{repository(case)}:v1", str(store), WORKERS)
        if case.manifests == 1:
            shutil.rmtree(store)
        return seconds

    def _work(self, *arguments: str) -> tuple[float, int]:
        return work(self._api, *arguments)


def work(api: str, *arguments: str) -> tuple[float, int]:
    """Have `benchmarks.work` do something with a Prefect server: its seconds, and its peak memory in bytes."""
    quiet = {"PREFECT_LOGGING_LEVEL": "ERROR", "PREFECT_API_URL": api, "PATH": "/usr/bin:/bin"}
    argv = [sys.executable, "-m", "benchmarks.work", *arguments]
    done = subprocess.run(argv, env=quiet, stdout=subprocess.PIPE, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["seconds"], answer["peak_bytes"]


def image_of(blobs: Sequence[bytes]) -> BuiltImage:
    """An image with these layers, which may be any bytes: nothing here unpacks them."""
    config = json.dumps({"architecture": "amd64", "os": "linux", "of": images.digest_of(blobs[-1])}).encode()
    described = [{"mediaType": images.OCI_LAYER, "digest": images.digest_of(b), "size": len(b)} for b in blobs]
    manifest = {
        "schemaVersion": 2,
        "mediaType": images.OCI_MANIFEST,
        "config": {"mediaType": images.OCI_CONFIG, "digest": images.digest_of(config), "size": len(config)},
        "layers": described,
    }
    raw = json.dumps(manifest).encode()
    root = images.Manifest(f"sha256:{hashlib.sha256(raw).hexdigest()}", images.OCI_MANIFEST, raw)
    every = {images.digest_of(content): content for content in (config, *blobs)}
    return BuiltImage(blobs=every, manifests=(root,), platform="linux/amd64")


def repository(case: Case) -> str:
    """Where an image lies."""
    return f"bench/m{case.manifests}-l{case.layers}-b{case.layer_bytes}"


def told(seconds: list[float]) -> str:
    """The median of some seconds, and their range."""
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


def judge(what: str, values: list[float], bar: float, *, at_least: bool = False) -> bool:
    """Whether the median of some values is at most the bar, or at least."""
    value = statistics.median(values)
    met = value >= bar if at_least else value <= bar
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    print(f"  {what}: {value:.2f}{spread}, bar {bar:.2f}: {'met' if met else 'MISSED'}")
    return met


if __name__ == "__main__":
    main()
