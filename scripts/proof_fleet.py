"""The machines of `scripts.proof_many_machines`: a Prefect server, workers with homes of their own, S3, and registries.

Everything runs on this machine. The workers have different homes and temporary directories, and no common content store on
disk. All processes of a worker are found by the `PREFECT_HOME` in their environment.
"""

import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import images
from tests.fakes.registry import FakeRegistry
from tests.images import BuiltImage
from tests.peers.prefect import PrefectServer
from tests.peers.processes import LOOPBACK, free_port, listening, poll_until, running
from tests.peers.registry import CncfRegistry, cncf_registry
from tests.peers.seaweedfs import S3Server

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
SHARDS, CONTROL = "dist", "control"
"""The work pool of the shards, and the work pool of the parents."""

_TAGS, _BASES = 5, 4
_POLL_S = 0.5
_SERVER = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
    "DO_NOT_TRACK": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A real registry behind a proxy that delays its answers. `host` is the address of the proxy."""

    host: str
    registry: CncfRegistry

    def read(self, repository: str, tag: str) -> bytes | None:
        """Return the bytes of a manifest from the registry, without the delay; None if the tag is missing."""
        url = f"http://{self.registry.host}/v2/{repository}/manifests/{tag}"
        request = urllib.request.Request(url, headers={"Accept": images.OCI_MANIFEST})
        try:
            with urllib.request.urlopen(request) as answer:  # noqa: S310 - as above
                return bytes(answer.read())
        except urllib.error.HTTPError:
            return None


@dataclass(slots=True)
class CpuMeter:
    """The CPU time of processes. `used_s` is the time at the last reading, and remains after the end of the processes."""

    pids: list[int]
    used_s: float = 0

    def read(self) -> None:
        """Read the time of the processes that still exist."""
        ticks = 0
        for pid in self.pids:
            try:
                # The name of the program, in parentheses, may have blanks. The times are the 14th and the 15th field.
                user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            except OSError:
                return
            ticks += int(user) + int(system)
        self.used_s = ticks / os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Machine:
    """A worker with a home of its own, which carries out one run of the work pool `pool` at a time."""

    name: str
    pool: str
    directory: Path

    @property
    def home(self) -> Path:
        """The `PREFECT_HOME` of the worker and of its flow runs."""
        return self.directory / "prefect"

    def make_environment(self, store: S3Server) -> dict[str, str]:
        """Create the directories of the machine. Return its environment, with the credentials for the content store."""
        paths = {"HOME": self.directory / "home", "TMPDIR": self.directory / "tmp", "PREFECT_HOME": self.home}
        for path in paths.values():
            path.mkdir(parents=True, exist_ok=True)
        return {name: str(path) for name, path in paths.items()} | {
            "AWS_ACCESS_KEY_ID": store.key,
            "AWS_SECRET_ACCESS_KEY": store.secret,
            "AWS_ENDPOINT_URL": store.endpoint,
            "AWS_DEFAULT_REGION": store.region,
            "DO_NOT_TRACK": "1",
        }

    def find_processes(self, run: str | None = None) -> list[int]:
        """Return the processes of the worker and of its flow runs, or only those of one flow run."""
        wanted = {f"PREFECT_HOME={self.home}".encode()}
        if run is not None:
            wanted.add(f"PREFECT__FLOW_RUN_ID={run}".encode())
        return [pid for pid, environment in _read_environments() if wanted <= environment]

    def find_runs(self) -> set[str]:
        """Return the flow runs that have a process on this machine."""
        home, key = f"PREFECT_HOME={self.home}".encode(), b"PREFECT__FLOW_RUN_ID="
        mine = [environment for _, environment in _read_environments() if home in environment]
        return {entry.removeprefix(key).decode() for environment in mine for entry in environment if entry.startswith(key)}

    def kill(self) -> int:
        """Kill the worker and its flow runs with SIGKILL, and return the number of processes."""
        return kill_processes(self.find_processes())


@dataclass(slots=True)
class Fleet:
    """The running servers and workers. `built` are the images by repository and tag."""

    api: "ApiServer"
    source: FakeRegistry
    store: S3Server
    scratch: Path
    built: Mapping[tuple[str, str], BuiltImage]
    control: Machine
    workers: list[Machine] = field(default_factory=list)

    @property
    def server(self) -> PrefectServer:
        """The API of Prefect."""
        return self.api.client

    def configure(self, targets: Sequence[Target], name: str) -> str:
        """Write the configuration of a mirror to two targets, and return its text. Each name has its own content store."""
        document = {
            "name": name,
            "store": f"{self.store.url}/{name}",
            "lock": str(self.control.directory / f"{name}.lock.json"),
            "sync": [{"type": "registry", "source": self.source.host, "targets": [one.host for one in targets]}],
        }
        text = json.dumps(document)
        self.configuration(name).write_text(text)
        return text

    def configuration(self, name: str) -> Path:
        """Return the path of a configuration on the machine of the parents."""
        return self.control.directory / f"{name}.json"

    def read_lock(self, name: str) -> dict[str, Any]:
        """Return the images of a lock file."""
        found: dict[str, Any] = json.loads((self.control.directory / f"{name}.lock.json").read_text())["images"]
        return found

    def start(self, config: str, *, workers: int, concurrency: int, grain: str) -> str:
        """Start a mirror run, and return its ID."""
        parameters = {"config": config, "workers": workers, "concurrency": concurrency, "grain": grain}
        return self.server.start("mirror", parameters)

    def read_run(self, run: str) -> dict[str, Any]:
        """Return the record of a flow run. A server that is away for a moment is asked again."""
        found: list[dict[str, Any]] = []

        def read() -> bool:
            try:
                found.append(self.server.get(f"/flow_runs/{run}"))
            except OSError:
                return False
            return True

        if not poll_until(read, timeout_s=300):
            raise TimeoutError("the Prefect server does not answer")
        return found[0]

    def measure_cpu(self, run: str) -> "CpuMeter":
        """Return a meter for the process of a parent. Wait until the process runs."""
        found: list[int] = []

        def is_found() -> bool:
            found[:] = self.control.find_processes(run)
            return bool(found) or self.read_run(run)["state_type"] in ENDED

        poll_until(is_found, timeout_s=60)
        return CpuMeter(found)

    def wait(self, run: str, *, timeout_s: float, on_poll: Callable[[], object] = bool) -> dict[str, Any]:
        """Wait until a flow run has ended, and return its record. Call `on_poll` at each look.

        Raises:
            TimeoutError: the run takes too long.
        """
        deadline = time.monotonic() + timeout_s
        while (record := self.read_run(run))["state_type"] not in ENDED:
            on_poll()
            if time.monotonic() > deadline:
                raise TimeoutError(f"flow run {run} is still {record['state_type']}")
            time.sleep(_POLL_S)
        return record

    def list_shards(self, run: str) -> list[dict[str, Any]]:
        """Return the records of the shards of a mirror run."""
        body = {"flows": {"name": {"any_": ["mirror-shard"]}}, "sort": "EXPECTED_START_TIME_DESC", "limit": 200}
        return [one for one in self.server.post("/flow_runs/filter", body) if one["parameters"]["run"] == run]

    def list_unfinished(self) -> list[str]:
        """Return the flow runs that have not ended."""
        body = {"flow_runs": {"state": {"type": {"not_any_": list(ENDED)}}}, "limit": 200}
        return [f"{one['name']}: {one['state_name']}" for one in self.server.post("/flow_runs/filter", body)]

    @contextmanager
    def open_targets(self, name: str, delay_s: float) -> Iterator[list[Target]]:
        """Run two registries whose answers are delayed."""
        with ExitStack() as stack:
            yield [stack.enter_context(_delayed_registry(self.scratch / f"{name}-{letter}", delay_s)) for letter in "ab"]


def build_images(count: int, *, base_bytes: int, own_bytes: int) -> dict[tuple[str, str], BuiltImage]:
    """Build images of a config, two layers of one of four bases, and a layer of their own; five images per repository."""
    bases = [images.image(9000 + number, layers=2, layer_bytes=base_bytes) for number in range(_BASES)]
    return {
        (f"team{number // _TAGS % 7}/app{number // _TAGS:03}", f"v{number % _TAGS}"): _build_on(
            bases[number // _TAGS % _BASES], 10_000 + number, own_bytes
        )
        for number in range(count)
    }


def _build_on(base: BuiltImage, seed: int, own_bytes: int) -> BuiltImage:
    own = images.image(seed, layers=1, layer_bytes=own_bytes)
    below = json.loads(base.manifests[-1].raw)["layers"]
    layers = {layer["digest"]: base.blobs[layer["digest"]] for layer in below}
    return images.with_manifest(
        own, lambda document: document.update(layers=below + document["layers"]), blobs=own.blobs | layers
    )


class ApiServer:
    """A Prefect server that can stop and start again with the same port and database. Default database: SQLite in `home`."""

    def __init__(self, home: Path, database: str | None) -> None:
        self._home, self._database, self._port = home, database, free_port()
        self._running = ExitStack()
        self.client = PrefectServer(f"http://{LOOPBACK}:{self._port}/api")

    def start(self) -> None:
        """Start the server."""
        self._home.mkdir(parents=True, exist_ok=True)
        url = self.client.url
        env = _SERVER | {"PREFECT_HOME": str(self._home), "PREFECT_UI_API_URL": url}
        if self._database is not None:
            env["PREFECT_API_DATABASE_CONNECTION_URL"] = self._database
        argv = [sys.executable, "-m", "prefect", "server", "start", "--host", LOOPBACK, "--port", str(self._port)]
        log = self._home / "server.log"
        self._running.enter_context(running(argv, ready=lambda: _is_healthy(url), log=log, env=env))

    def stop(self) -> None:
        """Stop the server, if it runs."""
        self._running.close()


@contextmanager
def run_machine(server: PrefectServer, store: S3Server, machine: Machine) -> Iterator[None]:
    """Run the worker of a machine. All its processes end with the block, also those of flow runs."""
    env = machine.make_environment(store) | {"PREFECT_API_URL": server.url, "PREFECT_WORKER_QUERY_SECONDS": "1"}
    argv = [sys.executable, "-m", "prefect", "worker", "start", "--type", "process"]
    argv += ["--pool", machine.pool, "--name", machine.name, "--limit", "1"]
    try:
        log, cwd = machine.directory / "worker.log", machine.directory / "home"
        with running(argv, ready=lambda: _polls(server, machine), log=log, env=env, cwd=cwd):
            yield
    finally:
        machine.kill()


def deploy_flows(server: PrefectServer) -> None:
    """Create the deployments of the parent and of the shards, in their work pools."""
    for name, module, pool in (("mirror", "mirror", CONTROL), ("mirror-shard", "mirror_shard", SHARDS)):
        flow = server.post("/flows/", {"name": name})["id"]
        entrypoint = f"prefect_dist.flows.{module}.{module}"
        deployment = {"name": name, "flow_id": flow, "entrypoint": entrypoint, "work_pool_name": pool, "pull_steps": []}
        server.post("/deployments/", deployment)


def kill_processes(pids: Sequence[int]) -> int:
    """Kill processes with SIGKILL, and return the number of processes that existed."""
    killed = 0
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        killed += 1
    return killed


def read_cpu_s() -> float:
    """Return the CPU time that all processes of this machine have used since its start."""
    user, nice, system = Path("/proc/stat").read_text().split()[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def _read_environments() -> Iterator[tuple[int, set[bytes]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                yield int(entry.name), set((entry / "environ").read_bytes().split(b"\0"))
            except OSError:
                continue  # the process ended


@contextmanager
def _delayed_registry(directory: Path, delay_s: float) -> Iterator[Target]:
    port = free_port()
    with cncf_registry(directory) as registry:
        argv = [
            sys.executable,
            "-m",
            "benchmarks.delay",
            str(port),
            registry.host.rpartition(":")[2],
            str(round(delay_s * 1000)),
        ]
        with running(argv, ready=listening(port), log=Path(os.devnull)):
            yield Target(host=f"{LOOPBACK}:{port}", registry=registry)


def _polls(server: PrefectServer, machine: Machine) -> bool:
    try:
        workers = server.post(f"/work_pools/{machine.pool}/workers/filter", {})
    except OSError:
        return False
    return any(one["name"] == machine.name and one["status"] == "ONLINE" for one in workers)


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=1) as answer:  # noqa: S310 - our own server
            return bool(answer.status == 200)  # noqa: PLR2004
    except OSError:
        return False
