"""The deployments of `prefect.yaml` as users make them, on a server that has a worker for them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cli.dist import dist
from tests.peers.prefect import PrefectServer, process_worker
from tests.user_project import make_project

TOP = Path(__file__).parents[2]
POOL = "dist"


def command(server: PrefectServer, *arguments: str, home: Path, cwd: Path = TOP) -> str:
    """Run a command of Prefect and return its output."""
    argv = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    env = {**os.environ, "PREFECT_API_URL": server.url, "PREFECT_HOME": str(home), "COLUMNS": "200"}
    done = subprocess.run(argv, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


@contextmanager
def deployed(server: PrefectServer, home: Path) -> Iterator[None]:
    """Deploy all flows from a project of a user, and run a worker there for the length of a `with` block."""
    project = make_project(home / "project")
    assert dist("init", project).code == 0
    with process_worker(server, POOL, home, project=project):
        command(server, "deploy", "--all", home=home, cwd=project)
        yield
