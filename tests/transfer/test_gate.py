"""Gates: the input of a gate, vetoes, and gates that fail."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prefect_dist.ocispec import Digest, Reference
from prefect_dist.transfer.cancellation import CancelToken, Stopped
from prefect_dist.transfer.gate import Candidate, Gate, GateFailed, Veto, ask
from tests.peers.processes import poll_until

CANDIDATE = Candidate(
    reference=Reference.parse("registry.example/team/app:v1"), digest=Digest.of(b"a manifest"), store="/a/store"
)
SUBJECT = "registry.example/team/app:v1"


def do_not_stop() -> None:
    """Let the gate continue."""


def ask_shell(script: str, *, timeout_s: float = 60, check: Callable[[], None] = do_not_stop) -> str | None:
    return ask(Gate(command=("sh", "-c", script), timeout_s=timeout_s), CANDIDATE, check=check)


def test_a_program_with_exit_status_0_accepts_the_image() -> None:
    assert ask_shell("echo any output; exit 0") is None


def test_a_program_finds_the_image_in_its_environment(tmp_path: Path) -> None:
    output = tmp_path / "output"
    assert ask_shell(f'printf "%s\\n" "$DIST_REFERENCE" "$DIST_DIGEST" "$DIST_PINNED" "$DIST_STORE" "$HOME" > {output}') is None
    digest = CANDIDATE.digest
    expected = [SUBJECT, str(digest), f"registry.example/team/app@{digest}", "/a/store", os.environ["HOME"]]
    assert output.read_text().splitlines() == expected


def test_a_program_gets_no_credentials_of_prefect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "output"
    for name in ("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY", "PREFECT_API_URL"):
        monkeypatch.setenv(name, "value")
    assert ask_shell(f"env | grep ^PREFECT_API > {output}") is None
    assert output.read_text() == "PREFECT_API_URL=value\n"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo first; echo 3 critical findings; exit 1", "3 critical findings (exit status 1)"),
        ("echo on standard error >&2; exit 3", "on standard error (exit status 3)"),
        ("printf 'a\\n\\n  \\n'; exit 2", "a (exit status 2)"),
        ("printf 'red \\033[31m text'; exit 1", "red [31m text (exit status 1)"),
        ("exit 7", "no reason given (exit status 7)"),
        ("yes | head -c 10000000; echo; echo the end; exit 1", "the end (exit status 1)"),
        ("cat; exit 4", "no reason given (exit status 4)"),
    ],
    ids=["last line", "standard error", "blank lines", "control characters", "silence", "much", "no input"],
)
def test_another_exit_status_is_a_veto_and_the_last_line_is_the_reason(script: str, reason: str) -> None:
    assert ask_shell(script) == reason


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("no-such-scanner",), f"gate no-such-scanner: {SUBJECT}: cannot be started (No such file or directory)"),
        (("/dev/null",), f"gate /dev/null: {SUBJECT}: cannot be started (Permission denied)"),
        (("sh", "-c", "kill -9 $$"), f"gate sh: {SUBJECT}: was killed by SIGKILL"),
        (("sh", "-c", "kill -40 $$"), f"gate sh: {SUBJECT}: was killed by signal 40"),
        (("sh", "-c", "sleep 600 & wait"), f"gate sh: {SUBJECT}: gave no answer in 0.3 s"),
    ],
)
def test_a_program_that_does_not_start_or_exit_is_a_failed_gate(command: tuple[str, ...], message: str) -> None:
    with pytest.raises(GateFailed) as caught:
        ask(Gate(command=command, timeout_s=0.3), CANDIDATE, check=do_not_stop)
    assert str(caught.value) == message
    assert not caught.value.retryable


def test_a_stopped_run_kills_its_gates_and_their_child_processes(tmp_path: Path) -> None:
    cancel, pid = CancelToken(), tmp_path / "pid"

    def check() -> None:
        if pid.exists() and pid.read_text().strip():
            cancel.set("interrupted")
        cancel.check()

    with pytest.raises(Stopped, match="interrupted"):
        ask_shell(f"sh -c 'echo $$ > {pid}; exec sleep 600'", check=check)
    child = int(pid.read_text())
    assert poll_until(lambda: not is_running(child), timeout_s=10)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "gates_of_a_test.py").write_text(
        "from prefect_dist.transfer.gate import Veto\n"
        "seen = []\n"
        "def passing(candidate):\n    seen.append(candidate)\n"
        "def refusing(candidate):\n    raise Veto(f'{candidate.pinned} is not signed')\n"
        "def silent(candidate):\n    raise Veto\n"
        "def broken(candidate):\n    raise KeyError('key\\nof two lines')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "gates_of_a_test", raising=False)
    return "gates_of_a_test"


def ask_function(entry_point: str) -> str | None:
    return ask(Gate(entry_point=entry_point), CANDIDATE, check=do_not_stop)


def test_a_function_gets_the_candidate_and_accepts_by_returning(module: str) -> None:
    assert ask_function(f"{module}:passing") is None
    assert sys.modules[module].seen == [CANDIDATE]


def test_a_function_vetoes_by_raising_veto(module: str) -> None:
    assert ask_function(f"{module}:refusing") == f"{CANDIDATE.pinned} is not signed"
    assert ask_function(f"{module}:silent") == "no reason given"
    assert issubclass(Veto, Exception)


@pytest.mark.parametrize(
    ("entry_point", "message"),
    [
        ("no_such_module_here:gate", "cannot be imported (No module named 'no_such_module_here')"),
        ("gates_of_a_test:missing", "cannot be imported (module 'gates_of_a_test' has no attribute 'missing')"),
        ("gates_of_a_test:broken", f"{SUBJECT}: KeyError: 'key\\nof two lines'"),
    ],
)
def test_a_function_that_cannot_be_imported_or_raises_is_a_failed_gate(module: str, entry_point: str, message: str) -> None:
    assert module
    with pytest.raises(GateFailed) as caught:
        ask_function(entry_point)
    assert str(caught.value) == f"gate {entry_point}: {message}"
