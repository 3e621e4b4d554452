"""Compare the start of `dist fetch` with the imports that it cannot avoid (`make bench`).

A fetch of a small image from a registry on loopback is measured in three situations: the local Prefect server runs (warm), no
server runs (first), and there is no database (new). The floors are `from prefect import flow, task` and `create_app()` of
Prefect's server. Command and floors run one after the other in each round, and a bar applies to the median of the ratios of all
rounds. CPU seconds include those of the server until the end of the command. The exit status is 1 if a bar is missed.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fetch import format_times, meets_bar
from prefect_dist.cli import local_server, local_state
from tests import images
from tests.fakes.registry import FakeRegistry

ROUNDS = 5
_IMPORT = "from prefect import flow, task"
_CREATE_APP = "from prefect.server.api.server import create_app; create_app()"
_STOP_S = 30.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Times:
    """Wall and CPU seconds of a command."""

    wall: float
    cpu: float


def main() -> None:
    """Measure, and compare with the bars."""
    with tempfile.TemporaryDirectory(dir=".", prefix=".bench-") as scratch, FakeRegistry() as registry:
        images.load(registry, "app", images.image(1, layers=2), "v1")
        bench = StartBench(Path(scratch).absolute(), f"{registry.host}/app:v1")
        try:
            verdicts = bench.compare()
        finally:
            bench.stop()
    sys.exit(not all(verdicts))


class StartBench:
    """Measures commands with their files in one scratch directory."""

    def __init__(self, scratch: Path, reference: str) -> None:
        self._home, self._store, self._reference = scratch / "prefect", scratch / "store", reference
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        self._environment = {**kept, "PREFECT_HOME": str(self._home), "DIST_SERVER_IDLE": "10m"}

    def compare(self) -> list[bool]:
        """Measure all rounds, print the times, and return True for each bar that is met."""
        self.fetch()  # copies files and compiles modules
        rounds = [self._measure_round() for _ in range(ROUNDS)]
        for name in rounds[0]:
            walls, cpus = [one[name].wall for one in rounds], [one[name].cpu for one in rounds]
            print(f"{name}: {format_times(walls)}, CPU {format_times(cpus)}")
        warm = [one["warm"].wall / one["import"].wall for one in rounds]
        first = [one["first"].wall / (1.5 * one["create_app"].wall + one["warm"].wall) for one in rounds]
        new = [one["new"].wall / (2.5 * one["create_app"].wall + one["warm"].wall) for one in rounds]
        return [
            meets_bar("warm / import", warm, 1.7),
            meets_bar("first / (1.5 create_app + warm)", first, 1.0),
            meets_bar("new / (2.5 create_app + warm)", new, 1.0),
        ]

    def _measure_round(self) -> dict[str, Times]:
        imports, warm = self._run([sys.executable, "-c", _IMPORT]), self.fetch()
        self.stop()
        app, first = self._run([sys.executable, "-c", _CREATE_APP]), self.fetch()
        self.stop()
        shutil.rmtree(self._home)
        return {"import": imports, "warm": warm, "create_app": app, "first": first, "new": self.fetch()}

    def fetch(self) -> Times:
        """Measure a fetch into a new store."""
        shutil.rmtree(self._store, ignore_errors=True)
        command = [sys.executable, "-m", "prefect_dist.cli.main", "--store", str(self._store), "fetch", self._reference]
        before = self._server_cpu()
        times = self._run(command)
        return Times(times.wall, times.cpu + self._server_cpu() - before)

    def stop(self) -> None:
        """End the local server."""
        if self._home.exists():
            local_server.stop_server(self._home, answer_s=_STOP_S, force=True)

    def _server_cpu(self) -> float:
        state = local_state.read_state(self._home) if self._home.exists() else None
        if state is None or not state.is_process_running():
            return 0
        fields = Path(f"/proc/{state.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def _run(self, command: list[str]) -> Times:
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, env=self._environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
        return Times(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


if __name__ == "__main__":
    main()
