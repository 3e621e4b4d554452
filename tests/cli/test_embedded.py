"""Commands without a configured Prefect server: they start one of their own, wherever they are run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prefect_dist.storage import open_store
from tests import images
from tests.fakes.registry import FakeRegistry

IMAGE = images.image(6400, layers=1)
PACKAGES = ("ocispec", "storage", "remotes", "tasks", "flows", "cli")
# The script that `pip install` makes: unlike `python -m`, it does not put the current directory on the path of imports.
INSTALLED = Path(sys.executable).parent / "dist"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory of a user with packages that have the names of ours."""
    project = tmp_path / "project"
    for name in PACKAGES:
        (project / name).mkdir(parents=True)
        (project / name / "__init__.py").write_text('raise RuntimeError("the package of the user was imported")\n')
    return project


def test_a_command_runs_in_a_project_with_packages_of_the_same_names(project: Path, tmp_path: Path) -> None:
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
