"""A flow of a user calls flows of this package: reports, errors, and the states that Prefect records."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_dist import DistError, InvalidInput, RunFailed, RunReport, RunStopped
from prefect_dist.mirror.render import summary_line
from prefect_dist.transfer.cancellation import CancelToken, Stopped, use_token
from tests import images
from tests.fakes.faults import Call, Fault
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import image
from tests.flows.reports import document, images_of
from tests.peers.prefect import PrefectServer
from tests.peers.processes import poll_until

BUILT = images.image(9300, layers=2)


@pytest.fixture(autouse=True)
def server(prefect: PrefectServer) -> Iterator[None]:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect.url}):
        yield


def call(flow: Any, *arguments: Any, **parameters: Any) -> Any:
    """Call a flow of this package from a flow of a user, and return the state of the flow of the user."""
    from prefect import flow as decorate

    @decorate(name="of a user", persist_result=False)
    def of_a_user() -> Any:
        return flow(*arguments, **parameters)

    return of_a_user(return_state=True)


def children(prefect: PrefectServer, state: Any) -> list[dict[str, Any]]:
    """Return the subflow runs of a run."""
    parent = {"flow_runs": {"parent_flow_run_id": {"any_": [str(state.state_details.flow_run_id)]}}}
    return list(prefect.post("/flow_runs/filter", parent))


def test_a_flow_returns_its_report_to_the_caller(prefect: PrefectServer, source: FakeRegistry, tmp_path: Path) -> None:
    from prefect_dist import fetch

    images.load(source, "app", BUILT, "v1")

    state = call(fetch, [f"{source.host}/app:v1"], str(tmp_path / "store"))

    report = state.result()
    assert isinstance(report, RunReport)
    assert (report.status, report.counts["fetched"]) == ("complete", len(BUILT.descriptors))
    (child,) = children(prefect, state)
    assert (child["name"], child["state_type"]) == (f"fetch {source.host}/app:v1", "COMPLETED")
    assert child["state"]["data"] is None


def test_a_failed_flow_raises_an_error_with_its_report(prefect: PrefectServer, source: FakeRegistry, tmp_path: Path) -> None:
    from prefect_dist import fetch

    images.load(source, "app", BUILT, "v1")
    names = [f"{source.host}/app:{tag}" for tag in ("v1", "gone")]

    state = call(fetch, names, str(tmp_path / "store"), retries=0)

    with pytest.raises(RunFailed) as raised:
        state.result()
    report = raised.value.report
    assert isinstance(report, RunReport)
    assert [image.outcome for image in images_of(report)] == ["fetched", "failed"]
    assert str(raised.value).startswith(f"1 of 2 images complete: {len(BUILT.descriptors)} fetched, 0 existed; ")
    assert f"{names[1]}: " in str(raised.value)
    assert "\n" not in str(raised.value)
    (child,) = children(prefect, state)
    assert (child["state_type"], child["state"]["message"]) == ("FAILED", str(raised.value))
    # For the parent, Prefect records the class and the text of the error, and no report.
    message = prefect.get(f"/flow_runs/{state.state_details.flow_run_id}")["state"]["message"]
    assert message == f"Flow run encountered an exception: RunFailed: {raised.value}"


def test_the_error_of_a_failed_mirror_survives_pickling_and_is_one_line_in_the_log(
    prefect: PrefectServer, source: FakeRegistry, target: FakeRegistry, tmp_path: Path
) -> None:
    from prefect_dist import mirror

    images.load(source, "app", BUILT, "v1")
    entries = [image(source, target, "app:v1"), image(source, target, "app:gone")]

    state = call(mirror, json.dumps({"sync": entries}), str(tmp_path / "store"), retries=0)

    error = state.result(raise_on_failure=False)
    assert isinstance(error, RunFailed)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(again), str(again)) == (RunFailed, str(error))
    assert isinstance(again.report, RunReport)
    assert isinstance(error.report, RunReport)
    assert document(again.report) == document(error.report)
    assert (again.report.counts["added"], again.report.counts["failed"]) == (1, 1)
    assert repr(again) == f"RunFailed({str(error)!r})"

    def logged_errors() -> list[str]:
        return [line for line in prefect.logs(str(state.state_details.flow_run_id)) if "Encountered exception" in line]

    assert poll_until(lambda: bool(logged_errors()))
    assert logged_errors()[0].splitlines()[0] == f"Encountered exception during execution: {error!r}"
    assert "RunReport(" not in logged_errors()[0]


def test_a_vetoed_flow_returns_its_report(
    prefect: PrefectServer, source: FakeRegistry, target: FakeRegistry, tmp_path: Path
) -> None:
    from prefect_dist import mirror

    images.load(source, "app", BUILT, "v1")
    entry = image(source, target, "app:v1", gate={"command": ["false"]})

    state = call(mirror, json.dumps({"sync": [entry]}), str(tmp_path / "store"))

    report = state.result()
    assert isinstance(report, RunReport)
    assert (report.status, report.counts["vetoed"]) == ("vetoed", 1)
    assert [(one["state_type"], one["state_name"]) for one in children(prefect, state)] == [("COMPLETED", "Vetoed")]
    assert target.manifest("app", "v1") is None


def test_a_stopped_flow_raises_run_stopped(prefect: PrefectServer, source: FakeRegistry, tmp_path: Path) -> None:
    from prefect_dist import fetch

    images.load(source, "app", BUILT, "v1")
    cancel = CancelToken()
    source.inject(Fault(path="/v2/app/blobs/.*", action=Call(lambda: cancel.request("asked to end"))))

    with use_token(cancel):
        state = call(fetch, [f"{source.host}/app:v1"], str(tmp_path / "store"))

    with pytest.raises(RunStopped) as raised:
        state.result()
    assert isinstance(raised.value, RunFailed)
    assert isinstance(raised.value, Stopped)
    assert raised.value.report.status == "stopped"
    assert [one["state_type"] for one in children(prefect, state)] == ["CANCELLED"]


def test_an_asynchronous_flow_calls_a_flow_without_await(prefect: PrefectServer, source: FakeRegistry, tmp_path: Path) -> None:
    program = f"""
