"""The code of docs/how-to/library.md runs in the project of a user that has packages flows, tasks, storage and cli."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import prefect_dist
from tests import images
from tests.fakes.registry import FakeRegistry
from tests.peers.prefect import PrefectServer
from tests.peers.processes import PATIENCE_S, poll_until
from tests.source import ROOT

DOCUMENT = (ROOT / "docs" / "how-to" / "library.md").read_text()
BUILT, ARTIFACT = images.image(9500, layers=2), images.image(9501, layers=1)
# The public modules on the page.
PUBLIC = {"prefect_dist", "prefect_dist.tasks.units"}


class Project:
    """The directory of a user, with the code of the document in modules. Programs in the directory use the code."""

    def __init__(self, directory: Path, api: str) -> None:
        self.directory, self._api = directory, api
        for name in ("flows", "tasks", "storage", "cli"):
            (directory / name).mkdir()
            (directory / name / "__init__.py").write_text(f"OWNER = 'the user: {name}'\n")
        for number, code in enumerate(re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)):
            name = re.findall(r"^def (\w+)", code, re.MULTILINE)[-1]
            (directory / "flows" / f"{name}.py").write_text(f"# block {number}\n{code}")

    def run(self, code: str, *names: str, program: str) -> str:
        """Run a program that imports `names` from the module `code` of the document, and return its output."""
        own = "import cli, flows, storage, tasks\nassert all('the user' in one.OWNER for one in (cli, flows, storage, tasks))\n"
        own += "".join(f"from flows.{code} import {name}\n" for name in names)
        env = os.environ | {"PREFECT_API_URL": self._api, "PREFECT_LOGGING_LEVEL": "CRITICAL"}
        argv = [sys.executable, "-c", own + program]
        done = subprocess.run(
            argv, cwd=self.directory, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def project(prefect: PrefectServer, tmp_path: Path) -> Project:
    (tmp_path / "project").mkdir()
    return Project(tmp_path / "project", prefect.url)


@pytest.fixture
def loaded_source(source: FakeRegistry) -> FakeRegistry:
    images.load(source, "app", BUILT, "v1")
    images.load(source, "artifact", ARTIFACT, "v1")
    return source


def test_the_example_fetches_images_and_reads_the_report_of_a_failure(
    project: Project, loaded_source: FakeRegistry, tmp_path: Path
) -> None:
    program = f"""
from prefect_dist import RunFailed
names, store = {[f"{loaded_source.host}/app:v1", f"{loaded_source.host}/app:gone"]!r}, {str(tmp_path / "store")!r}
print(refresh(names[:1], store))
print(refresh(names[:1], store))
try:
    refresh(names, store)
except RunFailed as failed:
    print(type(failed.report).__name__, failed.report.counts["failed"])
"""
    lines = project.run("refresh", "refresh", program=program).splitlines()

    assert f"{len(BUILT.descriptors)} fetched 0 existed" in lines[0]
    assert (lines[1], lines[3]) == ("0", "1")
    assert lines[4].startswith("1 of 2 images complete: ")
    assert lines[5].startswith(f"{loaded_source.host}/app:gone: not found")
    assert lines[-1] == "RunReport 1"


def test_the_examples_copy_and_mirror_lists_of_images(
    project: Project, loaded_source: FakeRegistry, target: FakeRegistry, tmp_path: Path
) -> None:
    wanted = {f"{loaded_source.host}/app:{tag}": f"{target.host}/copy:{tag}" for tag in ("v1", "gone")}
    first = dict(list(wanted.items())[:1])
    program = f"""
import json
store = {str(tmp_path / "store")!r}
print(json.dumps(copy_images(["{loaded_source.host}/app:v1"], "{target.host}/seeded", store).counts))
print(json.dumps(mirror_images({first!r}, store, "false")))
print(json.dumps(mirror_images({wanted!r}, store, "true")))
"""
    seeded, *_, vetoed, mirrored = project.run("mirror_images", "copy_images", "mirror_images", program=program).splitlines()

    assert json.loads(seeded)["added"] == 1
    assert target.manifest("seeded/app", "v1") is not None
    assert {key: json.loads(vetoed)[key] for key in ("added", "vetoed", "failed")} == {"added": 0, "vetoed": 1, "failed": 0}
    assert {key: json.loads(mirrored)[key] for key in ("added", "vetoed", "failed")} == {"added": 1, "vetoed": 0, "failed": 1}
    assert target.manifest("copy", "v1") is not None


def test_the_example_fetches_an_artifact_with_single_tasks(
    prefect: PrefectServer, project: Project, loaded_source: FakeRegistry, tmp_path: Path
) -> None:
    name = f"{loaded_source.host}/artifact:v1"
    program = f"""
from prefect import State
state: State = fetch_artifact({name!r}, {str(tmp_path / "store")!r}, return_state=True)
print(*state.result(), state.state_details.flow_run_id)
"""
    *blobs, run = project.run("fetch_artifact", "fetch_artifact", program=program).split()

    assert set(blobs) == set(ARTIFACT.blobs)
    assert {path.name for path in (tmp_path / "store" / "blobs" / "sha256").iterdir()} == {
        digest.removeprefix("sha256:") for digest in ARTIFACT.descriptors
    }
    assert any((tmp_path / "store" / "names").rglob("*"))

    def task_names() -> set[str]:
        return {one["name"].partition(" sha256:")[0] for one in prefect.task_runs(run)}

    assert poll_until(lambda: {f"resolve {name}", "fetch manifest", "fetch config", "fetch layer"} <= task_names())


def test_the_example_runs_a_deployment_and_reads_its_result(
    server: PrefectServer, project: Project, loaded_source: FakeRegistry, target: FakeRegistry, tmp_path: Path
) -> None:
    def configuration_of(tag: str) -> str:
        return json.dumps(
            {"sync": [{"type": "image", "source": f"{loaded_source.host}/app:{tag}", "target": f"{target.host}/app:{tag}"}]}
        )

    program = f"""
import json
from prefect_dist import RunFailed
store = {str(tmp_path / "store")!r}
print(json.dumps(mirror_now({configuration_of("v1")!r}, store)))
try:
    mirror_now({configuration_of("gone")!r}, store)
except RunFailed as failed:
    print(failed)
"""
    succeeded, details, failed = project.run("mirror_now", "mirror_now", program=program).splitlines()

    assert json.loads(succeeded)["added"] == 1
    assert details.startswith("mirror configuration failed: 0 added, 0 changed, 0 unchanged, 1 failed")
    assert f"{loaded_source.host}/app:gone to {target.host}/app:gone: not found" in failed
    assert server.url == os.environ["PREFECT_API_URL"]


@pytest.mark.xdist_group("mypy")
def test_the_examples_pass_mypy_strict(tmp_path: Path, mypy_cache: Path) -> None:
    flows = Project(tmp_path, api="").directory / "flows"
    modules = sorted(path.name for path in flows.glob("*.py"))
    argv = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(mypy_cache), *modules]
    done = subprocess.run(argv, cwd=flows, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_page_lists_only_public_names() -> None:
    table = DOCUMENT.partition("| kind | names |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", table)) <= set(prefect_dist.__all__)
    modules = set(re.findall(r"^from (prefect_dist\S*) import", DOCUMENT, re.MULTILINE))
    assert modules == PUBLIC
