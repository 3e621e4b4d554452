"""A worker on this machine for the shards of one run (`--workers`), for the length of the command."""

import os
import subprocess
import sys
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from prefect_dist.ocispec.errors import Unavailable
from prefect_dist.transfer.cancellation import CancelToken, current_token

# With `-P`, files in the current directory cannot shadow modules that Prefect imports.
_COMMAND = (sys.executable, "-P", "-m", "prefect_dist.cli._worker")
_STOP_S = 30.0
_TAIL_LINES = 3


@contextmanager
def run_worker(count: int, *, notify: Callable[[str], None]) -> Iterator[str]:
    """Run a worker of a new work pool in this block, with at most `count` processes. Yield the name of a new deployment.

    The worker uses the Prefect API of the current settings. The pool and the deployment are removed at the end.

    Raises:
        Unavailable: the worker cannot be started.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

    from prefect_dist.flows.mirror_shard import mirror_shard

    secret: Any = PREFECT_API_AUTH_STRING.value()  # the value is a text, or a pydantic secret
    secret = secret.get_secret_value() if hasattr(secret, "get_secret_value") else secret
    pool = f"dist-{uuid.uuid4().hex[:8]}"
    with get_client(sync_client=True) as client, ExitStack() as stack:
        client.create_work_pool(WorkPoolCreate(name=pool, type="process", description="Processes of one dist command"))
        stack.callback(_remove, client.delete_work_pool, pool)
        deployment = client.create_deployment(
            client.create_flow(mirror_shard),
            name=pool,
            entrypoint="prefect_dist.flows.mirror_shard.mirror_shard",
            work_pool_name=pool,
            pull_steps=[],
            tags=["dist"],
        )
        stack.callback(_remove, client.delete_deployment, deployment)
        environment = {"PREFECT_API_URL": PREFECT_API_URL.value() or "", "PREFECT_API_AUTH_STRING": secret or ""}
        stack.enter_context(_worker_process(pool, count, environment))
        notify(f"starting {count} worker processes")
        yield f"mirror-shard/{pool}"


def _remove(delete: Callable[[Any], object], name: object) -> None:
    """Remove a work pool or a deployment. After an error it stays on the server: the result of the run is more important."""
    from prefect_dist.flows.api import CALL_ERRORS

    with suppress(*CALL_ERRORS):
        delete(name)


@contextmanager
def _worker_process(pool: str, count: int, environment: dict[str, str]) -> Iterator[None]:
    """Run a worker in this block. The worker stops its processes when it ends.

    If the worker ends before the block, the run fails at once, with the last output of the worker.
    """
    settings = {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_WORKER_PREFETCH_SECONDS": "1"}
    try:
        process = subprocess.Popen(  # noqa: S603 - a module of this package
            [*_COMMAND, pool, str(count)],
            env=os.environ | settings | environment,
            stdin=subprocess.PIPE,  # the worker ends when this process closes the pipe, also if this process is killed
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C of the user goes to the command, which cancels the shards in order
        )
    except OSError as exc:
        raise Unavailable(f"the worker cannot be started: {exc.strerror}") from exc
    is_over, cancel = threading.Event(), current_token()
    watch = threading.Thread(target=_watch, args=(process, is_over, cancel), name="worker", daemon=True)
    watch.start()
    try:
        yield
    finally:
        is_over.set()
        with process:  # closes the pipes
            _end(process)
            watch.join(_STOP_S)


def _watch(process: subprocess.Popen[bytes], is_over: threading.Event, cancel: CancelToken) -> None:
    """Wait for the end of the worker. If the run is not over, end the run with the last lines of the worker's output."""
    lines = deque(process.stdout or (), maxlen=_TAIL_LINES)
    code = process.wait()
    if not is_over.is_set():
        tail = " ".join(b" ".join(lines).decode(errors="replace").split())
        cancel.fail(Unavailable(f"the worker process on this machine ended with exit code {code}: {tail or 'no output'}"))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
