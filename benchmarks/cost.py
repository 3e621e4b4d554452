"""Measure the CPU time, the requests and the database of a mirror of 200 small images (`make bench`).

The source and the targets are real registries (CNCF distribution) on loopback. Each round has a flow of tasks that do nothing,
a first mirror, and a repeated mirror without a change. The bars apply to the medians, see docs/explanation/performance.md. The
exit status is 1 if a bar is missed.
"""

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fetch import format_times, meets_bar, run_work
from benchmarks.mirror import REPOSITORIES, TAGS, WORKERS, fill_registry, repository_name
from tests.peers.prefect import PrefectServer, prefect_server
from tests.peers.registry import CncfRegistry, cncf_registry

ROUNDS = 3
MOST_REQUESTS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The cost of a run: CPU seconds of the run's process and of the Prefect server, task runs, requests, database bytes."""

    own_s: float
    server_s: float
    tasks: int
    requests: int
    database_bytes: int


class CostBench:
    """Measures runs with one Prefect server."""

    def __init__(self, scratch: Path, source: CncfRegistry, server: PrefectServer) -> None:
        self._scratch, self._source, self._server = scratch, source, server
        self._runs = 0

    def measure_round(self) -> tuple[Cost, Cost, Cost, float]:
        """Return the costs of a first mirror, of a repeated mirror, and of an empty flow; and the CPU seconds of imports."""
        self._runs += 1
        directory = self._scratch / f"run-{self._runs}"
        with cncf_registry(directory / "registry") as target:
            config = directory / "mirror.yaml"
            names = [repository_name(number) for number in range(REPOSITORIES)]
            entries = [{"source": f"{self._source.host}/{one}", "target": f"{target.host}/{one}"} for one in names]
            config.write_text(json.dumps({"sync": [{**entry, "type": "repository"} for entry in entries]}))
            mirror = "mirror", str(config), str(directory / "store"), WORKERS
            first = self._measure(target, *mirror)
            again = self._measure(target, *mirror)
            empty = self._measure(target, "noop", str(first.tasks), WORKERS)
        imports = run_work(self._server.url, "imports", "prefect_dist.flows.mirror").cpu_s
        return first, again, empty, imports

    def _measure(self, target: CncfRegistry, *work: str) -> Cost:
        registries, database = (self._source, target), self._scratch / "prefect" / "prefect.db"
        requests = sum(len(one.requests()) for one in registries)
        server_s, size, tasks = _cpu_s(self._server), _size(database), self._count_tasks()
        own_s = run_work(self._server.url, *work).cpu_s
        return Cost(
            own_s=own_s,
            server_s=_cpu_s(self._server) - server_s,
            tasks=self._count_tasks() - tasks,
            requests=sum(len(one.requests()) for one in registries) - requests,
            database_bytes=_size(database) - size,
        )

    def _count_tasks(self) -> int:
        return int(self._server.post("/task_runs/count", {}))


def _cpu_s(server: PrefectServer) -> float:
    """Return the CPU seconds of the process of a server, which is found by its port."""
    port = server.ui.rpartition(":")[2].encode()
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (directory / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"server" in arguments and port in arguments:
            user, system = (directory / "stat").read_text().rpartition(") ")[2].split()[11:13]
            return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    raise SystemExit(f"{server.url}: no process found")


def _size(database: Path) -> int:
    return sum(one.stat().st_size for one in database.parent.glob(f"{database.name}*"))


@contextmanager
def _bench() -> Iterator[CostBench]:
    with (
        tempfile.TemporaryDirectory(dir=".") as scratch,
        cncf_registry(Path(scratch) / "source") as source,
        prefect_server(Path(scratch) / "prefect") as server,
    ):
        fill_registry(source.host)
        yield CostBench(Path(scratch), source, server)


def main() -> None:
    """Measure, and compare with the bars."""
    with _bench() as bench:
        rounds = [bench.measure_round() for _ in range(ROUNDS)]
    for name, costs in zip(
        ("first mirror", "repeated mirror", "tasks that do nothing"), zip(*rounds, strict=True), strict=False
    ):
        _print_costs(name, costs)
    first, again, empty, imports = zip(*rounds, strict=True)
    print(f"imports: CPU {format_times(list(imports))}")
    met = (
        meets_bar("first mirror / empty tasks, CPU", [a.own_s / b.own_s for a, b in zip(first, empty, strict=True)], 1.8),
        meets_bar("repeated mirror / imports, CPU", [a.own_s / b for a, b in zip(again, imports, strict=True)], 1.2),
        meets_bar("requests of the first mirror", [float(one.requests) for one in first], MOST_REQUESTS),
    )
    sys.exit(not all(met))


def _print_costs(name: str, costs: tuple[Cost, ...]) -> None:
    own, server = format_times([one.own_s for one in costs]), format_times([one.server_s for one in costs])
    size = statistics.median(one.database_bytes for one in costs) / 1_000_000
    print(
        f"{REPOSITORIES * TAGS} images, {name}: CPU {own}, server {server}; {costs[0].tasks} task runs, "
        f"{costs[0].requests} requests, {size:.1f} MB of database"
    )


if __name__ == "__main__":
    main()
