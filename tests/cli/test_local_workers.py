"""The worker of a command with `--workers`. Here, a module `prefect` of the test takes the place of Prefect's command line."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from socket import gethostname
from typing import Any
from unittest.mock import Mock
from urllib.parse import urlsplit

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_dist.cli.local_server import LocalServer
from prefect_dist.cli.local_state import State, read_start_time
from prefect_dist.cli.local_workers import _OWNER, _watch_server, _worker_process, run_worker
from prefect_dist.cli.prefect_api import PrefectApi
from prefect_dist.cli.prefect_runs import _use_workers
from prefect_dist.flows import shard_api
from prefect_dist.ocispec.errors import Unavailable
from prefect_dist.transfer.cancellation import CancelToken, use_token
from tests.peers.prefect import PrefectServer
from tests.peers.processes import poll_until

_COMMAND = """
import sys
from prefect_dist.cli.local_workers import _worker_process
with _worker_process("p", 2, {}):
    sys.stdin.read()
"""
_WORKER = """
import os, pathlib, sys, time

def app():
    path = pathlib.Path(os.environ["STARTED"])
    path.with_suffix(".new").write_text(f"{os.getpid()} {' '.join(sys.argv)}")
    path.with_suffix(".new").rename(path)
    time.sleep(300)
"""

_KILLED_WORKER = """
import os, pathlib, subprocess

def app():
    shard = subprocess.Popen(["sh", "-c", os.environ["SHARD"]])
    path = pathlib.Path(os.environ["STARTED"])
    path.write_text(str(shard.pid))
    os.kill(os.getpid(), 9)
"""

_LEAVING = """
import os, pathlib, subprocess, time

def app():
    left = subprocess.Popen(["sleep", "300"], start_new_session=True)
    path = pathlib.Path(os.environ["STARTED"])
    path.with_suffix(".new").write_text(str(left.pid))
    path.with_suffix(".new").rename(path)
    time.sleep(300)
"""


def write_prefect(directory: Path, command_line: str) -> dict[str, str]:
    """Write a module `prefect.cli`. Return the variables with which Python finds the module."""
    (directory / "prefect").mkdir()
    (directory / "prefect" / "__init__.py").touch()
    (directory / "prefect" / "cli.py").write_text(command_line)
    return {"PYTHONPATH": str(directory), "STARTED": str(directory / "started")}


def is_alive(pid: int) -> bool:
    """Return True if a process runs. A zombie has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_worker_ends_with_a_killed_command(tmp_path: Path) -> None:
    environment = os.environ | write_prefect(tmp_path, _WORKER)
    with subprocess.Popen([sys.executable, "-c", _COMMAND], env=environment, stdin=subprocess.PIPE) as command:
        assert poll_until((tmp_path / "started").exists)
        pid, _, arguments = (tmp_path / "started").read_text().partition(" ")
        assert arguments == f"prefect worker start --pool p --type process --limit 2 --name {gethostname()}"
        assert is_alive(int(pid))

        command.send_signal(signal.SIGKILL)

    assert poll_until(lambda: not is_alive(int(pid)))


@pytest.mark.parametrize(
    ("command_line", "says"),
    [
        ("import a_missing_module", "ended with exit code 1: .* No module named 'a_missing_module'"),
        ("def app(): print('no such\\npool'); raise SystemExit(3)", "ended with exit code 3: no such pool"),
        (
            "import os\ndef app(): print('Worker started!', flush=True); os.kill(os.getpid(), 9)",
            "was killed by SIGKILL, often for lack of memory; use fewer --workers",
        ),
        ("import os\ndef app(): os.kill(os.getpid(), 15)", "was killed by SIGTERM"),
    ],
)
def test_a_worker_that_ends_before_the_run_ends_the_run_with_the_reason(tmp_path: Path, command_line: str, says: str) -> None:
    cancel = CancelToken()
    with use_token(cancel), _worker_process("p", 2, write_prefect(tmp_path, command_line)):
        assert poll_until(lambda: cancel.failure is not None)
    assert re.fullmatch(f"the worker process on this machine {says}", str(cancel.failure))


def test_the_end_of_the_command_is_no_failure_of_the_worker(tmp_path: Path) -> None:
    cancel, environment = CancelToken(), write_prefect(tmp_path, _WORKER)
    with use_token(cancel), _worker_process("p", 2, environment):
        assert poll_until((tmp_path / "started").exists)
    assert cancel.reason is None
    assert not is_alive(int((tmp_path / "started").read_text().partition(" ")[0]))


@pytest.fixture
def killed_worker(tmp_path: Path) -> Iterator[tuple[dict[str, str], Path]]:
    """The variables of a worker that starts a process and kills itself, and the file with the ID of the process."""
    environment, started = write_prefect(tmp_path, _KILLED_WORKER), tmp_path / "started"
    yield environment, started
    if started.exists() and is_alive(pid := int(started.read_text())):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("shard", ["exec sleep 300 > /dev/null 2>&1", "exec sleep 300"])  # the second one keeps the pipe open
