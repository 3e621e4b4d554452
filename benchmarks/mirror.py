"""`make bench`: mirrors of 200 small images from registry to registry, cold and with nothing to do, and by `skopeo sync`.

Two real registries (CNCF distribution) on loopback, as they are and 20 ms away: `benchmarks.delay` is between. In each round
both fill a registry of their own, then run again with nothing to do. The body of the flow is timed, on a warm Prefect server,
and the whole command of skopeo; the medians of the rounds' ratios are judged. Exits with 1 if a bar is missed.
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

from benchmarks.fetch import image_of, judge, told, work
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
    """Seconds of the runs of one kind, by round: the first ones, and those that had nothing to do."""

    cold: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)


def main() -> None:
    """Measure and judge."""
    with (
        tempfile.TemporaryDirectory(dir=".") as scratch,
        cncf_registry(Path(scratch) / "source") as source,
        prefect_server(Path(scratch) / "prefect") as server,
    ):
        _fill(source.host)
        bench = Bench(Path(scratch), source.host, server.url)
        near = bench.compare("on this machine", delay_ms=0, cold=0.5, again=0.2)
        far = bench.compare(f"{DELAY_MS} ms away", delay_ms=DELAY_MS, cold=0.15, again=0.2)
    sys.exit(not (near and far))


class Bench:
    """The measurements, below one scratch directory; what is in it stays until all is measured (`benchmarks.fetch`)."""

    def __init__(self, scratch: Path, source: str, api: str) -> None:
        self._scratch, self._source, self._api = scratch, source, api
        self._runs = 0

    def compare(self, where: str, *, delay_ms: int, cold: float, again: float) -> bool:
        """Compare mirrors by the flow with those by skopeo."""
        ours, theirs = Times(), Times()
        with _away(self._source, delay_ms) as source:
            for _ in range(ROUNDS):
                self._timed(theirs, self._skopeo, source, delay_ms)
                self._timed(ours, self._flow, source, delay_ms)
        count = REPOSITORIES * TAGS
        for what, skopeo, flow in (("cold", theirs.cold, ours.cold), ("nothing to do", theirs.again, ours.again)):
            print(f"{count} images {where}, {what}: skopeo sync {told(skopeo)}; mirror {told(flow)}")
        verdicts = [
            judge(f"{what} / skopeo sync", [one / other for one, other in zip(flow, skopeo, strict=True)], bar)
            for what, skopeo, flow, bar in (
                ("cold", theirs.cold, ours.cold, cold),
                ("nothing to do", theirs.again, ours.again, again),
            )
        ]
        return all(verdicts)

    def _timed(self, times: Times, mirror: Callable[[str, str, Path], float], source: str, delay_ms: int) -> None:
        self._runs += 1
        directory = self._scratch / f"run-{self._runs}"
        with cncf_registry(directory / "registry") as registry, _away(registry.host, delay_ms) as target:
            times.cold.append(mirror(source, target, directory))
            _require_all(self._source, registry.host)
            times.again.append(mirror(source, target, directory))

    def _skopeo(self, source: str, target: str, directory: Path) -> float:
        wanted = directory / "skopeo.yaml"
        listed = {_repository(number): [_tag(tag) for tag in range(TAGS)] for number in range(REPOSITORIES)}
        wanted.write_text(json.dumps({source: {"tls-verify": False, "images": listed}}))  # JSON is YAML
        argv = [require("skopeo", "skopeo"), "--insecure-policy", "sync", "--src", "yaml", "--dest", "docker"]
        argv += ["--all", "--dest-tls-verify=false", str(wanted), f"{target}/bench"]
        started = time.perf_counter()
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.perf_counter() - started

    def _flow(self, source: str, target: str, directory: Path) -> float:
        config = directory / "mirror.yaml"
        repositories = [_repository(number) for number in range(REPOSITORIES)]
        entries = [{"source": f"{source}/{one}", "target": f"{target}/{one}", "type": "repository"} for one in repositories]
        config.write_text(json.dumps({"version": 1, "sync": entries}))
        return work(self._api, "mirror", str(config), str(directory / "store"), WORKERS)[0]


@contextmanager
def _away(host: str, delay_ms: int) -> Iterator[str]:
    """The same server, its answers so much later."""
    if not delay_ms:
        yield host
        return
    port, log = free_port(), Path(os.devnull)
    argv = [sys.executable, "-m", "benchmarks.delay", str(port), host.rpartition(":")[2], str(delay_ms)]
    with running(argv, ready=listening(port), log=log):
        yield f"{LOOPBACK}:{port}"


def _fill(host: str) -> None:
    """Images of four blobs: a config, a base that all share, one that a repository's share, and a layer of their own."""
    seeded = random.Random(1)

    def layer(size: int) -> bytes:
        return compress(seeded.randbytes(size), mtime=0)  # skopeo would compress what is not, and so change the image

    everywhere = layer(_BASE_BYTES)
    for number in range(REPOSITORIES):
        base = layer(_BASE_BYTES)
        for tag in range(TAGS):
            image = image_of([everywhere, base, layer(_OWN_BYTES)])
            images.push(host, _repository(number), image, _tag(tag))


def _repository(number: int) -> str:
    return f"bench/r{number:02}"


def _tag(number: int) -> str:
    return f"v{number}"


def _require_all(source: str, target: str) -> None:
    """End everything unless each tag stands for the same there."""
    for path in (f"{_repository(number)}/manifests/{_tag(tag)}" for number in range(REPOSITORIES) for tag in range(TAGS)):
        if _digest(source, path) != _digest(target, path):
            raise SystemExit(f"{path}: not mirrored")


def _digest(host: str, path: str) -> str | None:
    request = urllib.request.Request(f"http://{host}/v2/{path}", method="HEAD", headers={"Accept": images.OCI_MANIFEST})
    with urllib.request.urlopen(request) as answer:  # noqa: S310 - our own
        found: str | None = answer.headers["Docker-Content-Digest"]
    return found


if __name__ == "__main__":
    main()
