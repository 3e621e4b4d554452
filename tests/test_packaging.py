"""The content of the source archive and of the wheel, and the command that the wheel installs."""

import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import source
from tests.source import LAYERS, ROOT, TOP

PROJECT = {f"{TOP}/project/{name}" for name in ("mirror.schema.json", "mirror.yaml", "prefect.yaml")}
AUTOMATIONS = {f"{TOP}/project/automations/{path.name}" for path in (ROOT / "automations").iterdir()}


@dataclass(frozen=True, slots=True)
class Archives:
    sdist: Path
    from_sdist: Path
    from_tree: Path


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Archives:
    scratch = tmp_path_factory.mktemp("archives")
    sdist = build_archive("sdist", ROOT, scratch / "sdist")
    (scratch / "unpacked").mkdir()
    subprocess.run(["tar", "-xf", sdist, "-C", scratch / "unpacked"], check=True)  # Python before 3.11.4 has no safe filter
    (unpacked,) = (scratch / "unpacked").iterdir()
    return Archives(sdist, build_archive("wheel", unpacked, scratch / "one"), build_archive("wheel", ROOT, scratch / "other"))


def build_archive(target: str, project: Path, directory: Path) -> Path:
    """Build an archive as `pip` and `python -m build` do, with the build backend of this environment."""
    argv = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(directory)]
    done = subprocess.run(argv, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (archive,) = (path for path in directory.iterdir() if path.is_file())
    return archive


def read_wheel(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


def test_the_wheel_contains_one_top_level_package_with_all_modules_and_project_files(archives: Archives) -> None:
    names = set(read_wheel(archives.from_tree))

    (information,) = {name.partition("/")[0] for name in names} - {TOP}
    assert information.endswith(".dist-info")
    modules = {f"{TOP}/{path.relative_to(ROOT)}" for layer in LAYERS for path in (ROOT / layer).rglob("*.py")}
    assert len(modules) + 1 == len(source.read_modules())
    packed = {name for name in names if name.startswith(f"{TOP}/")}
    assert packed == modules | PROJECT | AUTOMATIONS | {f"{TOP}/__init__.py", f"{TOP}/py.typed"}


def test_the_wheel_is_the_same_from_the_source_archive_and_from_the_repository(archives: Archives) -> None:
    assert read_wheel(archives.from_sdist) == read_wheel(archives.from_tree)


def test_the_source_archive_contains_files_and_no_links(archives: Archives) -> None:
    with tarfile.open(archives.sdist) as archive:
        assert not [member.name for member in archive if not member.isfile()]


def test_the_wheel_contains_the_project_files_of_the_repository_unchanged(archives: Archives) -> None:
    packed = read_wheel(archives.from_sdist)

    assert packed[f"{TOP}/project/prefect.yaml"] == (ROOT / "prefect.yaml").read_bytes()
    assert packed[f"{TOP}/project/mirror.schema.json"] == (ROOT / "docs" / "reference" / "mirror.schema.json").read_bytes()
    for name in AUTOMATIONS:
        assert packed[name] == (ROOT / "automations" / Path(name).name).read_bytes()


def test_the_command_and_the_flows_work_from_the_wheel(archives: Archives, tmp_path: Path) -> None:
    with zipfile.ZipFile(archives.from_sdist) as archive:
        archive.extractall(tmp_path / "site")  # noqa: S202 - this test built the archive
    # Directories of PYTHONPATH come before the site-packages of this environment, which has the repository itself.
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}

    def run(*argv: str) -> str:
        done = subprocess.run([sys.executable, "-P", *argv], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    found = run("-c", "import prefect_dist.flows.mirror as module; print(module.__file__)")
    assert Path(found.strip()) == tmp_path / "site" / TOP / "flows" / "mirror.py"
    assert "wrote project/prefect.yaml" in run("-m", "prefect_dist.cli.main", "init", "project").splitlines()
