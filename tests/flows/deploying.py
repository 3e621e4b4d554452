"""Deploys the flows of `prefect.yaml`, as users do, and runs a worker for the deployments."""

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


def run_prefect(server: PrefectServer, *arguments: str, home: Path, cwd: Path = TOP) -> str:
    """Run a command of Prefect and return its output."""
    argv = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    env = {**os.environ, "PREFECT_API_URL": server.url, "PREFECT_HOME": str(home), "COLUMNS": "200"}
    done = subprocess.run(argv, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


@contextmanager
def deploy_all(server: PrefectServer, home: Path) -> Iterator[None]:
    """Deploy all flows from the project of a user, and run a worker there during the block."""
    project = make_project(home / "project")
    assert dist("init", project).code == 0
    with process_worker(server, POOL, home, project=project):
        run_prefect(server, "deploy", "--all", home=home, cwd=project)
        yield
