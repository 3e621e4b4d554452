"""The command init writes all files of a new project, or no file."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests import images
from tests.cli.dist import dist, dist_direct
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import find_missing
from tests.source import ROOT

AUTOMATIONS = sorted(f"automations/{path.name}" for path in (ROOT / "automations").iterdir())
FILES = [*AUTOMATIONS, "mirror.schema.json", "mirror.yaml", "prefect.yaml"]

_COPY = "to add the deployments to this project, run dist init in an empty directory and copy them from its prefect.yaml"


def written(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def test_init_writes_the_files_of_the_repository_and_prints_the_next_commands(tmp_path: Path) -> None:
    result = dist("init", tmp_path / "new" / "project")

    project = tmp_path / "new" / "project"
    assert (result.code, result.err) == (0, "")
    assert written(project) == FILES
    for name in (*AUTOMATIONS, "prefect.yaml"):
        assert (project / name).read_bytes() == (ROOT / name).read_bytes()
    assert (project / "mirror.schema.json").read_bytes() == (ROOT / "docs" / "reference" / "mirror.schema.json").read_bytes()
    assert result.lines[: len(FILES)] == [f"wrote {project / name}" for name in FILES]
    printed = [line.strip() for line in result.lines]
    assert {f"cd {project}", "dist mirror mirror.yaml --dry-run", "prefect --no-prompt deploy --all"} < set(printed)


def test_init_writes_to_the_current_directory_and_lists_its_files_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert dist("--output", "json", "init").json == {"directory": ".", "files": FILES}
    assert written(tmp_path) == FILES


def test_the_configuration_that_init_writes_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert dist("init").code == 0

    result = dist("config", "mirror.yaml", DIST_STORE=str(tmp_path / "store"))

    assert (result.code, result.err) == (0, "")
    schema = (tmp_path / "mirror.schema.json").read_text()
    jsonschema.validate(yaml.safe_load((tmp_path / "mirror.yaml").read_text()), yaml.safe_load(schema))


def test_a_converted_file_of_skopeo_mirrors_its_images(tmp_path: Path) -> None:
    one = images.image(1)
    with FakeRegistry() as source, FakeRegistry() as target:
        images.load(source, "team/app", one, "v1")
        (tmp_path / "sync.yaml").write_text(json.dumps({source.host: {"images": {"team/app": ["v1"]}}}))
        converted = dist("init", "--from", "skopeo", tmp_path / "sync.yaml", "--to", f"{target.host}/all")
        (tmp_path / "mirror.yaml").write_bytes(converted.out)
        done = dist_direct("--store", tmp_path / "store", "mirror", tmp_path / "mirror.yaml")
        assert (converted.code, done.code) == (0, 0), converted.err + done.err
        assert find_missing(target, "all/app", one, "v1") == []
    assert written(tmp_path)[0] == "mirror.lock.json"


@pytest.mark.parametrize("arguments", [["--from", "skopeo", "sync.yaml"], ["--to", "registry.example"]])
def test_a_conversion_requires_a_format_and_a_target(arguments: list[str]) -> None:
    refused = dist("init", *arguments)
    assert (refused.code, refused.line) == (
        2,
        "dist: --from and --to require each other: a file of skopeo sync has no target",
    )


@pytest.mark.parametrize(
    ("existing", "named", "advice"),
    [
        (["prefect.yaml"], "prefect.yaml", f"; {_COPY}"),
        (["automations/silent.yaml", "mirror.yaml"], "automations/silent.yaml, mirror.yaml", ""),
        (["automations"], "automations", ""),
    ],
    ids=["one", "two", "a file in place of a folder"],
)
def test_init_overwrites_nothing(tmp_path: Path, existing: list[str], named: str, advice: str) -> None:
    for name in existing:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")

    result = dist("init", tmp_path)

    assert result.code == 1
    assert result.line == f"dist: {tmp_path}: {named}: file exists; nothing was written; choose another directory{advice}"
    assert written(tmp_path) == existing
    assert {(tmp_path / name).read_text() for name in existing} == {"mine"}


def test_init_does_not_follow_a_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "mirror.yaml").symlink_to(tmp_path / "elsewhere")

    assert dist("init", tmp_path).code == 1
    assert not (tmp_path / "elsewhere").exists()
    assert not (tmp_path / "prefect.yaml").exists()


def test_a_failed_init_removes_its_files(tmp_path: Path) -> None:
    result = dist("init", tmp_path / "project", file_limit_bytes=10_000)  # smaller than the JSON schema

    assert (result.code, result.line) == (1, f"dist: {tmp_path / 'project' / 'mirror.schema.json'}: File too large")
    assert list(tmp_path.iterdir()) == []


def test_init_refuses_a_file_as_its_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    result = dist("init", tmp_path / "file")

    assert (result.code, result.line) == (2, f"dist: {tmp_path / 'file'}: expected a directory, got a file")


def test_init_does_not_import_prefect(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from prefect_dist.cli.app import app\n"
        f"app.meta(['init', {str(tmp_path)!r}], result_action='return_value')\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'prefect']\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert written(tmp_path) == FILES
