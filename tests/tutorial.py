"""Run docs/tutorials/scheduled-mirror.md: its commands in order, in one shell; a callback takes each of its pictures.

The ports that the document names are replaced by free ones, and its home is a directory of ours.
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
_DONE = "the step has ended well"


class Step(RuntimeError):
    """A step of the tutorial did not end well; has what it wrote."""


def run(home: Path, take: Callable[[str, str], None]) -> None:
    """Follow the document; `take` is called with the address of Prefect's UI and the name of each picture.

    Raises:
        Step: a command failed.
    """
    ports = dict(zip(_PORTS, map(str, free_ports(len(_PORTS))), strict=True))
    ui = f"http://{LOOPBACK}:{ports['4200']}"
    with _shell(home, ports["4200"]) as shell:
        _follow(shell, "sleep 3600 & readers_own=$!")
        for step in _STEP.finditer(DOCUMENT.read_text()):
            if step["picture"]:
                take(ui, step["picture"])
            else:
                _follow(shell, re.sub("|".join(_PORTS), lambda port: ports[port[0]], step["commands"]))
        _follow(shell, "kill $readers_own  # fails if the tutorial ended a job that it did not start")


@contextmanager
def _shell(home: Path, port: str) -> Iterator[subprocess.Popen[str]]:
    """A shell that leaves at the first command that fails; what it started is ended with it, as one group."""
    ours = {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PREFECT_SERVER_API_PORT": port,
        "PREFECT_UI_API_URL": f"http://{LOOPBACK}:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
        "DO_NOT_TRACK": "1",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DIST_", "XDG_"))}
    shell = subprocess.Popen(
        ["bash", "-eu", "-o", "pipefail"],
        cwd=TOP,
        env=kept | ours,
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


def _follow(shell: subprocess.Popen[str], commands: str) -> None:
    if shell.stdin is None or shell.stdout is None:
        raise ValueError("expected a shell with pipes")
    shell.stdin.write(f"{commands}\necho '{_DONE}'\n")
    shell.stdin.flush()
    told = []
    for line in shell.stdout:
        if line.strip().endswith(_DONE):
            return
        told.append(line)
    raise Step(f"{commands}\n{''.join(told)[-4000:]}")
