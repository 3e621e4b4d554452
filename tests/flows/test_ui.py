"""Prefect's UI as a person uses it, in a real browser: a deployment's form is filled in, and its run looked at."""

from pathlib import Path

from tests import images
from tests.peers.chromium import Page, chromium
from tests.peers.prefect import PrefectServer
from tests.peers.processes import poll_until
from tests.peers.registry import CncfRegistry, cncf_registry
from tests.peers.skopeo import inspect

ONE, OTHER = images.image(7100, layers=2), images.image(7101, layers=2, platform="linux/arm64")
INDEX = images.index([ONE, OTHER])
TITLES = (
    "Configuration",
    "Mirror configuration: block:NAME",
    "Content store",
    "Dry run",
    "Stop after the plan, and write nothing",
)
_TAKEN_S = 20.0


def started(page: Page, server: PrefectServer, configuration: str) -> str:
    """The id of the run of the mirror's deployment that its form starts.

    The form is filled in again where the server's database was too busy to take it, as a person would.
    """
    deployment = str(server.deployment("mirror")["id"])
    known = by_hand(server, deployment)
    for _ in range(4):
        page.open(f"{server.ui}/deployments/deployment/{deployment}/run")
        for title in TITLES:
            page.wait_for(title)
        page.type(configuration, "Configuration")
        page.click("Submit")
        if poll_until(lambda: by_hand(server, deployment) > known, timeout_s=_TAKEN_S):
            (run,) = by_hand(server, deployment) - known
            return run
    raise AssertionError(f"the form was never taken; the page shows:\n{page.text()}")


def by_hand(server: PrefectServer, deployment: str) -> set[str]:
    """The runs of a deployment that its schedule did not start."""
    asked = {"flow_runs": {"deployment_id": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC"}
    return {run["id"] for run in server.post("/flow_runs/filter", asked) if not run["auto_scheduled"]}


def test_a_run_is_started_from_the_form_and_looked_at(server: PrefectServer, registry: CncfRegistry, tmp_path: Path) -> None:
    images.push(registry.host, "ui/app", INDEX, "v1")
    with cncf_registry(tmp_path / "target") as target, chromium(tmp_path / "chromium") as browser:
        page = browser.page()

        page.open(f"{server.ui}/deployments/deployment/{server.deployment('mirror')['id']}")
        page.wait_for("nightly")
        configuration = f"""\
name: by-hand
store: {tmp_path}/store
lock: {tmp_path}/lock.json
sync:
  - {{type: image, source: {registry.host}/ui/app:v1, target: {target.host}/copy:v1}}
"""
        run = started(page, server, configuration)
        assert server.ended(run)["type"] == "COMPLETED"

        assert inspect(f"docker://{target.host}/copy:v1", raw=True)["manifests"]
        # A survey, a task for each descriptor, and one that publishes: pages show them that are opened once they are recorded.
        server.task_runs(run, at_least=1 + len(INDEX.descriptors) + 1)
        page.open(f"{server.ui}/runs/flow-run/{run}")
        page.wait_for("mirror by-hand")
        page.wait_for("Completed")
        page.wait_for_drawing("canvas")
        page.wait_for("prefect.flow_runs")  # which each line of the log shows; not all of them are on the page at once
        page.click("Task Runs")
        page.wait_for(f"mirror index {INDEX.root.digest[:19]}")
        page.click("Artifacts")
        page.wait_for("mirror by-hand complete: 1 added")
        page.click("Parameters")
        page.wait_for('"dry_run": false')
