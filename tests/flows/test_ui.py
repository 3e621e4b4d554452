"""A user starts a deployment from its form in the UI of Prefect and opens the run, in a real browser."""

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
_ACCEPTED_S = 20.0


def start_from_form(page: Page, server: PrefectServer, configuration: str) -> str:
    """Start a run of the deployment of `mirror` from its form, and return the id of the run.

    If the database of the server was too busy to accept the form, submit the form again, as a user would.
    """
    deployment = str(server.deployment("mirror")["id"])
    known = manual_runs(server, deployment)
    for _ in range(4):
        page.open(f"{server.ui}/deployments/deployment/{deployment}/run")
        for title in TITLES:
            page.wait_for(title)
        page.type(configuration, "Configuration")
        page.click("Submit")
        if poll_until(lambda: manual_runs(server, deployment) > known, timeout_s=_ACCEPTED_S):
            (run,) = manual_runs(server, deployment) - known
            return run
    raise AssertionError(f"no run started after four submissions of the form; the page shows:\n{page.text()}")


def manual_runs(server: PrefectServer, deployment: str) -> set[str]:
    """Return the runs of a deployment that no schedule started."""
    wanted = {"flow_runs": {"deployment_id": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC"}
    return {run["id"] for run in server.post("/flow_runs/filter", wanted) if not run["auto_scheduled"]}


def test_a_user_starts_a_run_from_the_form_and_sees_its_tasks_artifacts_and_parameters(
    server: PrefectServer, registry: CncfRegistry, tmp_path: Path
) -> None:
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
        run = start_from_form(page, server, configuration)
        assert server.wait_for_end(run)["type"] == "COMPLETED"

        assert inspect(f"docker://{target.host}/copy:v1", raw=True)["manifests"]
        # A survey, a task for each descriptor, and a publication. A page shows the tasks only if they were recorded before.
        server.task_runs(run, at_least=1 + len(INDEX.descriptors) + 1)
        page.open(f"{server.ui}/runs/flow-run/{run}")
        page.wait_for("mirror by-hand")
        page.wait_for("Completed")
        page.wait_for_drawing("canvas")
        page.wait_for("prefect.flow_runs")  # the logger, in each line of the log; the page does not show all lines at once
        page.click("Task Runs")
        page.wait_for(f"mirror index {INDEX.root.digest[:19]}")
        page.click("Artifacts")
        page.wait_for("mirror by-hand complete: 1 added")
        page.click("Parameters")
        page.wait_for('"dry_run": false')
