"""The records of a mirror run on a local Prefect server."""

from pathlib import Path

from prefect_dist.flows.mirror_parts import MOST_TASKS
from tests import images
from tests.cli.dist import dist
from tests.fakes.registry import FakeRegistry
from tests.peers.prefect import prefect_server

IMAGE = images.image(980, layers=1)
TAGS = MOST_TASKS + 1
PLAN = 1 + TAGS // 100 + 1  # one task for the tags, and one survey per hundred images


def test_the_local_server_records_all_parts_of_a_run(tmp_path: Path) -> None:
    config, home = tmp_path / "mirror.yaml", tmp_path / "prefect"
    with FakeRegistry() as registry:
        images.load(registry, "app", IMAGE)
        for number in range(TAGS):
            registry.put_manifest("app", IMAGE.manifests[-1].raw, IMAGE.root.media_type, tag=f"v{number}")
        config.write_text(f"sync: [{{source: {registry.host}/app, target: {registry.host}/copy, type: repository}}]")

        result = dist(
            "--store", tmp_path / "store", "--output", "json", "mirror", config, PREFECT_HOME=str(home), PREFECT_API_URL=None
        )

    assert (result.code, result.err) == (0, "")
    with prefect_server(home) as server:
        run = result.json["flow_run_id"]
        parts = server.post("/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}})
        assert [part["state_type"] for part in parts] == ["COMPLETED"] * 2
        assert len(server.task_runs(run)) == PLAN + len(parts)
        tasks = [task for part in parts for task in server.task_runs(part["id"])]
    assert [task["state_type"] for task in tasks] == ["COMPLETED"] * len(tasks)
    assert sum(task["name"].startswith("publish") for task in tasks) == TAGS