import asyncio
from prefect import flow
from prefect_dist import RunFailed, fetch

@flow
async def of_a_user(tag: str) -> str:
    return fetch(["{source.host}/app:" + tag], "store", retries=0).status

print(asyncio.run(of_a_user("v1")))
try:
    asyncio.run(of_a_user("gone"))
except RunFailed as failed:
    print(failed)
"""
    images.load(source, "app", BUILT, "v1")
    env = os.environ | {"PREFECT_API_URL": prefect.url, "PREFECT_LOGGING_LEVEL": "CRITICAL"}
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    succeeded, failed = done.stdout.splitlines()
    assert succeeded == "complete"
    assert f"{source.host}/app:gone: not found" in failed


def test_invalid_input_raises_the_error_that_names_it(tmp_path: Path) -> None:
    from prefect_dist import mirror

    with pytest.raises(InvalidInput, match="configuration:1: synch: unknown key; did you mean sync") as raised:
        mirror("{synch: []}\n", str(tmp_path / "store"))
    assert not isinstance(raised.value, RunFailed)


def test_no_result_is_stored_without_a_deployment(source: FakeRegistry, tmp_path: Path) -> None:
    from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

    from prefect_dist import fetch

    images.load(source, "app", BUILT, "v1")
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "results"}):
        fetch([f"{source.host}/app:v1"], str(tmp_path / "store"))
        with pytest.raises(DistError):
            fetch([f"{source.host}/app:gone"], str(tmp_path / "store"), retries=0)
    assert not (tmp_path / "results").exists()


def test_a_flow_that_persists_its_result_stores_a_summary_and_returns_the_report(source: FakeRegistry, tmp_path: Path) -> None:
    from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

    from prefect_dist import fetch

    images.load(source, "app", BUILT, "v1")
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "results"}):
        report = fetch.with_options(persist_result=True)([f"{source.host}/app:v1"], str(tmp_path / "store"))
    assert isinstance(report, RunReport)
    (stored,) = (tmp_path / "results").iterdir()
    data = json.loads(json.loads(stored.read_text())["result"])["data"]
    assert (data["status"], data["summary"], data["counts"]) == ("complete", summary_line(report), report.counts)
