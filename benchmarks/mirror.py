"""Compare mirrors of 200 small images with `skopeo sync`, first and repeated runs (`make bench`).

The source and the target are real registries (CNCF distribution) on loopback, without a delay and with a delay of 20 ms by
`benchmarks.delay`. In each round the mirror and skopeo each fill an empty registry, then run again without a change. The time
of a mirror is the run time of the flow with a warm Prefect server. The time of skopeo is the time of the command. The bars
apply to the medians of the ratios. The exit status is 1 if a bar is missed.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from gzip import compress
from pathlib import Path

from benchmarks.fetch import build_image, format_times, meets_bar, run_work
from tests import images
from tests.peers.prefect import prefect_server
from tests.peers.processes import LOOPBACK, free_port, listening, require, running
from tests.peers.registry import cncf_registry

ROUNDS = 3
WORKERS = "16"
REPOSITORIES, TAGS = 20, 10
DELAY_MS = 20
_BASE_BYTES, _OWN_BYTES = 100_000, 10_000


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of the runs of one tool, by round: the first runs, and the repeated runs without a change."""

    cold: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)


def main() -> None:
    """Measure, and compare with the bars."""
    with (
        tempfile.TemporaryDirectory(dir=".") as scratch,
        cncf_registry(Path(scratch) / "source") as source,
        prefect_server(Path(scratch) / "prefect") as server,
    ):
        fill_registry(source.host)
        bench = MirrorBench(Path(scratch), source.host, server.url)
        near = bench.compare("without a delay", delay_ms=0, cold=0.5, again=0.2)
        far = bench.compare(f"with a delay of {DELAY_MS} ms", delay_ms=DELAY_MS, cold=0.15, again=0.2)
    sys.exit(not (near and far))


class MirrorBench:
    """Measures mirrors. The files below the scratch directory remain until the end (see `benchmarks.fetch`)."""

    def __init__(self, scratch: Path, source: str, api: str) -> None:
        self._scratch, self._source, self._api = scratch, source, api
        self._runs = 0

    def compare(self, where: str, *, delay_ms: int, cold: float, again: float) -> bool:
        """Compare mirrors by the flow with mirrors by skopeo."""
        ours, theirs = Times(), Times()
        with _delayed_host(self._source, delay_ms) as source:
            for _ in range(ROUNDS):
                self._measure(theirs, self._mirror_by_skopeo, source, delay_ms)
                self._measure(ours, self._mirror_by_flow, source, delay_ms)
        count = REPOSITORIES * TAGS
        for name, skopeo, flow in (("first run", theirs.cold, ours.cold), ("repeated run", theirs.again, ours.again)):
            print(f"{count} images {where}, {name}: skopeo sync {format_times(skopeo)}; mirror {format_times(flow)}")
        verdicts = [
            meets_bar(f"{name} / skopeo sync", [one / other for one, other in zip(flow, skopeo, strict=True)], bar)
            for name, skopeo, flow, bar in (
                ("first run", theirs.cold, ours.cold, cold),
                ("repeated run", theirs.again, ours.again, again),
            )
        ]
        return all(verdicts)

    def _measure(self, times: Times, mirror: Callable[[str, str, Path], float], source: str, delay_ms: int) -> None:
        self._runs += 1
        directory = self._scratch / f"run-{self._runs}"
        with cncf_registry(directory / "registry") as registry, _delayed_host(registry.host, delay_ms) as target:
            times.cold.append(mirror(source, target, directory))
            _require_equal_tags(self._source, registry.host)
            times.again.append(mirror(source, target, directory))

    def _mirror_by_skopeo(self, source: str, target: str, directory: Path) -> float:
        config = directory / "skopeo.yaml"
        selected = {repository_name(number): [_tag(tag) for tag in range(TAGS)] for number in range(REPOSITORIES)}
        config.write_text(json.dumps({source: {"tls-verify": False, "images": selected}}))  # JSON is YAML
        argv = [require("skopeo", "skopeo"), "--insecure-policy", "sync", "--src", "yaml", "--dest", "docker"]
        argv += ["--all", "--dest-tls-verify=false", str(config), f"{target}/bench"]
        start = time.perf_counter()
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.perf_counter() - start

    def _mirror_by_flow(self, source: str, target: str, directory: Path) -> float:
        config = directory / "mirror.yaml"
        repositories = [repository_name(number) for number in range(REPOSITORIES)]
        entries = [{"source": f"{source}/{one}", "target": f"{target}/{one}", "type": "repository"} for one in repositories]
        config.write_text(json.dumps({"version": 1, "sync": entries}))
        return run_work(self._api, "mirror", str(config), str(directory / "store"), WORKERS).seconds


@contextmanager
def _delayed_host(host: str, delay_ms: int) -> Iterator[str]:
    """Yield the host of a proxy that delays the responses of `host`. Without a delay, yield `host`."""
    if not delay_ms:
        yield host
        return
    port, log = free_port(), Path(os.devnull)
    argv = [sys.executable, "-m", "benchmarks.delay", str(port), host.rpartition(":")[2], str(delay_ms)]
    with running(argv, ready=listening(port), log=log):
        yield f"{LOOPBACK}:{port}"


def fill_registry(host: str, repositories: int = REPOSITORIES) -> None:
    """Push images of four blobs: a config, a layer of all images, a layer of the repository, and a layer of its own."""
    seeded = random.Random(1)

    def layer(size: int) -> bytes:
        return compress(seeded.randbytes(size), mtime=0)  # skopeo would compress an uncompressed layer, and so change the image

    shared = layer(_BASE_BYTES)
    for number in range(repositories):
        base = layer(_BASE_BYTES)
        for tag in range(TAGS):
            image = build_image([shared, base, layer(_OWN_BYTES)])
            images.push(host, repository_name(number), image, _tag(tag))


def repository_name(number: int) -> str:
    return f"bench/r{number:02}"


def _tag(number: int) -> str:
    return f"v{number}"


def _require_equal_tags(source: str, target: str) -> None:
    """Exit unless each tag resolves to the same digest at the source and at the target."""
    for path in (f"{repository_name(number)}/manifests/{_tag(tag)}" for number in range(REPOSITORIES) for tag in range(TAGS)):
        if _digest(source, path) != _digest(target, path):
            raise SystemExit(f"{path}: source and target resolve to different digests")


def _digest(host: str, path: str) -> str | None:
    request = urllib.request.Request(f"http://{host}/v2/{path}", method="HEAD", headers={"Accept": images.OCI_MANIFEST})
    with urllib.request.urlopen(request) as answer:  # noqa: S310 - a server of this program
        digest: str | None = answer.headers["Docker-Content-Digest"]
    return digest


if __name__ == "__main__":
    main()
