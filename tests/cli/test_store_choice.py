"""The choice of the content store. The output names the store, and a dry run creates no store."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import images
from tests.cli.dist import Result, dist, dist_direct
from tests.fakes.registry import FakeRegistry

IMAGE = images.image(1250, layers=1)


def config(directory: Path, source: FakeRegistry, target: FakeRegistry, **said: object) -> Path:
    path = directory / "mirror.yaml"
    entry = {"type": "image", "source": f"{source.host}/app:v1", "target": f"{target.host}/app:v1"}
    path.write_text(json.dumps({"sync": [entry], **said}))
    return path


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The places that name a store, and the store that is used."""

    file: str | None = None
    environment: str | None = None
    option: str | None = None
    used: str


@pytest.mark.parametrize(
    "choice",
    [
        Choice(file="file", environment="environment", option="option", used="option"),
        Choice(file="file", environment="environment", used="file"),
        Choice(environment="environment", used="environment"),
        Choice(used="data/prefect-dist/store"),
    ],
    ids=str,
)
def test_the_option_overrides_the_file_and_the_file_overrides_the_environment(tmp_path: Path, choice: Choice) -> None:
    with FakeRegistry() as source, FakeRegistry() as target:
        images.load(source, "app", IMAGE, "v1")
        path = config(tmp_path, source, target, **({"store": choice.file} if choice.file else {}))
        options = ("--store", str(tmp_path / choice.option)) if choice.option else ()

        def run(*arguments: str | Path) -> Result:
            named = str(tmp_path / choice.environment) if choice.environment else None
            return dist(*options, *arguments, DIST_STORE=named, XDG_DATA_HOME=str(tmp_path / "data"))

        shown = run("--output", "json", "config", path)
        planned = run("--output", "json", "mirror", "--direct", "--dry-run", path)
        made = sorted(str(marker.parent.relative_to(tmp_path)) for marker in tmp_path.rglob("oci-layout"))
        done = run("mirror", "--direct", path)

    place = str(tmp_path / choice.used)
    assert (shown.json["store"], planned.json["store"], made) == (place, place, [])
    assert (done.code, f"store: {place}" in done.lines) == (0, True), done.err
    assert [str(marker.parent) for marker in tmp_path.rglob("oci-layout")] == [place]
    warnings = [line for line in done.err.splitlines() if line.startswith("dist: warning: ")]
    assert planned.err.splitlines() == warnings
    assert warnings == (
        [f"dist: warning: {path}: no store is set, so images are kept in {place}; set store in the file, DIST_STORE or --store"]
        if choice.used.startswith("data")
        else []
    )


def test_a_dry_run_and_a_check_create_no_store(tmp_path: Path) -> None:
    store = tmp_path / "store"
    (tmp_path / "all.txt").write_text("127.0.0.1:1/app:v1\n")
    dry = dist_direct("--store", store, "seed", tmp_path / "all.txt", "--to", "127.0.0.1:1", "--dry-run", "--retries", "0")
    with FakeRegistry() as source, FakeRegistry() as target:
        check = dist_direct("--store", store, "check", config(tmp_path, source, target))
    assert (dry.code, f"store: {store}" in dry.lines, check.code) == (1, True, 1)
    assert not store.exists()


def test_options_of_the_store_apply_to_the_store_of_a_configuration(tmp_path: Path) -> None:
    with FakeRegistry() as source, FakeRegistry() as target:
        path = config(tmp_path, source, target, store="store")
        result = dist("--store-option", "endpoint_url=http://127.0.0.1:9", "mirror", path, "--dry-run")
    assert (result.code, "endpoint_url" in result.err) == (1, True), result.err
