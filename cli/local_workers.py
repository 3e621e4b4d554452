"""A worker on this machine for the shards of one run (`--workers`), for the length of the command."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from prefect_dist.cli.local_server import LocalServer
from prefect_dist.cli.local_state import read_start_time
from prefect_dist.ocispec.errors import Unavailable
from prefect_dist.storage.background import repeat_in_thread
from prefect_dist.transfer.cancellation import CancelToken, current_token
from prefect_dist.transfer.gate import name_signal

# With `-P`, files in the current directory cannot shadow modules that Prefect imports.
_COMMAND = (sys.executable, "-P", "-m", "prefect_dist.cli._worker")
# By default, Prefect would add the working directory to the path of modules, and start some processes with `uv`.
_SHARD = {"command": shlex.join([sys.executable, "-P", "-m", "prefect.engine"])}
# The description of a work pool names the process of its command.
_OWNER = "Processes of the dist command with the process ID and start time "
_STOP_S = 30.0
# The last output of a worker that has ended is in the pipe. Processes of the worker may keep the pipe open.
_OUTPUT_S = 1.0
_POLL_S = 1.0
_TAIL_LINES = 3


@contextmanager
def run_worker(count: int, server: LocalServer) -> Iterator[str]:
    """Make a work pool and a deployment for runs in this block. Yield the name of the deployment.

    The first shard of a run starts a worker with at most `count` processes: a run without changes needs no worker. If the
    worker or the server ends before the block, the run starts no more shards, waits at most a minute for the others, and fails.
    The pool and the deployment are removed at the end.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    from prefect_dist.flows.mirror_shard import mirror_shard
    from prefect_dist.flows.shard_api import OWN_WORKER, call_before_submissions

    pool = f"dist-{uuid.uuid4().hex[:8]}"
    _remove_unused()
    with get_client(sync_client=True) as client, ExitStack() as stack:
        description = f"{_OWNER}{os.getpid()} {read_start_time(os.getpid())}"
        client.create_work_pool(WorkPoolCreate(name=pool, type="process", description=description))
        stack.callback(_remove, server, client.delete_work_pool, pool)
        deployment = client.create_deployment(
            client.create_flow(mirror_shard),
            name=pool,
            entrypoint="prefect_dist.flows.mirror_shard.mirror_shard",
            work_pool_name=pool,
            pull_steps=[],
            tags=["dist", OWN_WORKER],
            job_variables=_SHARD | {"working_dir": str(Path.cwd())},  # relative paths of the configuration start there
        )
        stack.callback(_remove, server, client.delete_deployment, deployment)
        environment = {"PREFECT_API_URL": server.url, "PREFECT_API_AUTH_STRING": server.secret}

        @cache
        def start() -> None:
            stack.enter_context(_worker_process(pool, count, environment))

        with _watch_server(server.is_running), call_before_submissions(start):
            yield f"mirror-shard/{pool}"


@contextmanager
def _watch_server(is_running: Callable[[], bool], *, pause_s: float = _POLL_S) -> Iterator[None]:
    """Fail the run if the local server ends in this block. The run keeps the results of the shards that have ended."""
    cancel = current_token()

    def watch() -> bool:
        if is_running():
            return False
        cancel.fail(Unavailable("the local Prefect server ended during the run; run the command again"))
        return True

    with repeat_in_thread(watch, pause_s=pause_s, name="local server"):
        yield


def _remove_unused() -> None:
    """Remove the work pools and deployments of commands that were killed. All commands of a local server are on one machine."""
    from prefect.client.orchestration import get_client

    from prefect_dist.flows.api import CALL_ERRORS

    with get_client(sync_client=True) as client:
        for pool in client.read_work_pools():
            owner = (pool.description or "").removeprefix(_OWNER)
            pid, _, start = owner.partition(" ")
            if owner == pool.description or not pid.isdigit() or read_start_time(int(pid)) == start:
                continue
            with suppress(*CALL_ERRORS):
                client.delete_deployment(client.read_deployment_by_name(f"mirror-shard/{pool.name}").id)
            with suppress(*CALL_ERRORS):
                client.delete_work_pool(pool.name)


