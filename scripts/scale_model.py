"""Compute the cost of large mirrors from measured costs: the tables of docs/explanation/scale.md.

    python -m scripts.scale_model            print the tables
    python -m scripts.scale_model --write    write the tables into the page

Each constant names its source. The model adds up costs per image; it has no queues and no contention. So its hours are lower
limits. docs/explanation/scale.md states the assumptions.
"""

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from prefect_dist.mirror.hosts_file import MAX_CONCURRENCY
from prefect_dist.mirror.shards import MOST_TASKS

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "explanation" / "scale.md"
IMAGES, WORKERS = (10_000, 100_000, 1_000_000), (1, 3, 10, 30, 100)
_REGION = re.compile(r"(<!-- generated: scale (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_MEBI = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A number of the model. `quote` is text with this number on the page `page`; an assumption has no page."""

    name: str
    value: float
    shown: str
    source: str
    page: str | None = None
    quote: str = ""


_PERFORMANCE, _SCHEDULE, _SCALE = "explanation/performance.md", "how-to/schedule-and-limit.md", "explanation/scale.md"
_BY_IMAGE = "| 2,000 images, `image` | 184 | 59 | 34 | 52 MB | 2,031 |"
_BY_DESCRIPTOR = "| 200 images, `descriptor` | 20 | 9.6 | 8.6 | 18 MB | 824 |"
_UNCHANGED = "| nothing to do: 3 tasks, 420 requests | 2.0 | 0.5 | 0.3 | 0.3 |"
_IMPORTS = "| imports | 1 | | 1.3 |"
_PARENT = "| memory of the parent per image | 3.7 kB |"
_LOCK = "| lock file | 430 bytes |"
_LOCK_CPU = "| CPU to read and write the lock file twice | 0.040 ms |"

IMPORTS_S = 1.3
START_S = Input(
    name="start of a shard, CPU",
    value=1.8,
    shown="1.8 s",
    source="a whole `dist fetch` of a small image",
    page=_PERFORMANCE,
    quote="| fetch with a running server | 1.8 (1.6 to 2.1) | 1.8",
)
POLL_S = Input(
    name="wait until a worker finds a shard",
    value=5,
    shown="5 s",
    source="computed: half of Prefect's default for `PREFECT_WORKER_QUERY_SECONDS`, 10 s",
)
REQUESTS = Input(
    name="requests per new image, both registries",
    value=19_202 / 2000,
    shown="9.6",
    source="2,000 images",
    page=_PERFORMANCE,
    quote="2,000 small images (200 repositories of 10 tags, 19,202 requests)",
)
PLAN_REQUESTS = Input(
    name="requests per unchanged image",
    value=420 / 200,
    shown="2.1",
    source="200 images, nothing to do",
    page=_PERFORMANCE,
    quote=_UNCHANGED,
)
PLAN_CPU_S = Input(
    name="planning per image, CPU",
    value=(2.0 - IMPORTS_S) / 200,
    shown="3.5 ms",
    source="200 images, nothing to do, without the imports",
    page=_PERFORMANCE,
    quote=_UNCHANGED,
)
SHARD_TASKS = Input(
    name="descriptors and publications per image",
    value=824 / 200,
    shown="4.1",
    source="200 images",
    page=_PERFORMANCE,
    quote=_BY_DESCRIPTOR,
)
BYTE_CPU_S = Input(
    name="CPU per byte, received and sent",
    value=(4 + 6.5) / 2 / (1024 * _MEBI),
    shown="5.25 s per GiB",
    source="`dist copy --direct` of 1 GiB from layout to layout, the middle of 4 to 6.5 s",
    page=_PERFORMANCE,
    quote="layout to layout writes the bytes twice, to the store and to the target, and takes 4 to 6.5 s of CPU",
)
BASE_MEMORY = Input(
    name="memory of a process without images",
    value=104 * _MEBI,
    shown="104 MiB",
    source="a fetch of 1 MiB",
    page=_PERFORMANCE,
    quote="| of 1 MiB | 104 MiB |",
)
PARENT_MEMORY = Input(
    name="memory of the parent per image",
    value=3670,
    shown="3.7 kB",
    source="a command with 100,000 tags",
    page=_SCALE,
    quote=_PARENT,
)
LOCK_BYTES = Input(name="lock file per image", value=430, shown="430 bytes", source="100,000 images", page=_SCALE, quote=_LOCK)
LOCK_CPU_S = Input(
    name="lock file per image and run, CPU",
    value=40e-6,
    shown="0.040 ms",
    source="100,000 images, read and written twice",
    page=_SCALE,
    quote=_LOCK_CPU,
)
EVENTS = Input(
    name="events per task run",
    value=3,
    shown="3",
    source="counted with Prefect 3.9.1: Pending, Running, Completed",
)
LATENCY_S = Input(name="latency of a request", value=0.1, shown="100 ms", source="assumption")
IN_FLIGHT = Input(name="concurrency of a process", value=16, shown="16", source="assumption: that of the benchmarks")
BANDWIDTH = Input(
    name="network of a worker, in each direction", value=125e6, shown="1 Gbit/s", source="assumption: each worker has its own"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrainCost:
    """The costs of a new small image with one grain."""

    cpu_s: Input
    server_s: Input
    task_runs: Input
    database: Input


def _grain(name: str, images: int, quote: str, figures: tuple[float, float, float, float]) -> GrainCost:
    """Return the costs per image from a row of the page on performance: CPU of the run and of the server, MB, task runs."""
    own, server, megabytes, tasks = figures

    def make(what: str, value: float, shown: str) -> Input:
        source = f"{images:,} images" + (", without the imports" if "process" in what else "")
        return Input(name=f"`{name}`: {what}", value=value, shown=shown, source=source, page=_PERFORMANCE, quote=quote)

    cpu = (own - IMPORTS_S) / images
    return GrainCost(
        cpu_s=make("CPU in the process of the run per image", cpu, f"{cpu * 1000:.0f} ms"),
        server_s=make("CPU of the Prefect server per image", server / images, f"{server / images * 1000:.0f} ms"),
        task_runs=make("task runs per image", tasks / images, f"{tasks / images:.1f}"),
        database=make("database per image", megabytes * 1e6 / images, f"{megabytes * 1000 / images:.0f} kB"),
    )


GRAINS = {
    "image": _grain("image", 2000, _BY_IMAGE, (59, 34, 52, 2031)),
    "descriptor": _grain("descriptor", 200, _BY_DESCRIPTOR, (9.6, 8.6, 18, 824)),
}
INPUTS = (
    *(one for cost in GRAINS.values() for one in (cost.cpu_s, cost.server_s, cost.task_runs, cost.database)),
    REQUESTS,
    PLAN_REQUESTS,
    PLAN_CPU_S,
    SHARD_TASKS,
    START_S,
    POLL_S,
    BYTE_CPU_S,
    BASE_MEMORY,
    PARENT_MEMORY,
    LOCK_BYTES,
    LOCK_CPU_S,
    EVENTS,
    LATENCY_S,
    IN_FLIGHT,
    BANDWIDTH,
)


@dataclass(frozen=True, slots=True)
class Duration:
    """The duration of a first mirror in seconds, and the part that limits it."""

    seconds: float
    limit: str


def count_shards(images: int, workers: int) -> int:
    """Return the number of shards of a first mirror: three per worker, and at most `MOST_TASKS` tasks each."""
    return 0 if workers == 1 else max(3 * workers, ceil(images * SHARD_TASKS.value / MOST_TASKS))


def compute_duration(images: int, workers: int, cost: GrainCost, *, new_bytes: float) -> Duration:
    """Return the duration of a first mirror of images with `new_bytes` bytes of new content each."""
    if workers == 1:
        return _compute_undivided(images, cost, new_bytes)
    in_flight = min(IN_FLIGHT.value * workers, MAX_CONCURRENCY)  # the parent plans with the requests of all workers
    plan_s = images * (max(PLAN_CPU_S.value, PLAN_REQUESTS.value * LATENCY_S.value / in_flight) + LOCK_CPU_S.value)
    server_s = images * cost.server_s.value
    work_s = images / workers * _transfer_s(cost, new_bytes)
    work_s += ceil(count_shards(images, workers) / workers) * (START_S.value + POLL_S.value)
    limit = "p" if plan_s > max(work_s, server_s) else "w" if work_s > server_s else "s"
    return Duration(plan_s + max(work_s, server_s), limit)


def _compute_undivided(images: int, cost: GrainCost, new_bytes: float) -> Duration:
    """Return the duration with one process, which plans and transfers at the same time."""
    cpu_s = cost.cpu_s.value + new_bytes * BYTE_CPU_S.value + LOCK_CPU_S.value
    answers_s = REQUESTS.value * LATENCY_S.value / IN_FLIGHT.value
    work_s = images * max(cpu_s, answers_s, 2 * new_bytes / BANDWIDTH.value)
    server_s = images * cost.server_s.value
    return Duration(max(work_s, server_s), "w" if work_s > server_s else "s")


def _transfer_s(cost: GrainCost, new_bytes: float) -> float:
    """Return the seconds that a worker needs for an image after planning: CPU, answers or bytes, whichever takes longest."""
    cpu_s = cost.cpu_s.value - PLAN_CPU_S.value + new_bytes * BYTE_CPU_S.value
    answers_s = (REQUESTS.value - PLAN_REQUESTS.value) * LATENCY_S.value / IN_FLIGHT.value
    # Content comes from the source and from the store, and goes to the store and to the target.
    return max(cpu_s, answers_s, 2 * new_bytes / BANDWIDTH.value)


def _inputs() -> Iterable[str]:
    rows = []
    for one in INPUTS:
        source = one.source
        if one.page == _PERFORMANCE:
            source = f"measured: {source} ([performance](performance.md))"
        elif one.page is not None:
            source = f"measured: {source} (below)"
        rows.append((one.name, one.shown, source))
    return _table(("cost", "value", "source"), rows)


def _work() -> Iterable[str]:
    rows: Sequence[tuple[str, Callable[[int], str]]] = (
        ("requests, first mirror", lambda n: f"{n * REQUESTS.value / 1e6:,.2g} million"),
        ("requests, nothing to do", lambda n: f"{n * PLAN_REQUESTS.value / 1e6:,.2g} million"),
        ("bytes from the source, 50 MB of new content per image", lambda n: f"{n * 50e6 / 1e12:,.2g} TB"),
        ("planning, CPU of the parent", lambda n: _hours(n * PLAN_CPU_S.value)),
        (
            "planning, waiting for registries, 16 requests in flight",
            lambda n: _hours(n * PLAN_REQUESTS.value * LATENCY_S.value / IN_FLIGHT.value),
        ),
        ("memory of the parent", lambda n: _bytes(BASE_MEMORY.value + n * PARENT_MEMORY.value)),
        ("lock file", lambda n: _bytes(n * LOCK_BYTES.value)),
        ("shards, 10 workers", lambda n: f"{count_shards(n, 10):,}"),
        ("start of all shards, CPU", lambda n: _hours(count_shards(n, 10) * START_S.value)),
        ("at 100 requests per second in all, first mirror", lambda n: _hours(n * REQUESTS.value / 100)),
    )
    return _table(("images", *_SIZES), [(name, *map(show, IMAGES)) for name, show in rows])


def _prefect() -> Iterable[str]:
    rows = [row for name, cost in GRAINS.items() for row in _prefect_rows(name, cost)]
    return _table(("images", *_SIZES), rows)


def _prefect_rows(name: str, cost: GrainCost) -> Iterable[Sequence[str]]:
    runs = [images * cost.task_runs.value for images in IMAGES]
    yield f"`{name}`: task runs", *map(_count, runs)
    yield f"`{name}`: states of task runs", *(_count(one * EVENTS.value) for one in runs)
    # Each image also has an event of its own.
    yield f"`{name}`: events", *(_count(one * EVENTS.value + images) for one, images in zip(runs, IMAGES, strict=True))
    yield f"`{name}`: database", *(_bytes(images * cost.database.value) for images in IMAGES)
    yield f"`{name}`: CPU of the server", *(_hours(images * cost.server_s.value) for images in IMAGES)


def _hours_small() -> Iterable[str]:
    return _hours_table(0)


def _hours_large() -> Iterable[str]:
    return _hours_table(50e6)


def _hours_table(new_bytes: float) -> Iterable[str]:
    rows = []
    for name, cost in GRAINS.items():
        for images, size in zip(IMAGES, _SIZES, strict=True):
            found = [compute_duration(images, workers, cost, new_bytes=new_bytes) for workers in WORKERS]
            rows.append((f"{size}, `{name}`", *(f"{_hours(one.seconds)} {one.limit}" for one in found)))
    return _table(("images, grain", *(f"{one} worker{'s' * (one > 1)}" for one in WORKERS)), rows)


def _most_workers() -> Iterable[str]:
    rows = []
    for name, cost in GRAINS.items():
        overhead_s = (START_S.value + POLL_S.value) * SHARD_TASKS.value / MOST_TASKS
        found = [(_transfer_s(cost, size) + overhead_s) / cost.server_s.value for size in (0, 10e6, 50e6, 500e6)]
        rows.append((f"`{name}`", *(f"{max(1, one):,.0f}" for one in found)))
    return _table(("new content per image", "none", "10 MB", "50 MB", "500 MB"), rows)


TABLES: Mapping[str, Callable[[], Iterable[str]]] = {
    "inputs": _inputs,
    "work": _work,
    "prefect": _prefect,
    "small": _hours_small,
    "large": _hours_large,
    "workers": _most_workers,
}
_SIZES = tuple(f"{images:,}" for images in IMAGES)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)]


def _hours(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"  # noqa: PLR2004 - an hour


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"  # noqa: PLR2004 - a gigabyte


def _count(count: float) -> str:
    return f"{count / 1e6:.1f} million" if count >= 1e6 else f"{count / 1e3:,.0f} thousand"  # noqa: PLR2004 - a million


def render(text: str) -> str:
    """Return the text of a page with current tables."""
    return _REGION.sub(lambda found: found[1] + "\n".join(TABLES[found[2]]()) + "\n" + found[3], text)


def main() -> None:
    """Print the tables, or write them into the page."""
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(render(PAGE.read_text()))
        return
    for name, make in TABLES.items():
        sys.stdout.write("\n".join([name, "", *make(), "", ""]))


if __name__ == "__main__":
    main()
