"""Commands without a configured Prefect server start a local server, in any directory."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from prefect_dist.storage import open_store
from tests import images
from tests.fakes.registry import FakeRegistry
from tests.user_project import make_project

IMAGE = images.image(6400, layers=1)
# The script of `pip install`. Unlike `python -m`, the script does not add the current directory to the path of imports.
INSTALLED = Path(sys.executable).parent / "dist"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project")


def block_types(home: Path) -> set[str]:
    """Return the block types in the database of the server that commands start."""
    with closing(sqlite3.connect(home / "prefect.db")) as database:
        return {slug for (slug,) in database.execute("SELECT slug FROM block_type")}


def test_a_command_runs_in_a_project_with_packages_of_the_same_names(project: Path, tmp_path: Path) -> None:
    """The server that the command starts also registers our block types."""
    environment = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
    environment |= {"PREFECT_HOME": str(tmp_path / "prefect")}
    store = tmp_path / "store"
    with FakeRegistry() as registry:
        images.load(registry, "app", IMAGE, "v1")
        reference = f"{registry.host}/app:v1"
        done = subprocess.run(
            [INSTALLED, "--store", store, "--output", "json", "fetch", reference],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["status"] == "complete"
    assert str(open_store(str(store)).names.get(reference).descriptor.digest) == IMAGE.root.digest
    assert block_types(tmp_path / "prefect") >= {"content-store", "mirror-configuration", "registry-credentials"}


def test_a_program_imports_a_flow_in_a_project_with_packages_of_the_same_names(project: Path) -> None:
    (project / "program.py").write_text("from prefect_dist.flows.mirror import mirror\nprint(mirror.name)\n")

    done = subprocess.run([sys.executable, "program.py"], cwd=project, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "mirror\n", "")
