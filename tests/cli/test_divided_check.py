"""The command `check` with worker processes on this machine: the output and the exit codes are those of one process."""

import json
import shutil
from pathlib import Path
from typing import Any

from tests import images
from tests.cli.dist import Result, dist, dist_direct
from tests.fakes.registry import FakeRegistry

APPS = {f"app{number}": images.image(9200 + number, layers=1) for number in range(4)}
# Measurements of one run, which no two runs share.
MEASURED = {"seconds", "flow_run_id"}


def comparable(result: Result) -> tuple[int, dict[str, Any], list[str]]:
    """Return the exit code, the JSON document without measurements, and the messages about failures."""
    document = {key: value for key, value in result.json.items() if key not in MEASURED}
    return result.code, document, [line for line in result.err.splitlines() if line.startswith("error: ")]


def test_check_with_workers_prints_the_document_of_one_process_and_ends_with_its_exit_code(
    migrated: Path, tmp_path: Path
) -> None:
    with FakeRegistry() as source, FakeRegistry() as target:
        for name, built in APPS.items():
            images.load(source, name, built, "v1")
        file = tmp_path / "mirror.yaml"
        file.write_text(json.dumps({"sync": [{"type": "registry", "source": source.host, "target": target.host}]}))
        store = ("--store", str(tmp_path / "store"))
        assert dist_direct(*store, "mirror", str(file)).code == 0
        target.lose("app1", next(iter(APPS["app1"].blobs)))
        target.untag("app2", "v1")
        check = (*store, "--output", "json", "check", str(file))

        whole = dist_direct(*check)
        home = tmp_path / "prefect"
        home.mkdir()
        shutil.copy(migrated, home / "prefect.db")
        divided = dist(*check, "--workers", "2", PREFECT_API_URL=None, PREFECT_HOME=str(home), DIST_SERVER_IDLE="0")

        assert (whole.code, len(whole.json["targets"])) == (1, 2)
        assert divided.out, divided.err
        assert comparable(divided) == comparable(whole)


def test_workers_need_prefect(tmp_path: Path) -> None:
    lock = tmp_path / "lock.json"
    record = {"source": "a.invalid/x:v1", "digest": f"sha256:{'0' * 64}"}
    lock.write_text(json.dumps({"version": 1, "images": {"b.invalid/x:v1": record}}))

    refused = dist_direct("--store", str(tmp_path / "store"), "check", "--workers", "2", str(lock))

    assert (refused.code, "--workers is for Prefect runs" in refused.err) == (2, True), refused.err
