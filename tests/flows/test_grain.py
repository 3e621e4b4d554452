"""Runs with one task run per image: the results of runs with one task run per descriptor, with fewer task runs."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from prefect_dist.flows import mirror_parts
from prefect_dist.mirror.progress import notify_also
from prefect_dist.mirror.report import RunReport
from prefect_dist.transfer.cancellation import CancelToken, use_token
from prefect_dist.transfer.events import Event, ImageEnded, StepDone
from tests import images
from tests.fakes.faults import Answer, Fault
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import count_reads, count_requests, count_uploads, find_missing
from tests.flows.reports import document, error_lines, result_of
from tests.peers.prefect import PrefectServer

SHARED = images.image(9200, layers=2)
BUILT = {
    "v1": images.index([SHARED, images.image(9201, platform="linux/arm64")]),
    "v2": images.index([SHARED, images.image(9202, platform="linux/arm64")]),
    "v3": images.image(9203, layers=2),
}
BLOBS = {digest for built in BUILT.values() for digest in built.blobs}


@pytest.fixture(autouse=True)
def _api(prefect: PrefectServer) -> Iterator[None]:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect.url}):
        yield


@pytest.fixture
def source() -> Iterator[FakeRegistry]:
    with FakeRegistry() as source:
        for tag, built in BUILT.items():
            images.load(source, "app", built, tag)
        yield source


def run(flow: Callable[..., Any], *arguments: Any, **parameters: Any) -> tuple[RunReport, str]:
    """Run a flow. Return the report, and the id of the flow run."""
    state = flow(*arguments, return_state=True, retries=1, **parameters)
    report = result_of(state)
    assert isinstance(report, RunReport), report
    return report, str(state.state_details.flow_run_id)


def mirror(directory: Path, source: FakeRegistry, target: FakeRegistry, **settings: Any) -> tuple[RunReport, str]:
    from prefect_dist.flows.mirror import mirror as flow

    directory.mkdir(exist_ok=True)
    config = directory / "mirror.yaml"
    entry = {"source": f"{source.host}/app", "type": "repository", "target": f"{target.host}/copy"}
    config.write_text(json.dumps({"sync": [{**entry, **settings}], "grain": "image"}))
    return run(flow, str(config), str(directory / "store"))


def stated(report: RunReport, *registries: FakeRegistry) -> Any:
    """Return the JSON of a report without times, task runs and hosts."""
    text = json.dumps({key: value for key, value in document(report).items() if key not in ("tasks", "seconds", "store")})
    for number, registry in enumerate(registries):
        text = text.replace(registry.host, f"REGISTRY-{number}")
    return json.loads(text)


def test_a_mirror_has_a_task_run_per_image_with_the_descriptors_in_its_state(
    prefect: PrefectServer, source: FakeRegistry, target: FakeRegistry, tmp_path: Path
) -> None:
    report, flow_run = mirror(tmp_path, source, target)

    assert report.status == "complete", error_lines(report)
    runs = {one["name"]: one["state"] for one in prefect.task_runs(flow_run, at_least=5)}
    names = {f"image {source.host}/app:{tag}" for tag in BUILT}
    survey = "survey 3 images"
    assert runs.keys() == {*names, survey, f"tags of {source.host}/app"}
    assert report.tasks == len(runs)
    assert runs[f"image {source.host}/app:v3"]["message"] == "4 descriptors: 1 existed, 3 fetched"
    assert prefect.edges(flow_run) == {(survey, name) for name in names}


def test_both_grains_have_the_same_report_and_send_the_same_requests(
    source: FakeRegistry, target: FakeRegistry, other: FakeRegistry, tmp_path: Path
) -> None:
    from prefect_dist.flows.mirror import mirror as flow

    source.inject(Fault(path=f".*/blobs/{list(BUILT['v2'].blobs)[-1]}", nth=None, action=Answer(404)))
    by_image, _ = mirror(tmp_path / "image", source, target)
    seen = len(source.requests)
    config = tmp_path / "mirror.yaml"
    config.write_text((tmp_path / "image" / "mirror.yaml").read_text().replace(target.host, other.host))
    by_descriptor, _ = run(flow, str(config), str(tmp_path / "store"), grain="descriptor")

    assert by_image.status == by_descriptor.status == "failed"
    assert stated(by_image, source, target) == stated(by_descriptor, source, other)
    assert count_requests(source.requests[:seen]) == count_requests(source.requests[seen:])
    assert count_requests(target.requests) == count_requests(other.requests)


def test_each_digest_is_transferred_once_for_all_images(source: FakeRegistry, target: FakeRegistry, tmp_path: Path) -> None:
    report, _ = mirror(tmp_path, source, target)
    assert report.status == "complete", error_lines(report)
    assert {digest: count for digest, count in count_reads(source.requests).items() if digest in BLOBS} == dict.fromkeys(
        BLOBS, 1
    )
    assert count_uploads(target.requests) == dict.fromkeys(BLOBS, 1)


def test_a_failed_image_names_the_descriptor_and_the_other_images_are_published(
    prefect: PrefectServer, source: FakeRegistry, target: FakeRegistry, tmp_path: Path
) -> None:
    layer = list(BUILT["v3"].blobs)[-1]
    source.inject(Fault(path=f".*/blobs/{layer}", nth=None, action=Answer(404)))

    report, flow_run = mirror(tmp_path, source, target)

    assert report.status == "failed"
    states = {one["name"]: one["state"] for one in prefect.task_runs(flow_run, at_least=5)}
    failed = states[f"image {source.host}/app:v3"]
    assert (failed["type"], failed["message"].count(layer) > 0) == ("FAILED", True)
    assert target.manifest("copy", "v3") is None
    assert not [lost for tag in ("v1", "v2") for lost in find_missing(target, "copy", BUILT[tag], tag)]


def test_a_failed_request_is_retried_inside_the_task_run(
    prefect: PrefectServer, source: FakeRegistry, target: FakeRegistry, tmp_path: Path
) -> None:
    layer = list(BUILT["v3"].blobs)[-1]
    source.inject(Fault(path=f".*/blobs/{layer}", action=Answer(503)))
    report, flow_run = mirror(tmp_path, source, target)
    assert report.status == "complete", error_lines(report)
    assert count_reads(source.requests)[layer] == 2
    assert {one["run_count"] for one in prefect.task_runs(flow_run, at_least=5)} == {1}


@pytest.mark.parametrize("window", [1, 8])
def test_images_that_wait_for_a_limit_do_not_block_the_image_with_the_slot(
    prefect: PrefectServer, target: FakeRegistry, tmp_path: Path, *, window: int
) -> None:
    """Task runs inherit the tags of the block in which another flow calls the run."""
    from prefect import tags

    from prefect_dist.flows.mirror import mirror as flow

    built = images.index([SHARED, images.image(9210, platform="linux/arm64")])
    with FakeRegistry() as source:
        images.load(source, "app", built, "whole")
        images.load(source, "app", SHARED, "shared")
        made = prefect.post("/concurrency_limits/", {"tag": "scarce", "concurrency_limit": 1})
        sync = [
            {"source": f"{source.host}/app:{tag}", "type": "image", "target": f"{target.host}/copy:{tag}"}
            for tag in ("whole", "shared")
        ]
        config = tmp_path / "mirror.yaml"
        config.write_text(json.dumps({"sync": sync, "grain": "image"}))
        try:
            with tags("scarce"):
                report, _ = run(flow, str(config), str(tmp_path / "store"), concurrency=window)
        finally:
            prefect.delete(f"/concurrency_limits/{made['id']}")
    assert report.status == "complete", error_lines(report)
    assert not find_missing(target, "copy", built, "whole")
    assert not find_missing(target, "copy", SHARED, "shared")


def test_more_images_than_open_task_runs_end(tmp_path: Path) -> None:
    from prefect_dist.flows.fetch import fetch

    with FakeRegistry() as source:
        names = [f"{source.host}/many:v{number}" for number in range(12)]
        for number in range(len(names)):
            images.load(source, "many", images.index([SHARED, images.image(9300 + number)]), f"v{number}")
        report, _ = run(fetch, names, str(tmp_path), concurrency=1, grain="image")
        assert (report.status, report.tasks) == ("complete", len(names)), error_lines(report)
        shared = {digest: count for digest, count in count_reads(source.requests).items() if digest in SHARED.blobs}
        assert shared == dict.fromkeys(SHARED.blobs, 1)


@contextmanager
def limit_tag(prefect: PrefectServer, tag: str) -> Iterator[None]:
    """Limit the task runs with a tag to one at a time."""
    limit = prefect.post("/concurrency_limits/", {"tag": tag, "concurrency_limit": 1})
    try:
        yield
    finally:
        prefect.delete(f"/concurrency_limits/{limit['id']}")


def test_a_limit_on_the_task_runs_of_a_registry_blocks_no_image(
    prefect: PrefectServer, source: FakeRegistry, tmp_path: Path
) -> None:
    from prefect_dist.flows.fetch import fetch

    names = [f"{source.host}/app:{tag}" for tag in BUILT]
    with limit_tag(prefect, f"registry:{source.host}"):
        report, _ = run(fetch, names, str(tmp_path), concurrency=1, grain="image")
    assert report.status == "complete", error_lines(report)


def test_a_large_mirror_has_child_flow_runs_with_the_task_runs_of_their_images(
    prefect: PrefectServer, source: FakeRegistry, target: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_parts, "MOST_TASKS", 5)
    report, flow_run = mirror(tmp_path, source, target)
    assert report.status == "complete", error_lines(report)
    parts = prefect.post("/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [flow_run]}}})
    names = [task["name"] for part in parts for task in prefect.task_runs(part["id"], at_least=1)]
    assert sorted(names) == [f"image {source.host}/app:{tag}" for tag in BUILT]


def test_a_stop_ends_the_task_runs_and_the_next_run_resumes(
    prefect: PrefectServer, source: FakeRegistry, target: FakeRegistry, tmp_path: Path
) -> None:
    cancel = CancelToken()

    def stop_after_publication(event: Event) -> None:
        if isinstance(event, StepDone):
            cancel.request("asked to end")

    with use_token(cancel), notify_also(stop_after_publication):
        report, flow_run = mirror(tmp_path, source, target, tags={"allow": ["v1", "v3"]})

    assert report.status == "stopped"
    assert all(one["state"]["type"] in ("COMPLETED", "FAILED") for one in prefect.task_runs(flow_run, at_least=2))
    again, _ = mirror(tmp_path, source, target)
    assert again.status == "complete", error_lines(again)
    assert count_uploads(target.requests) == dict.fromkeys(BLOBS, 1)


def test_an_image_is_not_fetched_without_its_task_run_after_a_suspension(
    prefect: PrefectServer, source: FakeRegistry, tmp_path: Path
) -> None:
    """A limit lets the second task run begin only after the first image has ended."""
    from prefect import tags
    from prefect.context import FlowRunContext
    from prefect.exceptions import Pause
    from prefect.states import Suspended

    from prefect_dist.flows.fetch import fetch

    ended = []

    def suspend(event: Event) -> None:
        if isinstance(event, ImageEnded):
            ended.append(event.report.name)
            context = FlowRunContext.get()
            assert context is not None
            context.flow_run_suspension_request.mark_requested(Suspended())

    names = [f"{source.host}/app:{tag}" for tag in ("v1", "v3")]
    with limit_tag(prefect, "single"), tags("single"), notify_also(suspend), pytest.raises(Pause):
        fetch(names, str(tmp_path), concurrency=2, grain="image")

    assert len(ended) == 1
    fetched = {digest for digest in count_reads(source.requests) if digest in BLOBS}
    assert fetched in (BUILT["v1"].blobs.keys(), BUILT["v3"].blobs.keys())


def test_a_copy_and_a_seed_have_the_parameter(source: FakeRegistry, target: FakeRegistry, tmp_path: Path) -> None:
    from prefect_dist.flows.copy import copy
    from prefect_dist.flows.seed import seed

    copied, _ = run(copy, f"{source.host}/app:v1", f"{target.host}/copy:v1", str(tmp_path), grain="image")
    seeded, _ = run(seed, images=[f"{source.host}/app:v2"], to=[target.host], store=str(tmp_path), grain="image")
    assert [(one.status, one.tasks) for one in (copied, seeded)] == [("complete", 2), ("complete", 2)]


def test_the_task_run_of_a_vetoed_image_ends_as_vetoed(
    prefect: PrefectServer, source: FakeRegistry, target: FakeRegistry, tmp_path: Path
) -> None:
    report, flow_run = mirror(tmp_path, source, target, tags={"allow": ["v3"]}, gate={"command": ["false"]})
    assert report.status == "vetoed", error_lines(report)
    states = {one["name"]: one["state"]["name"] for one in prefect.task_runs(flow_run, at_least=3)}
    assert states[f"image {source.host}/app:v3"] == "Vetoed"
