"""The deployments of `prefect.yaml` as users make them, on a server that has a worker for them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.peers.prefect import PrefectServer, process_worker

TOP = Path(__file__).parents[2]
POOL = "dist"


def command(server: PrefectServer, *arguments: str, home: Path) -> str:
    """What a command of Prefect's wrote."""
    argv = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    env = {**os.environ, "PREFECT_API_URL": server.url, "PREFECT_HOME": str(home), "COLUMNS": "200"}
    done = subprocess.run(argv, cwd=TOP, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


@contextmanager
def deployed(server: PrefectServer, home: Path) -> Iterator[None]:
    """All deployments, and a worker that runs them, for the length of a `with` block."""
    with process_worker(server, POOL, home):
        command(server, "deploy", "--all", home=home)
        yield
