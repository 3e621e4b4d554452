"""The records of a mirror run on a local Prefect server."""

import json
import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

from prefect_dist.cli import prefect_api
from tests import images
from tests.cli.dist import command
from tests.fakes.registry import FakeRegistry

IMAGE = images.image(980, layers=1)
# Tasks per part, with a smaller limit than the limit of Prefect runs. The server records tasks in batches of 200.
PART = 300
TAGS = PART + 1
SETTING = f"from prefect_dist.flows import mirror_parts; mirror_parts.MOST_TASKS = {PART}"
PLAN = 1 + TAGS // 100 + 1  # one task for the tags, and one survey per hundred images


def list_tasks(database: sqlite3.Connection, run: str) -> list[tuple[str, str]]:
    """Return the name and the state of each task run of a flow run."""
    return database.execute("SELECT name, state_type FROM task_run WHERE flow_run_id = ?", (run,)).fetchall()


def test_the_local_server_records_all_parts_of_a_run(migrated: Path, tmp_path: Path) -> None:
    config, home = tmp_path / "mirror.yaml", tmp_path / "prefect"
    home.mkdir()
    shutil.copy(migrated, home / "prefect.db")
    with FakeRegistry() as registry:
        images.load(registry, "app", IMAGE)
        for number in range(TAGS):
            registry.put_manifest("app", IMAGE.manifests[-1].raw, IMAGE.root.media_type, tag=f"v{number}")
        config.write_text(f"sync: [{{source: {registry.host}/app, target: {registry.host}/copy, type: repository}}]")

        argv = command("--store", tmp_path / "store", "--output", "json", "mirror", config)
        argv[1:3] = ["-c", f"from prefect_dist.cli.main import main; {SETTING}; main()"]
        environment = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
        environment |= prefect_api.ENVIRONMENT | {"PREFECT_HOME": str(home)}  # Prefect reads them before the command sets them
        result = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)

    assert (result.returncode, result.stderr) == (0, "")
    run = json.loads(result.stdout)["flow_run_id"]
    with closing(sqlite3.connect(home / "prefect.db")) as database:  # the server has ended with the command
        plan = list_tasks(database, run)
        below = (
            "SELECT id, state_type FROM flow_run WHERE parent_task_run_id IN (SELECT id FROM task_run WHERE flow_run_id = ?)"
        )
        parts = database.execute(below, (run,)).fetchall()
        tasks = [task for part, _ in parts for task in list_tasks(database, part)]
    assert [state for _, state in parts] == ["COMPLETED"] * 2
    assert len(plan) == PLAN + len(parts)
    assert [state for _, state in tasks] == ["COMPLETED"] * len(tasks)
    assert sum(name.startswith("publish") for name, _ in tasks) == TAGS
