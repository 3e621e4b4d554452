"""Results of flow runs for programs that start deployments with `run_deployment` of Prefect."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from prefect_dist.mirror.run_result import MOST_ERRORS, RunFailed, RunSummary
from prefect_dist.ocispec.errors import NotFound
from prefect_dist.transfer.image_report import Failure, ImageReport
from tests import images
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import image
from tests.flows.reports import error_lines, fetch_report
from tests.peers.prefect import PrefectServer
from tests.peers.processes import PATIENCE_S

BUILT = images.image(9400, layers=2)
CALLER = """
import dataclasses, json, sys
from prefect.deployments import run_deployment
from prefect_dist import RunFailed

deployment, options = json.loads(sys.argv[1])
run = run_deployment(deployment, timeout=200, poll_interval=1, **options)
state, error = run.state, None
try:
    report = state.result()
except RunFailed as failed:
    report, error = failed.report, str(failed)
print(json.dumps({
    "run": str(run.id),
    "message": state.message,
    "key": state.data.storage_key,
    "block": state.data.storage_block_id and str(state.data.storage_block_id),
    "report": dataclasses.asdict(report),
    "error": error,
    "class": type(state.result(raise_on_failure=False)).__name__,
}))
"""


def run_from_program(
    server: PrefectServer, home: Path, name: str, parameters: dict[str, Any], **options: Any
) -> dict[str, Any]:
    """Start a run from another program with its own Prefect home, and return the result that the program sees."""
    env = os.environ | {"PREFECT_API_URL": server.url, "PREFECT_HOME": str(home), "PREFECT_LOGGING_LEVEL": "CRITICAL"}
    argv = [sys.executable, "-c", CALLER, json.dumps([f"{name}/{name}", {"parameters": parameters, **options}])]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def configuration(source: FakeRegistry, target: FakeRegistry, *names: str) -> str:
    return json.dumps({"sync": [image(source, target, name) for name in names]})


def test_the_stored_result_of_a_run_is_small_and_has_no_rows(
    server: PrefectServer, source: FakeRegistry, target: FakeRegistry, tmp_path: Path
) -> None:
    images.load(source, "app", BUILT, "v1")
    parameters = {"config": configuration(source, target, "app:v1"), "store": str(tmp_path / "store")}

    run = run_from_program(server, tmp_path / "home", "mirror", parameters)

    report, stored = run["report"], Path(run["key"]).read_text()
    assert (run["class"], run["error"]) == ("RunSummary", None)
    assert (report["status"], report["errors"], report["more_errors"]) == ("complete", [], 0)
    assert report["summary"] == report["message"] == run["message"]
    assert report["counts"]["added"] == 1
    assert report["counts"]["sent_bytes"] >= sum(map(len, BUILT.blobs.values()))
    assert report["seconds"] > 0
    assert "sha256:" not in stored  # no rows of the plan
    assert len(stored) < 2000


def test_a_failed_run_raises_its_error_for_the_program_that_started_it(
    server: PrefectServer, source: FakeRegistry, target: FakeRegistry, tmp_path: Path
) -> None:
    images.load(source, "app", BUILT, "v1")
    text = configuration(source, target, "app:v1", "app:gone")

    run = run_from_program(
        server, tmp_path / "home", "mirror", {"config": text, "store": str(tmp_path / "store"), "retries": 0}
    )

    report = run["report"]
    assert (run["class"], run["error"]) == ("RunFailed", run["message"])
    assert (report["status"], report["counts"]["added"], report["counts"]["failed"]) == ("failed", 1, 1)
    assert any(f"{source.host}/app:gone" in line for line in report["errors"])
    assert not [line for line in server.logs(run["run"]) if "Traceback" in line]


def test_a_result_in_shared_storage_is_read_from_any_machine(
    server: PrefectServer, source: FakeRegistry, tmp_path: Path
) -> None:
    """The state names a block, which the caller loads from the API. The state has no path of the worker."""
    from prefect.filesystems import LocalFileSystem
    from prefect.settings import PREFECT_API_URL, temporary_settings

    images.load(source, "app", BUILT, "v1")
    with temporary_settings({PREFECT_API_URL: server.url}):
        LocalFileSystem(basepath=str(tmp_path / "shared")).save("shared-results", overwrite=True)
    shared = {"env": {"PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK": "local-file-system/shared-results"}}
    parameters = {"references": [f"{source.host}/app:v1"], "store": str(tmp_path / "store")}

    run = run_from_program(server, tmp_path / "home", "fetch", parameters, job_variables=shared)

    assert not Path(run["key"]).is_absolute()
    assert run["block"] is not None
    assert (tmp_path / "shared" / run["key"]).exists()
    assert run["report"]["counts"]["fetched"] == len(BUILT.descriptors)


def test_a_summary_keeps_the_first_errors_and_counts_the_others() -> None:
    failures = tuple(Failure(descriptor=None, error=NotFound(f"a.example/app:{n}: not found")) for n in range(MOST_ERRORS + 5))
    report = fetch_report([ImageReport(name="a.example/app", root=None, failures=failures)])

    summary = RunSummary.of(report)

    assert list(summary.errors) == error_lines(report)[:MOST_ERRORS]
    assert summary.more_errors == 5
    assert str(RunFailed(summary)) == str(RunFailed(report))
    assert str(RunFailed(report)).endswith(f" (and {MOST_ERRORS + 4} more)")