def _remove(server: LocalServer, delete: Callable[[Any], object], name: object) -> None:
    """Remove a work pool or a deployment. After an error, it stays on the server: the report of the run is more important."""
    from prefect_dist.flows.api import CALL_ERRORS, brief

    if server.is_running():
        with suppress(*CALL_ERRORS), brief():
            delete(name)


@contextmanager
def _worker_process(pool: str, count: int, environment: dict[str, str]) -> Iterator[None]:
    """Run a worker in this block. The worker stops its processes when it ends, and no process of its group remains.

    If the worker ends before the block, the run fails, and its shards are stopped.
    """
    settings = {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_WORKER_PREFETCH_SECONDS": "1"}
    try:
        process = subprocess.Popen(  # noqa: S603 - a module of this package
            [*_COMMAND, pool, str(count)],
            env=os.environ | settings | environment,
            stdin=subprocess.PIPE,  # the worker ends when this process closes the pipe, also if this process is killed
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # A Ctrl-C of the user goes to the command, which cancels the shards in order. The shards are in the worker's group.
            start_new_session=True,
        )
    except OSError as exc:
        remedy = "end other processes, or run the command without --workers"
        raise Unavailable(f"the worker cannot be started: {exc.strerror}; {remedy}") from exc
    is_over, output = threading.Event(), _Output(process)
    watch = threading.Thread(target=_watch, args=(process, output, is_over, current_token()), name="worker", daemon=True)
    watch.start()
    try:
        yield
    finally:
        is_over.set()
        _end(process, watch)
        output.wait(_OUTPUT_S)
        if process.stdin is not None:
            process.stdin.close()


class _Output:
    """The last lines that a process has written. A thread reads them, because a full pipe would block the process.

    The thread closes the pipe after its end, which a process outside the group of the worker can delay.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._lines, self._pipe = deque[bytes](maxlen=_TAIL_LINES), process.stdout
        self._thread = threading.Thread(target=self._keep, name="output", daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        if self._pipe is not None:
            with self._pipe:
                self._lines.extend(self._pipe)

    def wait(self, seconds: float) -> None:
        """Wait at most `seconds` until no process writes to the pipe any more."""
        self._thread.join(seconds)

    def read_tail(self) -> str:
        """Return the last lines of a process that has ended, as one line. Its own processes may still have the pipe."""
        self.wait(_OUTPUT_S)
        return " ".join(b" ".join(self._lines.copy()).decode(errors="replace").split())


def _watch(process: subprocess.Popen[bytes], output: _Output, is_over: threading.Event, cancel: CancelToken) -> None:
    """Wait for the end of the worker. If the run is not over, end the run with the last lines of the worker's output.

    The shards of a worker that was killed are still running. They get SIGTERM, and write the results that they have.
    """
    code = _wait(process)
    if is_over.is_set():
        return
    # Before the signal: otherwise, the run could start the stopped shards again.
    cancel.fail(Unavailable(f"the worker process on this machine {_describe_end(code, output.read_tail())}"))
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a process. Return the exit code, or the negative number of the signal that killed the process.

    The process stays a zombie until `_end`. So its ID, which is also the ID of its group, is not the ID of another process.
    """
    try:
        end = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:  # the command ignores SIGCHLD, as its own parent did, and the kernel does not keep zombies
        end = None
    if end is None:
        return 0
    return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status


def _describe_end(code: int, tail: str) -> str:
    """Return the reason of the end of a worker. A signal has nothing to do with the last output of the worker."""
    if code >= 0:
        return f"ended with exit code {code}: {tail or 'no output'}"
    if code == -signal.SIGKILL:
        return "was killed by SIGKILL, often for lack of memory; use fewer --workers"
    return f"was killed by {name_signal(-code)}"


def _end(process: subprocess.Popen[bytes], watch: threading.Thread) -> None:
    """End the worker. Kill the processes of the worker that have not ended with the worker, and the worker if it is late."""
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)
    watch.join(_STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
