"""Measure the CPU time, the requests and the database of a mirror of small images (`make bench`).

    python -m benchmarks.cost          200 images: three rounds, compared with the bars
    python -m benchmarks.cost 2000     another number of images: one round

The source and the targets are real registries (CNCF distribution) on loopback. Each round has a flow of tasks that do nothing,
a first mirror, a repeated mirror without a change, a first mirror with one task run per image, and a direct first mirror. A
measurement ends when the server has written all events of the run, so that each run pays for its own events. The bars apply to
the medians, see docs/explanation/performance.md. The exit status is 1 if a bar is missed.
"""

import json
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fetch import format_times, meets_bar, run_work
from benchmarks.mirror import REPOSITORIES, TAGS, WORKERS, fill_registry, repository_name
from tests.peers.prefect import PrefectServer, prefect_server
from tests.peers.registry import CncfRegistry, cncf_registry

ROUNDS = 3
# The server writes its last events one second after the last event of a run.
_SERVER = {"PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "1"}
_QUIET_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The cost of a run.

    `seconds` is the run time. `own_s` and `server_s` are CPU seconds of the process of the run and of the Prefect server.
    """

    seconds: float
    own_s: float
    server_s: float
    tasks: int
    requests: int
    database_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """The costs of one round. `imports_s` is the CPU time of the imports of a mirror."""

    first: Cost
    again: Cost
    empty: Cost
    by_image: Cost
    direct: Cost
    imports_s: float


class CostBench:
    """Measures runs with one Prefect server."""

    def __init__(self, scratch: Path, source: CncfRegistry, server: PrefectServer, *, repositories: int) -> None:
        self._scratch, self._source, self._server = scratch, source, server
        self._names = [repository_name(number) for number in range(repositories)]
        self._runs = 0

    def measure_round(self) -> Round:
        """Measure each kind of run."""
        with self._new_target() as (target, mirror):
            first = self._measure(target, "mirror", *mirror)
            again = self._measure(target, "mirror", *mirror)
            empty = self._measure(target, "noop", str(first.tasks), WORKERS)
        with self._new_target(grain="image") as (target, mirror):
            by_image = self._measure(target, "mirror", *mirror)
        with self._new_target() as (target, mirror):
            direct = self._measure(target, "direct", *mirror)
        imports_s = run_work(self._server.url, "imports", "prefect_dist.flows.mirror").cpu_s
        return Round(first=first, again=again, empty=empty, by_image=by_image, direct=direct, imports_s=imports_s)

    @contextmanager
    def _new_target(self, **settings: str) -> Iterator[tuple[CncfRegistry, tuple[str, str, str]]]:
        """Start an empty registry. Yield the registry, and the arguments of a mirror with these settings."""
        self._runs += 1
        directory = self._scratch / f"run-{self._runs}"
        with cncf_registry(directory / "registry") as target:
            config = directory / "mirror.yaml"
            entries = [{"source": f"{self._source.host}/{one}", "target": f"{target.host}/{one}"} for one in self._names]
            sync = [{**entry, "type": "repository"} for entry in entries]
            config.write_text(json.dumps({"sync": sync, **settings}))
            yield target, (str(config), str(directory / "store"), WORKERS)

    def _measure(self, target: CncfRegistry, *work: str) -> Cost:
        registries, database = (self._source, target), self._scratch / "prefect" / "prefect.db"
        requests = sum(len(one.requests()) for one in registries)
        server_s, size, tasks = _cpu_s(self._server), _size(database), self._count_tasks()
        done = run_work(self._server.url, *work)
        self._await_events()
        return Cost(
            seconds=done.seconds,
            own_s=done.cpu_s,
            server_s=_cpu_s(self._server) - server_s,
            tasks=self._count_tasks() - tasks,
            requests=sum(len(one.requests()) for one in registries) - requests,
            database_bytes=_size(database) - size,
        )

    def _count_tasks(self) -> int:
        return int(self._server.post("/task_runs/count", {}))

    def _await_events(self) -> None:
        """Wait until the server writes no more events."""
        count, since = -1, time.monotonic()
        while time.monotonic() - since < _QUIET_S:
            time.sleep(_QUIET_S / 6)
            if (now := self._server.post("/events/filter", {"limit": 1})["total"]) != count:
                count, since = now, time.monotonic()


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
    """Return the size of a database in bytes, after its write-ahead log is written back."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return database.stat().st_size


@contextmanager
def _bench(repositories: int) -> Iterator[CostBench]:
    with (
        tempfile.TemporaryDirectory(dir=".") as scratch,
        cncf_registry(Path(scratch) / "source") as source,
        prefect_server(Path(scratch) / "prefect", **_SERVER) as server,
    ):
        fill_registry(source.host, repositories)
        yield CostBench(Path(scratch), source, server, repositories=repositories)


def main() -> None:
    """Measure. Compare with the bars, unless the arguments name a number of images."""
    repositories = int(sys.argv[1]) // TAGS if len(sys.argv) > 1 else REPOSITORIES
    with _bench(repositories) as bench:
        rounds = [bench.measure_round() for _ in range(ROUNDS if repositories == REPOSITORIES else 1)]
    for name in ("first", "again", "by_image", "direct", "empty"):
        _print_costs(name, [getattr(one, name) for one in rounds])
    print(f"imports: CPU {format_times([one.imports_s for one in rounds])}")
    if repositories == REPOSITORIES:
        sys.exit(not _meet_bars(rounds))


def _meet_bars(rounds: Sequence[Round]) -> bool:
    """Print the ratios and the bars. Return True if all bars are met."""
    met = (
        meets_bar("first / empty, CPU", [one.first.own_s / one.empty.own_s for one in rounds], 1.8),
        meets_bar("again / imports, CPU", [one.again.own_s / one.imports_s for one in rounds], 1.2),
        meets_bar("first, requests", [float(one.first.requests) for one in rounds], 2000),
        meets_bar("by_image, task runs", [float(one.by_image.tasks) for one in rounds], 250),
        meets_bar(
            "by_image / first, database", [one.by_image.database_bytes / one.first.database_bytes for one in rounds], 0.25
        ),
        meets_bar("by_image / first, time", [one.by_image.seconds / one.first.seconds for one in rounds], 0.6),
        meets_bar("direct / by_image, time", [one.direct.seconds / one.by_image.seconds for one in rounds], 1),
    )
    return all(met)


def _print_costs(name: str, costs: list[Cost]) -> None:
    times = (
        f"{what} {format_times(values)}"
        for what, values in (
            ("time", [one.seconds for one in costs]),
            ("CPU", [one.own_s for one in costs]),
            ("server", [one.server_s for one in costs]),
        )
    )
    size = statistics.median(one.database_bytes for one in costs) / 1_000_000
    print(f"{name}: {', '.join(times)}; {costs[0].tasks} task runs, {costs[0].requests} requests, {size:.1f} MB of database")


if __name__ == "__main__":
    main()
