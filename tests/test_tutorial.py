"""The commands of the tutorials work in order, and the pictures of docs/tutorials/scheduled-mirror.md can be taken."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from examples.tutorial import IMAGES, take_picture
from tests import images, tutorial
from tests.peers.chromium import chromium
from tests.peers.processes import require
from tests.peers.registry import cncf_registry

FIRST_MIRROR = Path(__file__).parents[1] / "docs" / "tutorials" / "first-mirror.md"


@pytest.mark.timeout(900)
def test_the_commands_of_the_tutorial_scheduled_mirror_work_and_its_pictures_can_be_taken(
    migrated: Path, tmp_path: Path
) -> None:
    for program, package in (("docker-registry", "docker-registry"), ("skopeo", "skopeo"), ("umoci", "umoci")):
        require(program, package)
    (tmp_path / "dist-tutorial" / "prefect").mkdir(parents=True)
    shutil.copy(migrated, tmp_path / "dist-tutorial" / "prefect" / "prefect.db")
    taken = []
    with chromium(tmp_path / "chromium") as browser:
        page = browser.page()

        def take(ui: str, name: str) -> None:
            take_picture(page, ui, name, tmp_path / f"{name}.png")
            taken.append(name)

        tutorial.follow(tmp_path, take)

    assert taken == ["run", "form", "deployment"]
    assert {path.stem for path in IMAGES.glob("*.png")} == set(taken)
    assert not (tmp_path / "dist-tutorial").exists()
    assert not (tmp_path / ".prefect").exists()


@pytest.mark.timeout(900)
def test_the_commands_of_the_tutorial_first_mirror_publish_the_selected_tags(migrated: Path, tmp_path: Path) -> None:
    (tmp_path / ".prefect").mkdir()
    shutil.copy(migrated, tmp_path / ".prefect" / "prefect.db")
    versions = ("3.20.9", "3.21.5", "3.21.6", "3.22.0", "3.22.1", "edge")
    with cncf_registry(tmp_path / "source") as source, cncf_registry(tmp_path / "target") as target:
        for seed, tag in enumerate(versions):
            images.push(source.host, "library/alpine", images.image(1500 + seed), tag)
        script = "".join(re.findall(r"^```bash\n(.*?)^```$", FIRST_MIRROR.read_text(), re.MULTILINE | re.DOTALL))
        for name, host in (("docker.io", source.host), ("localhost:5000", target.host)):
            assert name in script
            script = script.replace(name, host)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DIST_", "XDG_"))}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = kept | {"HOME": str(tmp_path), "PATH": path}
        argv = ["bash", "-euo", "pipefail", "-c", script]
        try:
            done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        finally:  # the local Prefect server of the commands would stay for ten minutes
            stop = ["bash", "-c", "dist server stop"]
            stopped = subprocess.run(stop, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        published = {request.path.rpartition("/")[2] for request in target.requests() if request.method == "PUT"}

    assert done.returncode == 0, (done.stdout, done.stderr)
    assert (stopped.returncode, stopped.stdout) == (0, "no local Prefect server is running\n")
    assert published >= {"3.21.5", "3.21.6", "3.22.0", "3.22.1"}
    assert not published & {"3.20.9", "edge"}
    assert not (tmp_path / "first-mirror").exists()
