"""Prove that several workers share one mirror run, and that a dead worker or parent loses nothing (`make proof`).

Worker processes with homes of their own and a content store on S3 (SeaweedFS) mirror images from one registry to two CNCF
registries, through a Prefect server on PostgreSQL. All answers of the registries are delayed, so that a worker waits rather
than computes. The script checks the requests in the logs of the registries:

1. one worker, one process: the time that the speed-up refers to;
2. several workers: each piece of content once, and the results by `dist check` and skopeo;
3. the same run again, and by one process: nothing to do, and equal numbers of requests;
4. other targets: SIGKILL for one worker, then for the parent, then a new run.

With --api-down, the script only mirrors once, and stops the Prefect server for two minutes meanwhile.

The script prints one line per fact. The exit status is 1 if a fact is wrong.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from scripts.proof_fleet import (
    CONTROL,
    ENDED,
    SHARDS,
    ApiServer,
    Fleet,
    Machine,
    Target,
    build_images,
    deploy_flows,
    kill_processes,
    read_cpu_s,
    run_machine,
)
from tests.fakes.faults import Call, Fault
from tests.fakes.registry import FakeRegistry
from tests.images import BuiltImage, load
from tests.peers import skopeo
from tests.peers.postgresql import find_programs, postgresql
from tests.peers.processes import poll_until
from tests.peers.registry import CncfRegistry
from tests.peers.seaweedfs import seaweedfs

CLAIMED_BYTES = 64 * 1024
"""Larger content is claimed: each piece is transferred once."""

_API_DOWN_S, _TAKEOVER_S = 120, 120
_SAMPLE, _CHECKS = 12, 32
"""The number of images that skopeo inspects, and the number of tags that `dist check` inspects at a time."""

_GOAL = 1000
_CREATED = 201


@dataclass(slots=True)
class Facts:
    """Prints facts, and remembers whether each fact is right."""

    failed: list[str] = field(default_factory=list)

    def check(self, name: str, is_right: object, found: object) -> None:
        """Print a fact that can be wrong."""
        if not is_right:
            self.failed.append(name)
        print(f"{'OK' if is_right else 'FAILED':8}{name}: {found}", flush=True)

    def state(self, name: str, found: object) -> None:
        """Print a measured value or a condition."""
        print(f"{'':8}{name}: {found}", flush=True)


@dataclass(frozen=True, slots=True)
class Traffic:
    """The requests of one part of the proof: at the source, and at each target."""

    source: list[Any]
    targets: list[list[Any]]

    @property
    def count(self) -> int:
        """The number of requests at all registries."""
        return len(self.source) + sum(map(len, self.targets))

    def count_reads(self) -> Counter[str]:
        """Return the number of successful GET requests at the source for each blob."""
        return Counter(
            one.path.rpartition("/")[2]
            for one in self.source
            if one.method == "GET" and "/blobs/" in one.path and one.status in (200, 206)
        )


@dataclass(slots=True)
class Cursor:
    """Returns the new requests of a registry at each call."""

    counts: dict[str, int] = field(default_factory=dict)

    def take(self, registry: FakeRegistry | CncfRegistry) -> list[Any]:
        """Return the requests of a registry since the last call."""
        found: list[Any] = []
        if isinstance(registry, CncfRegistry):
            name = str(registry.log)
            found += registry.requests()
        else:
            name = registry.host
            found += registry.requests
        before = self.counts.get(name, 0)
        self.counts[name] = len(found)
        return found[before:]


@dataclass(frozen=True, slots=True)
class Proof:
    """The parts of the proof, in the order of their execution."""

    options: argparse.Namespace
    fleet: Fleet
    facts: Facts
    seen: Cursor = field(default_factory=Cursor)

    def run_one(self) -> float:
        """Mirror by one process. Return the seconds of the run."""
        with self.fleet.open_targets("one", self.options.delay) as targets:
            config = self.fleet.configure(targets, "one")
            seconds = self._run(config, "one worker", workers=1)
            found = self._take(targets)
            self.facts.check("one worker: manifests", count_manifests(found) == [self.images] * 2, count_manifests(found))
        return seconds

    def run_many(self, alone_s: float) -> None:
        """Mirror by several workers, then check the results, then run again without work."""
        workers, least = self.options.workers, self.options.least_speedup
        with self.fleet.open_targets("many", self.options.delay) as targets:
            config = self.fleet.configure(targets, "many")
            seconds = self._run(config, f"{workers} workers", workers=workers)
            ratio = alone_s / seconds
            self.facts.check(f"speed-up of {workers} workers, at least {least}", ratio >= least, f"{ratio:.2f}")
            self._check_transfers(f"{workers} workers", self._take(targets))
            self._check_result("many", targets)
            counts = []
            for count in (workers, 1):
                self._take(targets)
                self._run(config, f"nothing to do, workers = {count}", workers=count)
                counts.append(self._take(targets).count)
            self.facts.check("requests without work, several workers and one", counts[0] == counts[1], counts)

    def run_faults(self) -> None:
        """Kill a worker, then the parent, and run again."""
        with self.fleet.open_targets("faults", self.options.delay) as targets:
            config = self.fleet.configure(targets, "faults")
            self._take(targets)
            run = self._start(config)
            self._await_progress(run, targets, share=0.2)
            self._kill_worker(run)
            self._kill_parent(run)
            self._run(config, "new run after the death of the parent", workers=self.options.workers)
            for shard in self.fleet.list_shards(run):
                self.fleet.wait(shard["id"], timeout_s=self.options.timeout)
            self._check_repeats(self._take(targets))
            self._check_result("faults", targets)

    def run_without_api(self) -> None:
        """Stop the Prefect server for two minutes during a mirror."""
        with self.fleet.open_targets("api", self.options.delay) as targets:
            config = self.fleet.configure(targets, "api")
            self._take(targets)
            run = self._start(config)
            self._await_progress(run, targets, share=0.2)
            self.fleet.api.stop()
            before = sum(count_manifests(self._take(targets)))
            time.sleep(_API_DOWN_S)
            during = sum(count_manifests(self._take(targets)))
            self.fleet.api.start()
            tags = f"{before} tags were set before, {during} meanwhile"
            self.facts.state("Prefect server stopped", f"for {_API_DOWN_S} s; {tags}")
            alive = sum(bool(machine.find_processes()) for machine in self.fleet.workers)
            self.facts.check("workers alive after the absence", alive == self.options.workers, alive)
            record = self.fleet.wait(run, timeout_s=self.options.timeout)
            state = f"{record['state_name']} {record['state']['message'] or ''}"
            self.facts.check("final state of the run", record["state_type"] == "COMPLETED", state)
            self._run(config, "another run", workers=self.options.workers)
            self._check_result("api", targets)

    def finish(self) -> None:
        """Check that no flow run is left."""
        left = self.fleet.list_unfinished()
        self.facts.check("flow runs that have not ended", not left, left or 0)

    @property
    def images(self) -> int:
        """The number of images, which is the number of tags of each target."""
        return len(self.fleet.built)

    def _start(self, config: str, workers: int | None = None) -> str:
        count = workers or self.options.workers
        options = self.options
        return self.fleet.start(config, workers=count, concurrency=options.concurrency, grain=options.grain)

    def _run(self, config: str, name: str, *, workers: int) -> float:
        """Carry out a run. Return the seconds from its start to its end, by the clock of Prefect."""
        cpu_s, began = read_cpu_s(), time.monotonic()
        run = self._start(config, workers)
        meter = self.fleet.measure_cpu(run)
        record = self.fleet.wait(run, timeout_s=self.options.timeout, on_poll=meter.read)
        used = (read_cpu_s() - cpu_s) / (time.monotonic() - began) / (os.cpu_count() or 1)
        self.facts.check(f"{name}: final state", record["state_type"] == "COMPLETED", record["state_name"])
        seconds = float(record["total_run_time"])
        shards = len(self.fleet.list_shards(run))
        self.facts.state(f"{name}: time", f"{seconds:.1f} s, {shards} shards")
        cpu = f"{used:.0%} of the {os.cpu_count()} CPUs by all processes of this machine; {meter.used_s:.0f} s by the parent"
        self.facts.state(f"{name}: CPU", cpu)
        return seconds

    def _take(self, targets: Sequence[Target]) -> Traffic:
        """Return the requests since the last call for these targets."""
        return Traffic(self.seen.take(self.fleet.source), [self.seen.take(one.registry) for one in targets])

    def _check_transfers(self, name: str, found: Traffic) -> None:
        """Check that each piece of large content moved once, and each tag was set once."""
        reads = {digest: count for digest, count in found.count_reads().items() if digest in self._large}
        self.facts.check(
            f"{name}: GETs per digest at the source", set(reads.values()) == {1} and reads.keys() == self._large, tally(reads)
        )
        for letter, requests in zip("ab", found.targets, strict=True):
            uploads = {digest: count for digest, count in count_uploads(requests).items() if digest in self._large}
            is_once = set(uploads.values()) == {1} and uploads.keys() == self._large
            self.facts.check(f"{name}: completed uploads per digest at target {letter}", is_once, tally(uploads))
            mounts = sum(one.method == "POST" and "mount=" in one.query and one.status == _CREATED for one in requests)
            expected = self._count_places() - len(self._large)
            self.facts.check(f"{name}: mounts at target {letter}", mounts == expected, f"{mounts} of {expected}")
        manifests = count_manifests(found)
        self.facts.check(f"{name}: PUTs of manifests", manifests == [self.images] * 2, manifests)

    def _check_repeats(self, found: Traffic) -> None:
        """Check that at most the content in flight moved twice after the death of a worker."""
        most = self.options.concurrency
        reads = {digest: count for digest, count in found.count_reads().items() if digest in self._large and count > 1}
        self.facts.check(f"after kill -9: digests read twice, at most {most}", is_few(reads, most), tally(reads) or 0)
        for letter, requests in zip("ab", found.targets, strict=True):
            uploads = {one: count for one, count in count_uploads(requests).items() if one in self._large and count > 1}
            name = f"after kill -9: digests uploaded twice to target {letter}, at most {most}"
            self.facts.check(name, is_few(uploads, most), tally(uploads) or 0)
        self.facts.state("after kill -9: PUTs of manifests", count_manifests(found))

    def _check_result(self, name: str, targets: Sequence[Target]) -> None:
        """Check all tags, a sample by skopeo, the lock file, and the exit status of `dist check`."""
        built = self.fleet.built
        wrong = [f"{repo}:{tag}" for (repo, tag), one in built.items() for to in targets if to.read(repo, tag) != root(one)]
        self.facts.check(f"{name}: tags with other bytes", not wrong, f"{len(wrong)} of {2 * self.images}")
        sample = sorted(built)[:: max(1, self.images // _SAMPLE)]
        differing = [
            f"{repo}:{tag}"
            for repo, tag in sample
            for to in targets
            if skopeo.raw(f"docker://{to.registry.host}/{repo}:{tag}") != root(built[repo, tag])
        ]
        self.facts.check(f"{name}: skopeo inspect --raw of {len(sample)} images", not differing, differing or "equal bytes")
        expected = {f"{to.host}/{repo}:{tag}": one.root.digest for (repo, tag), one in built.items() for to in targets}
        records = self.fleet.read_lock(name)
        locked = {reference: record["digest"] for reference, record in records.items() if record["mirrored"]}
        self.facts.check(f"{name}: lock file", locked == expected, f"{len(locked)} images of {len(expected)}")
        code, output = run_check(self.fleet, name)
        self.facts.check(
            f"{name}: dist check", code == 0, output.strip().splitlines()[-1] if output.strip() else f"status {code}"
        )

    def _await_progress(self, run: str, targets: Sequence[Target], *, share: float) -> None:
        """Wait until a share of the tags is at the first target."""
        wanted = share * self.images

        def has_progressed() -> bool:
            puts = sum(is_tag_put(one) for one in targets[0].registry.requests())
            return puts >= wanted or self.fleet.read_run(run)["state_type"] in ENDED

        if not poll_until(has_progressed, timeout_s=self.options.timeout):
            raise TimeoutError(f"the run has not set {wanted:.0f} tags")

    def _kill_worker(self, run: str) -> None:
        """Kill a worker with a shard, and wait until another worker carries out the shard."""
        victims: list[tuple[Machine, list[dict[str, Any]]]] = []

        def find() -> bool:
            shards = {one["id"]: one for one in self.fleet.list_shards(run) if one["state_type"] == "RUNNING"}
            found = [(machine, [shards[one] for one in machine.find_runs() if one in shards]) for machine in self.fleet.workers]
            victims[:] = [(machine, running) for machine, running in found if running]
            return bool(victims)

        poll_until(find, timeout_s=self.options.timeout)
        machine, lost = victims[0]
        killed, began = machine.kill(), time.monotonic()
        numbers = {one["parameters"]["shard"] for one in lost}
        self.facts.state("kill -9 of a worker", f"{machine.name}, {killed} processes, shards {sorted(numbers)}")

        dead = {one["id"] for one in lost}

        def find_again() -> list[dict[str, Any]]:
            shards = self.fleet.list_shards(run)
            return [one for one in shards if one["parameters"]["shard"] in numbers and one["id"] not in dead]

        def has_ended() -> bool:
            return self.fleet.read_run(run)["state_type"] in ENDED

        noticed = poll_until(lambda: bool(find_again()) or has_ended(), timeout_s=self.options.timeout)
        seconds = time.monotonic() - began
        name = f"time until the parent submits the shard again, at most {_TAKEOVER_S} s"
        self.facts.check(name, noticed and seconds <= _TAKEOVER_S, f"{seconds:.0f} s")
        poll_until(lambda: any(one["start_time"] for one in find_again()) or has_ended(), timeout_s=self.options.timeout)
        place = "which needs a free place of another worker"
        self.facts.state("time to takeover of the shard", f"{time.monotonic() - began:.0f} s, {place}")
        states = {one["state_type"] for one in self.fleet.list_shards(run) if one["id"] in dead}
        self.facts.check("state of the shard of the dead worker", states == {"CRASHED"}, ", ".join(sorted(states)))

    def _kill_parent(self, run: str) -> None:
        """Kill the process of the parent, and wait until Prefect shows the run as ended."""
        state = self.fleet.read_run(run)["state_type"]
        killed = kill_processes(self.fleet.control.find_processes(run))
        self.facts.check("kill -9 of the parent", killed and state == "RUNNING", f"{killed} processes, run was {state}")
        record = self.fleet.wait(run, timeout_s=self.options.timeout)
        self.facts.check("state of the dead parent", record["state_type"] == "CRASHED", record["state_name"])

    @property
    def _large(self) -> set[str]:
        """The digests of all content that is claimed."""
        return {digest for built in self.fleet.built.values() for digest, data in built.blobs.items() if is_large(data)}

    def _count_places(self) -> int:
        """Return the number of pairs of a repository and large content in the repository."""
        built = self.fleet.built.items()
        return len({(name, digest) for (name, _), one in built for digest, data in one.blobs.items() if is_large(data)})


def is_large(data: bytes) -> bool:
    """Return True if content is claimed."""
    return len(data) > CLAIMED_BYTES


def is_few(repeated: Counter[str] | dict[str, int], most: int) -> bool:
    """Return True if at most `most` digests moved more than once, and none more than twice."""
    return len(repeated) <= most and set(repeated.values()) <= {2}


def is_tag_put(request: Any) -> bool:
    """Return True if a request set a tag."""
    return request.method == "PUT" and "/manifests/" in request.path and request.status == _CREATED


def root(built: BuiltImage) -> bytes:
    """Return the bytes of the topmost manifest."""
    return built.manifests[-1].raw


def tally(counts: dict[str, int]) -> str:
    """Return how many digests have each count, such as "188 digests 1 time"."""
    found = sorted(Counter(counts.values()).items())
    return ", ".join(f"{digests} digests {count} x" for count, digests in found)


def count_uploads(requests: Iterable[Any]) -> Counter[str]:
    """Return the number of completed uploads of each blob."""
    puts = (one for one in requests if one.method == "PUT" and "/uploads/" in one.path and one.status == _CREATED)
    return Counter(parse_qs(one.query)["digest"][0] for one in puts)


def count_manifests(found: Traffic) -> list[int]:
    """Return the number of tags set at each target."""
    return [sum(map(is_tag_put, requests)) for requests in found.targets]


def run_check(fleet: Fleet, name: str) -> tuple[int, str]:
    """Run `dist check` for a configuration on the machine of the parents. Return the exit status and the output."""
    argv = [sys.executable, "-m", "prefect_dist.cli.main", "check", str(fleet.configuration(name)), "--direct"]
    argv += ["--concurrency", str(_CHECKS)]
    env = os.environ | fleet.control.make_environment(fleet.store)
    done = subprocess.run(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode, done.stdout


@contextmanager
def open_fleet(options: argparse.Namespace, scratch: Path, stack: ExitStack, facts: Facts) -> Iterator[Fleet]:
    """Run all servers and workers."""
    programs = find_programs()
    database = None if programs is None else stack.enter_context(postgresql(scratch / "postgresql", programs))
    facts.state("database of Prefect", "SQLite: PostgreSQL is not installed" if programs is None else "PostgreSQL")
    store = stack.enter_context(seaweedfs(scratch / "store"))
    api = ApiServer(scratch / "server", database)
    api.start()
    stack.callback(api.stop)
    source = stack.enter_context(FakeRegistry())
    built = build_images(options.images, base_bytes=options.base_bytes, own_bytes=options.layer_bytes)
    for (repository, tag), one in built.items():
        load(source, repository, one, tag)
    for method in ("GET", "HEAD"):
        source.inject(Fault(method=method, nth=None, action=Call(partial(time.sleep, options.delay))))
    machines = [
        Machine(name=f"worker-{number}", pool=SHARDS, directory=scratch / f"worker-{number}")
        for number in range(options.workers)
    ]
    control = Machine(name="control", pool=CONTROL, directory=scratch / "control")
    for machine in (control, *machines):
        stack.enter_context(run_machine(api.client, store, machine))
    deploy_flows(api.client)
    yield Fleet(api=api, source=source, store=store, scratch=scratch, built=built, control=control, workers=machines)


def parse_options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description="Prove that several workers share one mirror run.")
    parser.add_argument("--images", type=int, default=60, help="number of images (default: 60)")
    parser.add_argument("--workers", type=int, default=3, help="number of workers (default: 3)")
    parser.add_argument("--delay", type=float, default=0.2, help="seconds before each answer of a registry (default: 0.2)")
    parser.add_argument("--concurrency", type=int, default=4, help="tasks in flight of each process (default: 4)")
    parser.add_argument(
        "--grain",
        choices=("image", "descriptor"),
        default="image",
        help="tasks of the runs (default: image, which needs less CPU)",
    )
    parser.add_argument("--base-bytes", type=int, default=200_000, help="size of a shared layer")
    parser.add_argument("--layer-bytes", type=int, default=70_000, help="size of the layer of each image")
    parser.add_argument("--least-speedup", type=float, default=0.0, help="least speed-up that is right (default: 0)")
    parser.add_argument("--timeout", type=float, default=900, help="longest time of one run in seconds (default: 900)")
    parser.add_argument("--api-down", action="store_true", help="only: stop the Prefect server for two minutes")
    return parser.parse_args()


def main() -> None:
    """Carry out the proof, and exit with 1 if a fact is wrong."""
    options, facts = parse_options(), Facts()
    # An end by SIGTERM also stops all processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    scratch = Path(tempfile.mkdtemp(prefix="proof-"))
    scratch.chmod(0o711)  # PostgreSQL runs as another user
    began = time.monotonic()
    processes = f"{options.workers} workers, {options.concurrency} tasks in flight of each process"
    facts.state("conditions", f"{options.images} images x 2 targets; {processes}; grain {options.grain}")
    if options.images < _GOAL:
        facts.state("goal", f"{_GOAL} images need about an hour with a delay of 0.3 s on two cores, so this run has fewer")
    facts.state("delay", f"{options.delay:g} s before each answer of the source and of both targets")
    try:
        with ExitStack() as stack, open_fleet(options, scratch, stack, facts) as fleet:
            proof = Proof(options, fleet, facts)
            if options.api_down:
                proof.run_without_api()
            else:
                proof.run_many(proof.run_one())
                proof.run_faults()
            proof.finish()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    facts.state("time of the proof", f"{time.monotonic() - began:.0f} s")
    if facts.failed:
        sys.exit(f"{len(facts.failed)} facts are wrong: {'; '.join(facts.failed)}")


if __name__ == "__main__":
    main()
