"""A failed run in Prefect: failed tasks, the cause in the message of the state, and failures at the end of the log."""

from tests import images
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import Mirrors, image
from tests.peers.prefect import PrefectServer
from tests.peers.processes import poll_until

BUILT = images.image(6700, layers=1)


def test_an_image_that_is_missing_at_its_source_fails_its_task_and_the_run(
    mirrors: Mirrors, prefect: PrefectServer, source: FakeRegistry, target: FakeRegistry
) -> None:
    images.load(source, "app", BUILT, "v1")

    report = mirrors.run(image(source, target, "app:v1"), image(source, target, "app:gone"), image(source, target, "lost:v1"))

    assert report.status == "failed"
    runs = prefect.task_runs(mirrors.flow_run, at_least=report.tasks)
    failed = [run for run in runs if run["state_type"] == "FAILED"]
    assert [run["name"].partition(" ")[0] for run in failed] == ["survey"] * len(failed) != []
    assert any(f"{source.host}/app:gone" in run["state"]["message"] for run in failed)

    state = prefect.get(f"/flow_runs/{mirrors.flow_run}")["state"]
    assert state["type"] == "FAILED"
    assert f"{source.host}/app:gone" in state["message"]
    assert state["message"].endswith(" (and 1 more)")

    def log_ends_with_failures() -> bool:
        lines = prefect.logs(mirrors.flow_run)
        starts = [number for number, line in enumerate(lines) if " failed: 1 added" in line and line.endswith("; 1 cause:")]
        return bool(starts) and all(any(name in line for line in lines[starts[0] :]) for name in ("app:gone", "lost:v1"))

    assert poll_until(log_ends_with_failures), prefect.logs(mirrors.flow_run)
