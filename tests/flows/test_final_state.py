"""Artifacts of runs with very many images or failures, and the end of a run."""

import gc
from dataclasses import replace
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_dist.flows._flow import flow_of
from prefect_dist.mirror.render import summary_line, table
from prefect_dist.mirror.report import RunReport
from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.ocispec.errors import Unavailable
from prefect_dist.transfer.cancellation import Stopped
from prefect_dist.transfer.image_report import Failure, ImageReport
from tests.flows.reports import fetch_report
from tests.peers.prefect import PrefectServer

ROOT = Descriptor(media_type="a/b", digest=Digest.of(b""), size=0)
REPORT = fetch_report([ImageReport(name=f"a.example/app:{n}", root=ROOT) for n in range(502)])
ERROR_TEXT = "the registry says '<b>|[x](http://a/b_c)`*\\'"


def artifacts(prefect: PrefectServer, report: RunReport, *, key: str = "many") -> dict[str, dict[str, Any]]:
    """Run a flow that returns a report, and return the artifacts of the run by key."""

    state = run_with_report(prefect, report, key=key)
    run = {"flow_runs": {"id": {"any_": [str(state.state_details.flow_run_id)]}}}
    return {one["key"]: one for one in prefect.post("/artifacts/filter", run)}


def run_with_report(prefect: PrefectServer, report: RunReport, *, key: str) -> State[Any]:
    """Run a flow that returns a report, and return the final state."""

    @flow_of(key, run_name=lambda: "return-report")
    def return_report() -> RunReport:
        return report

    with temporary_settings({PREFECT_API_URL: prefect.url}):
        state: State[Any] = return_report(return_state=True)
    return state


def test_an_artifact_shows_500_rows_and_names_the_number_of_hidden_rows(prefect: PrefectServer) -> None:
    shown = artifacts(prefect, REPORT)
    assert shown.keys() == {"fetch", "summary"}
    assert shown["fetch"]["data"].count("a.example/app:") == 500
    assert shown["fetch"]["description"] == f"{summary_line(REPORT)} (and 2 more rows, which are not shown)"
    assert len(table(REPORT).rows) == 502


def test_failures_are_escaped_and_only_the_first_500_are_shown(prefect: PrefectServer) -> None:
    failures = tuple(Failure(descriptor=None, error=Unavailable(f"{ERROR_TEXT} {number}")) for number in range(502))
    image = ImageReport(name="a.example/app:v1", root=ROOT, failures=failures)

    shown = artifacts(prefect, fetch_report([image]))["failures"]

    lines = shown["data"].splitlines()
    escaped = r"the registry says '\<b\>\|\[x\](http://a/b_c)\`\*\\'"
    assert lines[0] == f"1. a.example/app:v1: {escaped} 0"
    assert lines[499:] == [f"500. a.example/app:v1: {escaped} 499", "", "… and 2 more, which are not shown"]
    assert shown["description"].startswith("502 failures. ")


def test_the_failures_of_a_stopped_run_recommend_only_another_run(prefect: PrefectServer) -> None:
    image = ImageReport(
        name="a.example/app:v1", root=ROOT, failures=(Failure(descriptor=ROOT, error=Unavailable("broken off")),)
    )
    messages = "1 failure. The run stopped before it finished. Run it again to resume. Finished work is kept."
    for key in ("fetch", "pull"):
        stopped = replace(fetch_report([image]), flow=key, status="stopped", stopped=Stopped("cancelled"))
        assert artifacts(prefect, stopped, key=key)["failures"]["description"] == messages
    assert "fix the failures" in artifacts(prefect, fetch_report([image]))["failures"]["description"].lower()


def test_a_run_succeeds_although_prefect_rejects_an_artifact(
    prefect: PrefectServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise httpx.ReadTimeout("timed out")

    monkeypatch.setattr(SyncPrefectClient, "create_artifact", refuse)
    assert run_with_report(prefect, REPORT, key="many").is_completed()
    messages = [record.message for record in caplog.records if record.name == "prefect_dist.flows.background"]
    assert sorted(messages) == [f"cannot show the artifact {key} in Prefect: timed out" for key in ("fetch", "summary")]


def test_existing_objects_are_frozen_during_the_run_only(prefect: PrefectServer) -> None:
    frozen = list[int]()

    @flow_of("count-frozen", run_name=lambda: "count-frozen")
    def count_frozen() -> RunReport:
        frozen.append(gc.get_freeze_count())
        return REPORT

    with temporary_settings({PREFECT_API_URL: prefect.url}):
        count_frozen()
    frozen.append(gc.get_freeze_count())

    assert frozen[0] > 10_000
    assert frozen[1] == 0
