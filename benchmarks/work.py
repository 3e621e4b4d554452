"""What is timed, each in a process of its own: `python -m benchmarks.work floor|noop|fetch|mirror …` prints one line of JSON.

    floor HOST REPOSITORY DIRECTORY DIGEST…   reads blobs from bare sockets, hashes and writes them: the least that can be done
    noop COUNT WORKERS                        a flow of tasks that do nothing
    fetch REFERENCE STORE WORKERS             the flow of `dist fetch`
    mirror CONFIG STORE WORKERS               the flow of `dist mirror`

Flows run on the server of PREFECT_API_URL, and their seconds are those that it records for the run: the body. The process ends
when the server has recorded all task runs, or what it still has to digest would slow down whatever is measured next.
"""

import hashlib
import json
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_PIECE_BYTES = 1024 * 1024


def floor(host: str, repository: str, directory: str, *digests: str) -> float:
    """Seconds to read, hash and write blobs, four at a time."""
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
            raise SystemExit(f"{digest}: got {hasher.hexdigest()}")

    started = time.perf_counter()
    with ThreadPoolExecutor(4) as executor:
        list(executor.map(fetch, digests))
    return time.perf_counter() - started


def noop(count: str, workers: str) -> float:
    """Seconds of a flow whose tasks do nothing, all but the first waiting for that one."""
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE
    from prefect.task_runners import ThreadPoolTaskRunner
    from prefect.utilities.annotations import quote

    def nothing(number: int) -> int:
        return number

    empty: Any = task(cache_policy=NO_CACHE, persist_result=False)(nothing)
    runner: Any = ThreadPoolTaskRunner(max_workers=int(workers))

    @flow(task_runner=runner, persist_result=False)
    def many() -> None:
        first = empty.submit(quote(0))
        for future in [empty.submit(quote(number), wait_for=[first]) for number in range(1, int(count))]:
            future.wait()

    return _recorded(many(return_state=True), int(count))


def fetch(reference: str, store: str, workers: str) -> float:
    """Seconds of the flow of `dist fetch`."""
    from prefect_dist.flows.fetch import fetch as flow

    state = flow([reference], store, concurrency=int(workers), return_state=True)
    if not state.is_completed():
        raise SystemExit(state.message)
    report: Any = state.result()
    return _recorded(state, report.tasks)


def mirror(config: str, store: str, workers: str) -> float:
    """Seconds of the flow of `dist mirror`."""
    from prefect_dist.flows.mirror import mirror as flow

    state = flow(config, store, concurrency=int(workers), return_state=True)
    if not state.is_completed():
        raise SystemExit(state.message)
    report: Any = state.result()
    return _recorded(state, report.tasks)


def _recorded(state: Any, tasks: int) -> float:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    from prefect_dist.cli.prefect_api import PrefectApi

    recorder = PrefectApi(None, PREFECT_API_URL.value() or "")
    with recorder.record_events():
        pass
    recorder.wait_until_recorded(state.state_details.flow_run_id, ended=tasks)
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(state.state_details.flow_run_id)
    return run.total_run_time.total_seconds()


def _peak_bytes() -> int:
    """The most memory that this program ever had. Not getrusage's figure, which begins with that of our parent."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def main() -> None:
    """Do what the arguments say; print the seconds and the peak memory."""
    kinds: dict[str, Callable[..., float]] = {"floor": floor, "noop": noop, "fetch": fetch, "mirror": mirror}
    seconds = kinds[sys.argv[1]](*sys.argv[2:])
    sys.stdout.write(json.dumps({"seconds": seconds, "peak_bytes": _peak_bytes()}) + "\n")


if __name__ == "__main__":
    main()
