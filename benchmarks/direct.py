"""Compare `dist fetch --direct` with `dist resolve`, with `skopeo copy` and with a floor (`make bench`).

The registry is nginx on loopback, as in `benchmarks.fetch`. The image layout is on the same disk as the store. Each time is the
time of a whole process, from its start to its end. CPU seconds are those of the process. The processes of one round run one
after the other, and the bars apply to the medians of the ratios. The exit status is 1 if a bar is missed.

Arguments select measurements by name: `start`, `bytes`, `layout`, `memory`. Without arguments, all are made.
"""

import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fetch import BIG, TINY, Case, format_times, meets_bar, repository_of
from prefect_dist.ocispec.units import size
from tests.peers.nginx import put, static_registry

SMALL = Case("3 KB in 2 layers", manifests=1, layers=2, layer_bytes=1000)
START_ROUNDS, BYTES_ROUNDS, LAYOUT_ROUNDS = 15, 7, 5
DIST = [sys.executable, "-m", "prefect_dist.cli.main"]
_MIB = 1024 * 1024
# Runs `dist`, and writes the peak memory to the file that the first argument names. `dist` ends with os._exit.
_WITH_PEAK = """
import os, sys
from pathlib import Path
path, end = Path(sys.argv.pop(1)), os._exit
def write_and_end(code):
    path.write_text(Path("/proc/self/status").read_text())
    end(code)
os._exit = write_and_end
from prefect_dist.cli.main import main
main()
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """The seconds of a process: wall time, and CPU time."""

    wall_s: float
    cpu_s: float


def main() -> None:
    """Measure, and compare with the bars."""
    with (
        tempfile.TemporaryDirectory(dir=".") as scratch,
        static_registry(Path(scratch) / "registry") as registry,
    ):
        bench = DirectBench(Path(scratch), registry.host)
        measurements: dict[str, Callable[[], list[bool]]] = {
            "start": lambda: [bench.compare_start(SMALL, bar=2)],
            "bytes": lambda: bench.compare_bytes(BIG, skopeo_bar=1.1, floor_bar=1.3),
            "layout": lambda: [bench.compare_layout(BIG, skopeo_bar=1.1)],
            "memory": lambda: [bench.compare_memory(BIG, TINY, bar_bytes=64 * _MIB)],
        }
        verdicts = [verdict for name in sys.argv[1:] or measurements for verdict in measurements[name]()]
    sys.exit(not all(verdicts))


class DirectBench:
    """Measures direct fetches, with files below one scratch directory."""

    def __init__(self, scratch: Path, host: str) -> None:
        self._scratch, self._host = scratch, host
        self._directories = itertools.count()
        self._digests: dict[Case, list[str]] = {}

    def compare_start(self, case: Case, *, bar: float) -> bool:
        """Compare the fetch of a small image with the resolution of its name. Both processes start Python."""
        self._publish(case)
        resolve, fetch = [], []
        for _ in range(START_ROUNDS):
            resolve.append(measure_process([*DIST, "resolve", self._name(case)]))
            fetch.append(self._measure_fetch(case))
        print(f"{case.name}: dist resolve {describe(resolve)}; dist fetch --direct {describe(fetch)}")
        return meets_bar("fetch --direct / resolve", compare_walls(fetch, resolve), bar)

    def compare_bytes(self, case: Case, *, skopeo_bar: float, floor_bar: float) -> list[bool]:
        """Compare the wall time of the fetch of a large image with skopeo's, and the CPU time with the floor's."""
        self._publish(case)
        floor, skopeo, fetch = [], [], []
        for _ in range(BYTES_ROUNDS):
            floor.append(self._measure_floor(case))
            skopeo.append(self._measure_skopeo(case))
            fetch.append(self._measure_fetch(case))
        print(
            f"{case.name}: read, hash, write {describe(floor)}; skopeo copy {describe(skopeo)}; "
            f"dist fetch --direct {describe(fetch)}"
        )
        cpu = [ours.cpu_s / least.cpu_s for ours, least in zip(fetch, floor, strict=True)]
        return [
            meets_bar("fetch --direct / skopeo copy", compare_walls(fetch, skopeo), skopeo_bar),
            meets_bar("CPU of fetch --direct / CPU of the floor", cpu, floor_bar),
        ]

    def compare_layout(self, case: Case, *, skopeo_bar: float) -> bool:
        """Compare the wall time of the fetch of a large image from an image layout with that of skopeo's copy.

        The copy of `dist` from layout to layout has no bar. It writes the bytes twice: to the store and to the other layout.
        """
        self._publish(case)
        layout = self._make_directory()
        measure_process(
            ["skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{self._name(case)}", f"oci:{layout}:v1"]
        )
        programs = {
            "skopeo copy": ["skopeo", "copy", "--quiet", f"oci:{layout}:v1", "oci:{new}:v1"],
            "dist fetch --direct": [*DIST, "--store", "{new}", "fetch", "--direct", f"oci:{layout}:v1"],
        }
        costs: dict[str, list[Cost]] = {name: [] for name in programs}
        for number in range(LAYOUT_ROUNDS):  # the order alternates: a run leaves work for the disk
            for name in list(programs)[:: -1 if number % 2 else 1]:
                costs[name].append(self._measure(programs[name]))
        copy = self._measure([*DIST, "--store", "{new}/s", "copy", "--direct", f"oci:{layout}:v1", "oci:{new}/l:v1"])
        shutil.rmtree(layout)
        figures = "; ".join(f"{name} {describe(measured)}" for name, measured in costs.items())
        print(f"{case.name} in an image layout: {figures}; dist copy --direct {describe([copy])}")
        skopeo, fetch = costs.values()
        return meets_bar("fetch --direct oci: / skopeo copy oci: oci:", compare_walls(fetch, skopeo), skopeo_bar)

    def compare_memory(self, big: Case, tiny: Case, *, bar_bytes: int) -> bool:
        """Compare the peak memory of a large and of a small fetch."""
        for case in (big, tiny):
            self._publish(case)
        large, small = self._measure_peak(big), self._measure_peak(tiny)
        print(f"peak memory: {size(large)} for {big.name}, {size(small)} for {tiny.name}")
        return meets_bar("difference of the peaks in MiB", [(large - small) / _MIB], bar_bytes / _MIB)

    def _publish(self, case: Case) -> None:
        if case not in self._digests:
            image = case.build()
            put(self._scratch / "registry", repository_of(case), image, "v1")
            self._digests[case] = image.descriptors

    def _name(self, case: Case) -> str:
        return f"{self._host}/{repository_of(case)}:v1"

    def _measure(self, arguments: Sequence[str]) -> Cost:
        """Measure a program that writes to a new directory, `{new}` in its arguments. The directory is removed."""
        directory = self._make_directory()
        cost = measure_process([argument.replace("{new}", str(directory)) for argument in arguments])
        shutil.rmtree(directory)
        return cost

    def _measure_fetch(self, case: Case) -> Cost:
        return self._measure([*DIST, "--store", "{new}", "fetch", "--direct", self._name(case)])

    def _measure_skopeo(self, case: Case) -> Cost:
        source = f"docker://{self._name(case)}"
        return self._measure(["skopeo", "copy", "--quiet", "--src-tls-verify=false", source, "oci:{new}:v1"])

    def _measure_floor(self, case: Case) -> Cost:
        directory, layers = self._make_directory(), self._digests[case][1 : case.layers + 1]
        program = [sys.executable, "-m", "benchmarks.work", "floor", self._host, repository_of(case), str(directory)]
        cost = measure_process([*program, *layers])
        shutil.rmtree(directory)
        return cost

    def _measure_peak(self, case: Case) -> int:
        store, status = self._make_directory(), self._scratch / "status"
        arguments = ["--store", str(store), "fetch", "--direct", self._name(case)]
        measure_process([sys.executable, "-c", _WITH_PEAK, str(status), *arguments])
        shutil.rmtree(store)
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) * 1024

    def _make_directory(self) -> Path:
        directory = self._scratch / f"run-{next(self._directories)}"
        directory.mkdir()
        return directory


def measure_process(arguments: Sequence[str]) -> Cost:
    """Run a program to its end, and return its cost."""
    began = time.perf_counter()
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit code {process.returncode}")
    return Cost(wall_s, usage.ru_utime + usage.ru_stime)


def compare_walls(ours: Sequence[Cost], theirs: Sequence[Cost]) -> list[float]:
    """Return the ratios of the wall times, by round."""
    return [one.wall_s / other.wall_s for one, other in zip(ours, theirs, strict=True)]


def describe(costs: Sequence[Cost]) -> str:
    """Return the wall times and the median of the CPU times as text."""
    return f"{format_times([cost.wall_s for cost in costs])}, {statistics.median(cost.cpu_s for cost in costs):.2f} s CPU"


if __name__ == "__main__":
    main()