def test_the_processes_of_a_killed_worker_are_asked_to_end(killed_worker: tuple[dict[str, str], Path], shard: str) -> None:
    environment, started = killed_worker
    cancel = CancelToken()
    with use_token(cancel), _worker_process("p", 2, environment | {"SHARD": shard}):
        assert poll_until(lambda: cancel.failure is not None)
        assert poll_until(lambda: not is_alive(int(started.read_text())))


def test_no_process_of_a_killed_worker_remains_after_the_run(killed_worker: tuple[dict[str, str], Path]) -> None:
    environment, started = killed_worker
    cancel, shard = CancelToken(), "trap '' TERM; exec sleep 300 > /dev/null 2>&1"
    with use_token(cancel), _worker_process("p", 2, environment | {"SHARD": shard}):
        assert poll_until(lambda: cancel.failure is not None)
    assert poll_until(lambda: not is_alive(int(started.read_text())))


def test_a_process_that_has_left_the_group_of_the_worker_does_not_delay_the_end(tmp_path: Path) -> None:
    environment, began = write_prefect(tmp_path, _LEAVING), 0.0
    with use_token(CancelToken()), _worker_process("p", 2, environment):
        assert poll_until((tmp_path / "started").exists)
        began = time.monotonic()
    took = time.monotonic() - began
    pid = int((tmp_path / "started").read_text())
    assert is_alive(pid)
    os.kill(pid, signal.SIGKILL)
    assert took < 30


def test_the_end_of_a_worker_is_noticed_by_a_command_that_inherited_an_ignored_sigchld(tmp_path: Path) -> None:
    cancel, before = CancelToken(), signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with use_token(cancel), _worker_process("p", 2, write_prefect(tmp_path, "def app(): print('no such pool')")):
            assert poll_until(lambda: cancel.failure is not None)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert str(cancel.failure).endswith(": no such pool")


def test_a_worker_that_the_system_does_not_start_is_an_error_with_the_remedy() -> None:
    longest = 32 * os.sysconf("SC_PAGE_SIZE")  # of a variable, see execve(2)
    with pytest.raises(Unavailable) as failed, _worker_process("p", 2, {"LONG": "x" * longest}):
        pass
    remedy = "end other processes, or run the command without --workers"
    assert str(failed.value) == f"the worker cannot be started: Argument list too long; {remedy}"


def test_the_end_of_the_local_server_fails_the_run() -> None:
    has_ended, looks, cancel = threading.Event(), list[int](), CancelToken()

    def is_running() -> bool:
        looks.append(1)
        return not has_ended.is_set()

    with use_token(cancel), _watch_server(is_running, pause_s=0.01):
        assert poll_until(lambda: len(looks) >= 3)
        assert cancel.reason is None
        has_ended.set()
        assert poll_until(lambda: cancel.failure is not None)
    assert str(cancel.failure) == "the local Prefect server ended during the run; run the command again"


def make_server(prefect: PrefectServer, directory: Path) -> LocalServer:
    """Return a server at the address of `prefect`. In the place of its process is the process of the test."""
    port, start = urlsplit(prefect.url).port, read_start_time(os.getpid())
    assert port is not None
    assert start is not None
    state = State(os.getpid(), start, port, "", {"prefect": "3"}, "2026-01-01T00:00:00+00:00", None, is_ready=True)
    return LocalServer(directory, state, ExitStack())


def list_own(prefect: PrefectServer) -> tuple[set[str], set[str]]:
    """Return the names of the work pools and deployments of commands."""
    pools, deployments = prefect.post("/work_pools/filter", {}), prefect.post("/deployments/filter", {})
    return select_own(pools), select_own(deployments)


def select_own(found: list[dict[str, Any]]) -> set[str]:
    """Return the names that commands gave to objects of Prefect."""
    return {one["name"] for one in found if one["name"].startswith("dist-")}


def find_workers() -> list[int]:
    """Return the workers that this process has started."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    found = [int(pid) for file in children for pid in file.read_text().split()]
    return [pid for pid in found if b"prefect_dist.cli._worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_the_first_shard_starts_the_worker_and_nothing_remains_after_the_run_or_after_a_killed_command(
    prefect: PrefectServer, tmp_path: Path
) -> None:
    server = make_server(prefect, tmp_path)
    with temporary_settings({PREFECT_API_URL: server.url}), run_worker(2, server) as name:
        own = name.removeprefix("mirror-shard/")
        assert list_own(prefect) == ({own}, {own})
        killed = f"{_OWNER}{os.getpid()} of another boot"
        prefect.patch(f"/work_pools/{own}", {"description": killed})
        with run_worker(2, server) as later:
            assert list_own(prefect) == ({later.removeprefix("mirror-shard/")},) * 2
            with run_worker(2, server):  # another command at the same time
                assert later.removeprefix("mirror-shard/") in list_own(prefect)[0]
            assert find_workers() == []
            prepare = shard_api._PREPARE.get()
            assert prepare is not None
            prepare()
            prepare()
            assert poll_until(lambda: len(find_workers()) == 1)  # a new process has no command line yet
    assert list_own(prefect) == (set(), set())
    assert find_workers() == []


def test_a_dry_run_has_no_worker() -> None:
    api = PrefectApi("http://prefect.invalid/api", local=Mock())
    with _use_workers(3, api, is_dry=True) as parameters:
        assert parameters == {"workers": 3}
