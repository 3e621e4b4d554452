"""The worker of a command with `--workers`. Here, a module `prefect` of the test takes the place of Prefect's command line."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prefect_dist.cli.local_workers import _worker_process
from prefect_dist.transfer.cancellation import CancelToken, use_token
from tests.peers.processes import poll_until

_COMMAND = """
import sys
from prefect_dist.cli.local_workers import _worker_process
with _worker_process("p", 2, {}, lambda: True):
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
        assert poll_until((tmp_path / "started").exists, timeout_s=30)
        pid, _, arguments = (tmp_path / "started").read_text().partition(" ")
        assert arguments == "prefect worker start --pool p --type process --limit 2"
        assert is_alive(int(pid))

        command.send_signal(signal.SIGKILL)

    assert poll_until(lambda: not is_alive(int(pid)), timeout_s=10)


@pytest.mark.parametrize(
    ("command_line", "says"),
    [
        ("import a_missing_module", "ended with exit code 1: .* No module named 'a_missing_module'"),
        ("def app(): print('no such\\npool'); raise SystemExit(3)", "ended with exit code 3: no such pool"),
        (
            "import os\ndef app(): print('Worker started!', flush=True); os.kill(os.getpid(), 9)",
            "was killed by SIGKILL",
        ),
    ],
)
def test_a_worker_that_ends_before_the_run_ends_the_run_with_the_reason(tmp_path: Path, command_line: str, says: str) -> None:
    cancel = CancelToken()
    with use_token(cancel), _worker_process("p", 2, write_prefect(tmp_path, command_line), lambda: True):
        assert poll_until(lambda: cancel.failure is not None, timeout_s=30)
    assert re.fullmatch(f"the worker process on this machine {says}", str(cancel.failure))


def test_the_end_of_the_command_is_no_failure_of_the_worker(tmp_path: Path) -> None:
    cancel, environment = CancelToken(), write_prefect(tmp_path, _WORKER)
    with use_token(cancel), _worker_process("p", 2, environment, lambda: True):
        assert poll_until((tmp_path / "started").exists, timeout_s=30)
    assert cancel.reason is None
    assert not is_alive(int((tmp_path / "started").read_text().partition(" ")[0]))


def test_the_end_of_the_local_server_ends_the_worker_and_the_run(tmp_path: Path) -> None:
    cancel, environment = CancelToken(), write_prefect(tmp_path, _WORKER)
    started = tmp_path / "started"
    with use_token(cancel), _worker_process("p", 2, environment, lambda: not started.exists()):
        assert poll_until(lambda: cancel.failure is not None, timeout_s=30)
        assert not is_alive(int(started.read_text().partition(" ")[0]))
    assert str(cancel.failure) == "the local Prefect server ended during the run; run the command again"
