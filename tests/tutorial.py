"""Run the commands of docs/tutorials/scheduled-mirror.md in order, in one shell. A callback takes each picture.

The commands run with free ports instead of the ports of the document, and with another home directory.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.peers.processes import LOOPBACK, free_ports

TOP = Path(__file__).parents[1]
DOCUMENT = TOP / "docs" / "tutorials" / "scheduled-mirror.md"
_PORTS = ("4200", "5001", "5002")
_STEP = re.compile(
    r"^```bash\n(?P<commands>.*?)^```$|^!\[[^]]*\]\(\.\./images/(?P<picture>\w+)\.png\)$", re.MULTILINE | re.DOTALL
)
_DONE = "the step succeeded"


class TutorialFailed(RuntimeError):
    """A step of the tutorial failed. The message has the commands and their output."""


def follow(home: Path, take: Callable[[str, str], None]) -> None:
    """Follow the document. For each picture, call `take` with the address of the UI of Prefect and the name of the picture.

    Raises:
        TutorialFailed: a command failed.
    """
    ports = dict(zip(_PORTS, map(str, free_ports(len(_PORTS))), strict=True))
    ui = f"http://{LOOPBACK}:{ports['4200']}"
    with _open_shell(home, ports["4200"]) as shell:
        _run_commands(shell, "sleep 3600 & job_of_reader=$!")
        for step in _STEP.finditer(DOCUMENT.read_text()):
            if step["picture"]:
                take(ui, step["picture"])
            else:
                _run_commands(shell, re.sub("|".join(_PORTS), lambda port: ports[port[0]], step["commands"]))
        _run_commands(shell, "kill $job_of_reader  # fails if the tutorial killed a job of the reader")


@contextmanager
def _open_shell(home: Path, port: str) -> Iterator[subprocess.Popen[str]]:
    """Open a shell that exits at the first command that fails. At the end, kill the process group of the shell."""
    settings = {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PREFECT_SERVER_API_PORT": port,
        "PREFECT_UI_API_URL": f"http://{LOOPBACK}:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "DO_NOT_TRACK": "1",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DIST_", "XDG_"))}
    shell = subprocess.Popen(
        ["bash", "-eu", "-o", "pipefail"],
        cwd=TOP,
        env=kept | settings,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield shell
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.communicate()


def _run_commands(shell: subprocess.Popen[str], commands: str) -> None:
    if shell.stdin is None or shell.stdout is None:
        raise ValueError("expected a shell with pipes")
    shell.stdin.write(f"{commands}\necho '{_DONE}'\n")
    shell.stdin.flush()
    output = []
    for line in shell.stdout:
        if line.strip().endswith(_DONE):
            return
        output.append(line)
    raise TutorialFailed(f"{commands}\n{''.join(output)[-4000:]}")
