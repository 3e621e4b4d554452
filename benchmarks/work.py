"""Run one measurement in this process, and print one line of JSON: `python -m benchmarks.work floor|noop|fetch|mirror …`.

    floor HOST REPOSITORY DIRECTORY DIGEST…   reads blobs from bare sockets, hashes and writes them: the floor of a fetch
    noop COUNT WORKERS                        a flow of tasks that do nothing
    fetch REFERENCE STORE WORKERS             the flow of `dist fetch`
    mirror CONFIG STORE WORKERS               the flow of `dist mirror`
    direct CONFIG STORE WORKERS               the run of `dist mirror --direct`
    imports MODULE                            the import of a module, such as prefect_dist.flows.mirror

Flows run with the Prefect server of PREFECT_API_URL. The seconds of a flow are the run time that the server records. The CPU
seconds of a flow end with the sending of its last event. Then the process waits until the server has recorded the task runs,
because the recording would slow down the next measurement.
"""

import hashlib
import json
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

_PIECE_BYTES = 1024 * 1024
_POLL_S = 0.05


class Measured(NamedTuple):
    """The seconds of a measurement, and the CPU seconds of this process until its end."""

    seconds: float
    cpu_s: float


def measure_floor(host: str, repository: str, directory: str, *digests: str) -> Measured:
    """Return the times to read, hash and write blobs, four at a time."""
    name, _, port = host.partition(":")

    def fetch(digest: str) -> None:
        with socket.create_connection((name, int(port))) as connection, (Path(directory) / digest).open("wb", 0) as file:
            connection.sendall(f"GET /v2/{repository}/blobs/{digest} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            body = memoryview(bytearray(_PIECE_BYTES))
            hasher = hashlib.sha256()
            got = connection.recv_into(body)
            start = bytes(body[:got]).index(b"\r\n\r\n") + 4
            while got:
                hasher.update(body[start:got])
                file.write(body[start:got])
                start, got = 0, connection.recv_into(body)
        if f"sha256:{hasher.hexdigest()}" != digest:
            raise SystemExit(f"{digest}: the received content has the digest sha256:{hasher.hexdigest()}")

    start_time = time.perf_counter()
    with ThreadPoolExecutor(4) as executor:
        list(executor.map(fetch, digests))
    return Measured(time.perf_counter() - start_time, time.process_time())


def measure_noop(count: str, workers: str) -> Measured:
    """Return the times of a flow of tasks that do nothing. The first task runs before the rest."""
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE
    from prefect.task_runners import ThreadPoolTaskRunner
    from prefect.utilities.annotations import quote

    def do_nothing(number: int) -> int:
        return number

    empty: Any = task(cache_policy=NO_CACHE, persist_result=False)(do_nothing)
    runner: Any = ThreadPoolTaskRunner(max_workers=int(workers))

    @flow(task_runner=runner, persist_result=False)
    def run_tasks() -> None:
        first = empty.submit(quote(0))
        for future in [empty.submit(quote(number), wait_for=[first]) for number in range(1, int(count))]:
            future.wait()

    return _times_of(run_tasks(return_state=True), int(count))


def measure_fetch(reference: str, store: str, workers: str) -> Measured:
    """Return the times of the flow of `dist fetch`."""
    from prefect_dist.flows.fetch import fetch as flow

    state = flow([reference], store, concurrency=int(workers), return_state=True)
    if not state.is_completed():
        raise SystemExit(state.message)
    report: Any = state.result()
    return _times_of(state, report.tasks)


def measure_mirror(config: str, store: str, workers: str) -> Measured:
    """Return the times of the flow of `dist mirror`."""
    from prefect_dist.flows.mirror import mirror as flow

    state = flow(config, store, concurrency=int(workers), return_state=True)
    if not state.is_completed():
        raise SystemExit(state.message)
    report: Any = state.result()
    return _times_of(state, report.tasks)


def measure_direct(config: str, store: str, workers: str) -> Measured:
    """Return the times of the run of `dist mirror --direct`."""
    from prefect_dist.cli.direct import make_run
    from prefect_dist.mirror.direct import run_directly
    from prefect_dist.transfer.events import ignore_event

    given = {"dry_run": False, "retries": 3, "dialect": "dist", "to": (), "store_options": {}}
    spec = make_run("mirror", {"config": config, "store": store, "concurrency": int(workers), **given})
    report = run_directly(spec, ignore_event)
    if report.status != "complete":
        raise SystemExit(report.status)
    return Measured(report.seconds, time.process_time())


def measure_imports(module: str) -> Measured:
    """Return the times to import a module."""
    start = time.perf_counter()
    import_module(module)
    return Measured(time.perf_counter() - start, time.process_time())


def _times_of(state: Any, tasks: int) -> Measured:
    """Return the times of a flow run that has just ended."""
    run_s = time.process_time()
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    from prefect_dist.cli.prefect_api import PrefectApi

    imported_s = time.process_time()
    with PrefectApi(PREFECT_API_URL.value() or "").record_events():
        pass
    cpu_s = run_s + time.process_time() - imported_s
    flow_run = {"any_": [str(state.state_details.flow_run_id)]}
    ended = {
        "flow_runs": {"operator": "or_", "id": flow_run, "parent_flow_run_id": flow_run},
        "task_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]}}},
    }
    with get_client(sync_client=True) as client:
        while client.request("POST", "/task_runs/count", json=ended).json() < tasks:
            time.sleep(_POLL_S)
        run = client.read_flow_run(state.state_details.flow_run_id)
    return Measured(run.total_run_time.total_seconds(), cpu_s)


def _peak_bytes() -> int:
    """Peak memory of this process. The figure of getrusage is unsuitable: it includes the peak of the parent process."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def main() -> None:
    """Run the measurement that the arguments name. Print the seconds, the peak memory, and the CPU seconds of the process."""
    kinds: dict[str, Callable[..., Measured]] = {
        "floor": measure_floor,
        "noop": measure_noop,
        "fetch": measure_fetch,
        "mirror": measure_mirror,
        "direct": measure_direct,
        "imports": measure_imports,
    }
    measured = kinds[sys.argv[1]](*sys.argv[2:])
    sys.stdout.write(json.dumps({**measured._asdict(), "peak_bytes": _peak_bytes()}) + "\n")


if __name__ == "__main__":
    main()
