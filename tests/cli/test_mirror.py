"""The command mirror: output, exit codes, and the content store."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests import images
from tests.cli.dist import dist, dist_direct
from tests.fakes.access import Basic
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import find_missing
from tests.peers.prefect import PrefectServer

ONE, OTHER = images.image(1200, layers=1), images.image(1201, layers=1)
SECRET = "hunter2-secret"


def config(directory: Path, *sync: dict[str, Any], **said: Any) -> Path:
    path = directory / "mirror.yaml"
    path.write_text(json.dumps({"store": "store", "sync": sync, **said}))
    return path


def test_a_dry_run_then_its_run(prefect: PrefectServer, tmp_path: Path) -> None:
    assert prefect.url
    with FakeRegistry() as source, FakeRegistry(auth=Basic("me", SECRET)) as target:
        images.load(source, "app", ONE, "v1")
        entry = {"type": "image", "source": f"{source.host}/app:v1", "target": f"{target.host}/copy:v1", "fastCheck": True}
        lost = {**entry, "source": f"{source.host}/app:none", "target": f"{target.host}/copy:none"}
        known = {target.host: {"user": "me", "pass": '{{env "TARGET_PASSWORD"}}'}}
        path = config(tmp_path, entry, lost, registries=known, name="ours")

        dry = dist("mirror", "--dry-run", path, TARGET_PASSWORD=SECRET)

        assert dry.code == 1
        heads, none, row, summary, _, _ = dry.lines
        assert heads.split() == ["IMAGE", "TARGET", "ACTION", "OUTCOME", "TO"]
        assert none.split() == [lost["source"], lost["target"], "failed"]
        assert row.split() == [entry["source"], entry["target"], "add", "planned", ONE.root.digest[:19]]
        assert summary.startswith("plan of mirror ours: 1 to add, 0 to change, 0 unchanged, 1 failed; ")
        warned = [line for line in dry.err.splitlines() if line.startswith(f"dist: warning: {path}:1: ")]
        assert [f"sync[{number}].fastCheck: has no effect" in line for number, line in enumerate(warned)] == [True, True]
        assert target.manifest("copy", "v1") is None
        assert not (tmp_path / "mirror.lock.json").exists()

        done = dist("--output", "json", "mirror", "--retries", "0", path, TARGET_PASSWORD=SECRET)

        assert (done.code, done.json["status"], len(done.json["errors"])) == (1, "failed", 1)
        assert [(one["target"], one["new"], one["outcome"]) for one in done.json["targets"]] == [
            (entry["target"], ONE.root.digest, "added"),
            (lost["target"], None, "failed"),
        ]
        assert not find_missing(target, "copy", ONE, "v1")
        assert (tmp_path / "store" / "oci-layout").exists()
        assert json.loads((tmp_path / "mirror.lock.json").read_text())["images"].keys() == {entry["target"]}
        assert not [text for text in (dry.out, dry.err, done.out, done.err) if SECRET in str(text)]


def test_the_store_option_overrides_the_configuration(tmp_path: Path) -> None:
    with FakeRegistry() as source, FakeRegistry() as target:
        images.load(source, "app", ONE, "v1")
        entry = {"type": "image", "source": f"{source.host}/app:v1", "target": f"{target.host}/copy:v1"}
        done = dist_direct("--store", tmp_path / "other", "mirror", config(tmp_path, entry))
    assert done.code == 0, done.err
    assert (tmp_path / "other" / "oci-layout").exists()
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (
            {"sync": [{"type": "image", "source": "a.example/x:v1"}]},
            "mirror.yaml:1: sync[0]: expected either target or targets",
        ),
        ({"sync": []}, "expected sync or seed"),
        ({"sink": []}, "sink"),
    ],
    ids=str,
)
def test_an_invalid_configuration_fails_with_one_line_before_prefect_starts(
    tmp_path: Path, said: dict[str, Any], says: str
) -> None:
    path = tmp_path / "mirror.yaml"
    path.write_text(json.dumps(said))
    result = dist("mirror", path, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert (result.code, says in result.line) == (2, True), result.err


def test_a_veto_exits_with_3_unless_another_image_failed(prefect: PrefectServer, tmp_path: Path) -> None:
    assert prefect.url
    with FakeRegistry() as source, FakeRegistry() as target:
        images.load(source, "app", ONE, "v1")
        images.load(source, "bad", OTHER, "v1")
        gate = {"command": ["sh", "-c", 'case "$DIST_REFERENCE" in */bad:*) echo 3 critical findings; exit 1;; esac']}
        app, bad, none = (
            {"type": "image", "source": f"{source.host}/{name}:v1", "target": f"{target.host}/{name}:v1", "gate": gate}
            for name in ("app", "bad", "none")
        )

        vetoed = dist_direct("--output", "json", "mirror", config(tmp_path, app, bad))
        said = dist("mirror", config(tmp_path, app, bad))
        quiet = dist_direct("mirror", "--quiet", config(tmp_path, app, bad))
        failed = dist_direct("--output", "json", "mirror", "--retries", "0", config(tmp_path, app, bad, none))
        passed = dist_direct("mirror", config(tmp_path, app))

        assert (vetoed.code, vetoed.json["status"], vetoed.json["errors"]) == (3, "vetoed", [])
        assert [one["outcome"] for one in vetoed.json["targets"]] == ["added", "vetoed"]
        assert (said.code, said.lines[-3].split(":")[0]) == (3, "mirror vetoed"), said.err
        why = f"dist: {bad['source']} to {bad['target']}: vetoed by sh: 3 critical findings (exit status 1)\n"
        assert why in said.err
        assert (quiet.code, quiet.err.count(why)) == (3, 1)
        assert (failed.code, failed.json["status"], len(failed.json["errors"])) == (1, "failed", 1)
        assert [one["outcome"] for one in failed.json["targets"]] == ["unchanged", "vetoed", "failed"]
        assert passed.code == 0, passed.err
        assert find_missing(target, "app", ONE, "v1") == []
        assert target.manifest("bad", "v1") is None
