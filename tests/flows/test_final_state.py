"""What the artifacts of a run show of very many images, and what its report keeps."""

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
SAID = "the registry says '<b>|[x](http://a/b_c)`*\\'"


def artifacts(prefect: PrefectServer, report: RunReport, *, key: str = "many") -> dict[str, dict[str, Any]]:
    """What a run that ends with a report shows, by key."""

    state = ended(prefect, report, key=key)
    run = {"flow_runs": {"id": {"any_": [str(state.state_details.flow_run_id)]}}}
    return {one["key"]: one for one in prefect.post("/artifacts/filter", run)}


def ended(prefect: PrefectServer, report: RunReport, *, key: str) -> State[Any]:
    """The state of a run that ends with a report."""

    @flow_of(key, run_name=lambda: "ends")
    def ends() -> RunReport:
        return report

    with temporary_settings({PREFECT_API_URL: prefect.url}):
        state: State[Any] = ends(return_state=True)
    return state


def test_an_artifact_shows_what_a_page_can_and_says_so(prefect: PrefectServer) -> None:
    shown = artifacts(prefect, REPORT)
    assert shown.keys() == {"fetch", "summary"}
    assert shown["fetch"]["data"].count("a.example/app:") == 500
    assert shown["fetch"]["description"] == f"{summary_line(REPORT)} (and 2 more rows, which are not shown)"
    assert len(table(REPORT)) == 502


def test_failures_are_shown_as_they_are_and_of_very_many_the_first(prefect: PrefectServer) -> None:
    failures = tuple(Failure(descriptor=None, error=Unavailable(f"{SAID} {number}")) for number in range(502))
    image = ImageReport(name="a.example/app:v1", root=ROOT, failures=failures)

    shown = artifacts(prefect, fetch_report([image]))["failures"]

    lines = shown["data"].splitlines()
    escaped = r"the registry says '\<b\>\|\[x\](http://a/b_c)\`\*\\'"
    assert lines[0] == f"1. a.example/app:v1: {escaped} 0"
    assert lines[499:] == [f"500. a.example/app:v1: {escaped} 499", "", "… and 2 more, which are not shown"]
    assert shown["description"].startswith("502 failures. ")


def test_a_run_that_was_ended_is_to_be_run_again_with_nothing_put_right(prefect: PrefectServer) -> None:
    image = ImageReport(
        name="a.example/app:v1", root=ROOT, failures=(Failure(descriptor=ROOT, error=Unavailable("broken off")),)
    )
    told = "1 failure. The run stopped before it finished. Run it again to resume. Finished work is kept."
    for key in ("fetch", "pull"):
        stopped = replace(fetch_report([image]), flow=key, status="stopped", stopped=Stopped("cancelled"))
        assert artifacts(prefect, stopped, key=key)["failures"]["description"] == told
    assert "fix the failures" in artifacts(prefect, fetch_report([image]))["failures"]["description"].lower()


def test_that_prefect_does_not_take_an_artifact_is_no_reason_to_fail(
    prefect: PrefectServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise httpx.ReadTimeout("timed out")

    monkeypatch.setattr(SyncPrefectClient, "create_artifact", refuse)
    assert ended(prefect, REPORT, key="many").is_completed()
    told = [record.message for record in caplog.records if record.name == "prefect_dist.flows.background"]
    assert sorted(told) == [f"cannot show the artifact {key} in Prefect: timed out" for key in ("fetch", "summary")]


def test_the_garbage_collector_leaves_out_what_was_there_and_only_for_the_run(prefect: PrefectServer) -> None:
    left_out = list[int]()

    @flow_of("looks", run_name=lambda: "looks")
    def looks() -> RunReport:
        left_out.append(gc.get_freeze_count())
        return REPORT

    with temporary_settings({PREFECT_API_URL: prefect.url}):
        looks()
    left_out.append(gc.get_freeze_count())

    assert left_out[0] > 10_000
    assert left_out[1] == 0
