import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from prefect_dist.mirror.progress import notify_also
from prefect_dist.mirror.render import message_line, summary_line
from prefect_dist.mirror.report import RunReport
from prefect_dist.ocispec import Digest, Platform, Reference
from prefect_dist.ocispec.errors import NotFound
from prefect_dist.storage import ContentStore, open_store
from prefect_dist.transfer.cancellation import CancelToken, use_token
from prefect_dist.transfer.events import ContentAdvanced, Event
from tests import images
from tests.fakes.faults import Answer, Cut, Fault, Flip, WithHeaders
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import fetch_directly
from tests.flows.reports import document, error_lines, images_of, result_of
from tests.images import BuiltImage
from tests.peers import skopeo
from tests.peers.prefect import PrefectServer
from tests.peers.registry import CncfRegistry
from tests.transfer.content import fetch_tree

Fetched = tuple[RunReport, str]
Fetch = Callable[..., Fetched]


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def fetch(request: pytest.FixtureRequest, store: ContentStore) -> Fetch:
    """Fetches on the thread pool, or as a flow run if the test uses a Prefect server. Returns the report and the run id."""
    if "prefect" in request.fixturenames:
        return flow_of_fetch(request.getfixturevalue("prefect"), store)

    def run(*references: str, ends: str | None = None, **parameters: Any) -> Fetched:
        report = fetch_directly(store.url, references, **parameters)
        assert ends in (None, {"stopped": "CANCELLED"}.get(report.status))
        return report, ""

    return run


def flow_of_fetch(prefect: PrefectServer, store: ContentStore) -> Fetch:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from prefect_dist.flows.fetch import fetch as flow

    def run(*references: str, ends: str | None = None, **parameters: Any) -> Fetched:
        with temporary_settings({PREFECT_API_URL: prefect.url}):
            state = flow(list(references), store.url, return_state=True, **parameters)
        report = result_of(state)
        assert isinstance(report, RunReport), report
        assert isinstance(state.state_details.flow_run_id, UUID)
        ends = ends or ("FAILED" if report.errors else "COMPLETED")
        assert (state.type.value, state.message) == (ends, message_line(report))
        return report, str(state.state_details.flow_run_id)

    return run


def stored_digests(store: ContentStore) -> set[str]:
    return {str(info.digest) for info in store.walk()}


def build_index(seed: int) -> tuple[BuiltImage, BuiltImage, BuiltImage]:
    one, other = images.image(seed), images.image(seed + 1, platform="linux/arm64/v8")
    return images.index([one, other]), one, other


def task_name(kind: str, digest: str) -> str:
    return f"fetch {kind} {digest[:19]}"


def expected_edges(image: BuiltImage, parent: str) -> set[tuple[str, str]]:
    """Return the edges of the graph at and below an image manifest."""
    manifest = task_name("manifest", image.root.digest)
    config, *layers = image.blobs
    return {
        (parent, manifest),
        (manifest, task_name("config", config)),
        *((manifest, task_name("layer", layer)) for layer in layers),
    }


def test_each_descriptor_is_one_completed_task_and_edges_lead_from_parents_to_children(
    registry: CncfRegistry, prefect: PrefectServer, fetch: Fetch, store: ContentStore
) -> None:
    index, one, other = build_index(100)
    images.push(registry.host, "flows/tree", index, "v1")
    name = f"{registry.host}/flows/tree:v1"

    report, run = fetch(name)

    tasks = prefect.task_runs(run, at_least=len(index.descriptors) + 1)
    root = task_name("index", index.root.digest)
    expected = {(f"resolve {name}", root)} | expected_edges(one, root) | expected_edges(other, root)
    assert prefect.edges(run) == expected
    assert sorted(task["name"] for task in tasks) == sorted({label for edge in expected for label in edge})
    assert {task["state_type"] for task in tasks} == {"COMPLETED"}
    assert stored_digests(store) == set(index.descriptors)
    assert images_of(report)[0].fetched == len(index.descriptors)
    assert [record.name for record in store.names] == [name]


def test_tasks_have_the_tag_of_their_registry_and_run_with_a_limit_on_it(prefect: PrefectServer, fetch: Fetch) -> None:
    image = images.image(105, layers=1)
    with FakeRegistry() as registry:
        images.load(registry, "app", image, "v1")
        tag = f"registry:{registry.host}"
        prefect.post("/concurrency_limits/", {"tag": tag, "concurrency_limit": 8})

        report, run = fetch(f"{registry.host}/app:v1")

    assert not report.errors
    assert [task["tags"] for task in prefect.task_runs(run, at_least=4)] == [[tag]] * 4


def test_skopeo_reads_a_fetched_image_from_the_store(
    registry: CncfRegistry, fetch: Fetch, store: ContentStore, tmp_path: Path
) -> None:
    image = images.image(110)
    images.push(registry.host, "flows/read", image, "v1")
    name = f"{registry.host}/flows/read:v1"

    fetch(name)

    assert skopeo.inspect(f"oci:{store.url}:{name}")["Digest"] == image.root.digest
    skopeo.copy(f"oci:{store.url}:{name}", f"dir:{tmp_path / 'copy'}")
    assert (tmp_path / "copy" / "manifest.json").read_bytes() == image.manifests[-1].raw


def test_only_the_content_of_the_selected_platform_is_fetched(fetch: Fetch, store: ContentStore) -> None:
    index, _, arm = build_index(120)
    with FakeRegistry() as registry:
        images.load(registry, "app", index, "v1")

        fetch(f"{registry.host}/app:v1", platforms=["linux/arm64"])

    assert stored_digests(store) == {index.root.digest, *arm.descriptors}


def test_the_error_for_a_missing_platform_lists_the_platforms_of_the_index(fetch: Fetch, store: ContentStore) -> None:
    index, *_ = build_index(130)
    with FakeRegistry() as registry:
        images.load(registry, "app", index, "v1")

        report, _ = fetch(f"{registry.host}/app:v1", platforms=["linux/s390x"], retries=0)

    assert "no manifest for linux/s390x; the index has 'linux/amd64', 'linux/arm64/v8'" in error_lines(report)[0]
    assert not list(store.names)


def test_the_selected_platforms_of_all_fetches_are_recorded_with_the_store_name(fetch: Fetch, store: ContentStore) -> None:
    index, *_ = build_index(135)
    with FakeRegistry() as registry:
        images.load(registry, "app", index, "v1")

        fetch(f"{registry.host}/app:v1", platforms=["linux/arm64"])

        assert [name.platforms for name in store.names] == [(Platform.parse("linux/arm64"),)]
        fetch(f"{registry.host}/app:v1", platforms=["linux/amd64"])
        both = (Platform.parse("linux/arm64"), Platform.parse("linux/amd64"))
        assert [name.platforms for name in store.names] == [both]
        fetch(f"{registry.host}/app:v1")
        fetch(f"{registry.host}/app:v1", platforms=["linux/amd64"])
        assert [name.platforms for name in store.names] == [None]  # a fetch of all platforms stays recorded


def test_an_image_without_an_index_fails_if_its_platform_is_not_selected(fetch: Fetch, store: ContentStore) -> None:
    with FakeRegistry() as registry:
        images.load(registry, "app", images.image(136, platform="linux/amd64"), "v1")

        wrong, _ = fetch(f"{registry.host}/app:v1", platforms=["linux/arm64"])
        assert not list(store.names)
        right, _ = fetch(f"{registry.host}/app:v1", platforms=["linux/arm64", "linux/amd64"])

    assert error_lines(wrong)[0].endswith("no manifest for linux/arm64; the image is for 'linux/amd64'")
    assert not right.errors
    assert [name.name for name in store.names] == [f"{registry.host}/app:v1"]


def test_an_artifact_is_fetched_for_every_platform(fetch: Fetch) -> None:
    with FakeRegistry() as registry:
        images.load(registry, "app", images.artifact(137), "v1")

        report, _ = fetch(f"{registry.host}/app:v1", platforms=["linux/arm64"])

    assert not report.errors


def test_an_unwritable_index_json_is_one_failure_of_the_run_and_keeps_the_store_names(
    fetch: Fetch, store: ContentStore
) -> None:
    store.prepare()
    layout = Path(store.url)
    (layout / "index.json").unlink()
    (layout / "index.json").mkdir()
    with FakeRegistry() as registry:
        images.load(registry, "a", images.image(138), "v1")
        images.load(registry, "b", images.image(139), "v1")

        report, _ = fetch(f"{registry.host}/a:v1", f"{registry.host}/b:v1")

    assert (report.status, [image.outcome for image in images_of(report)]) == ("failed", ["fetched", "fetched"])
    (error,) = error_lines(report)
    assert "index.json" in error
    assert len(list(store.names)) == 2


def test_a_second_run_sends_one_request_and_has_one_task(prefect: PrefectServer, fetch: Fetch) -> None:
    index, *_ = build_index(140)
    with FakeRegistry() as registry:
        images.load(registry, "app", index, "v1")
        fetch(f"{registry.host}/app:v1")
        before = len(registry.requests)

        report, run = fetch(f"{registry.host}/app:v1")

        assert [(r.method, r.path) for r in registry.requests[before:]] == [("HEAD", "/v2/app/manifests/v1")]
    assert (images_of(report)[0].existed, report.tasks) == (len(index.descriptors), 1)
    assert len(prefect.task_runs(run, at_least=1)) == 1


def test_shared_content_of_several_images_is_fetched_once(fetch: Fetch) -> None:
    index, one, other = build_index(150)
    with FakeRegistry() as registry:
        for image, tag in ((index, "all"), (one, "one"), (other, "other")):
            images.load(registry, "app", image, tag)

        report, _ = fetch(*(f"{registry.host}/app:{tag}" for tag in ("all", "one", "other")))

        paths = [request.path for request in registry.find_requests("GET", ".*")]
    assert len(paths) == len(set(paths)) == len(index.descriptors)
    assert sum(image.fetched for image in images_of(report)) == len(index.descriptors)
    assert [image.descriptors for image in images_of(report)] == [len(i.descriptors) for i in (index, one, other)]


def name_layers_twice(image: BuiltImage) -> BuiltImage:
    """Return an image that names each layer twice, the second time with an annotation."""

    def repeat_layers(document: dict[str, Any]) -> None:
        document["layers"] += [{**layer, "annotations": {"n": "2"}} for layer in document["layers"]]

    return images.with_manifest(image, repeat_layers, blobs=image.blobs)


def test_a_layer_that_a_manifest_names_twice_is_fetched_once(fetch: Fetch, store: ContentStore) -> None:
    image = name_layers_twice(images.image(155, layers=2))
    with FakeRegistry() as registry:
        images.load(registry, "app", image, "v1")

        report, _ = fetch(f"{registry.host}/app:v1")

        paths = [request.path for request in registry.find_requests("GET", ".*")]
    assert (len(report.errors), images_of(report)[0].fetched) == (0, len(image.descriptors))
    assert report.tasks == 1 + len(image.descriptors)
    assert len(paths) == len(set(paths)) == len(image.descriptors)
    assert stored_digests(store) == set(image.descriptors)


def test_all_layers_of_images_with_a_shared_config_are_fetched(fetch: Fetch, store: ContentStore) -> None:
    # containerd #14000: state by config digest lost the layers of the second image, and the pull succeeded
    one, other = images.image(156), images.image(157, platform="linux/arm64")
    config, *_ = one.blobs.items()
    _, *layers = other.blobs.items()
    shared = json.loads(one.manifests[-1].raw)["config"]
    index = images.index([one, images.with_manifest(other, lambda it: it.update(config=shared), blobs=dict([config, *layers]))])
    with FakeRegistry() as registry:
        images.load(registry, "app", index, "v1")

        report, _ = fetch(f"{registry.host}/app:v1")

    assert not report.errors
    assert stored_digests(store) == set(index.descriptors)
    assert len(index.descriptors) == 1 + 2 + 1 + 2 * 3


def test_a_blob_that_one_repository_lacks_is_fetched_from_another_repository(fetch: Fetch, store: ContentStore) -> None:
    image = images.image(160)
    layer = list(image.blobs)[-1]
    with FakeRegistry() as registry:
        images.load(registry, "broken", image, "v1")
        images.load(registry, "whole", image, "v1")
        registry.inject(Fault(path=f"/v2/broken/blobs/{layer}", nth=None, action=Answer(404)))

        report, _ = fetch(f"{registry.host}/broken:v1", f"{registry.host}/whole:v1", retries=0)

    assert not report.errors
    assert stored_digests(store) == set(image.descriptors)


def test_a_failed_layer_does_not_stop_other_layers_and_images(
    prefect: PrefectServer, fetch: Fetch, store: ContentStore
) -> None:
    good, bad = images.image(170), images.image(171)
    layer = list(bad.blobs)[1]
    with FakeRegistry() as registry:
        images.load(registry, "good", good, "v1")
        images.load(registry, "bad", bad, "v1")
        registry.inject(Fault(path=f"/v2/bad/blobs/{layer}", nth=None, action=Answer(404)))

        report, run = fetch(f"{registry.host}/bad:v1", f"{registry.host}/good:v1", f"{registry.host}/none:v1", retries=0)

    assert [(image.outcome, image.failed) for image in images_of(report)] == [("failed", 1), ("fetched", 0), ("failed", 0)]
    assert summary_line(report).startswith("1 of 3 images complete: 9 fetched, 0 existed, 1 failed; ")
    assert stored_digests(store) == {*good.descriptors, *bad.descriptors} - {layer}
    assert [record.name for record in store.names] == [f"{registry.host}/good:v1"]
    states = [task["state_type"] for task in prefect.task_runs(run, at_least=13)]
    assert (states.count("FAILED"), states.count("COMPLETED"), len(states)) == (2, 11, 13)


def test_prefect_retries_the_task_of_a_request_that_failed(prefect: PrefectServer, fetch: Fetch) -> None:
    image = images.image(180, layers=1)
    layer = list(image.blobs)[-1]
    with FakeRegistry() as registry:
        images.load(registry, "app", image, "v1")
        registry.inject(Fault(path=f"/v2/app/blobs/{layer}", action=Answer(503)))

        report, run = fetch(f"{registry.host}/app:v1", retries=1)

        assert [r.status for r in registry.find_requests("GET", f"/v2/app/blobs/{layer}")] == [503, 200]
    assert not report.errors
    retried = [task for task in prefect.task_runs(run, at_least=4) if task["run_count"] > 1]
    assert [task["name"] for task in retried] == [task_name("layer", layer)]


def test_many_images_are_fetched_in_flow_runs_of_their_own(prefect: PrefectServer, fetch: Fetch, store: ContentStore) -> None:
    from prefect_dist.flows.fetch_parts import MOST_IMAGES

    image, tags = images.image(195, layers=1), [f"v{number}" for number in range(MOST_IMAGES + 1)]
    with FakeRegistry() as registry:
        images.load(registry, "app", image)
        for tag in tags:
            registry.put_manifest("app", image.manifests[-1].raw, image.root.media_type, tag=tag)

        report, run = fetch(*(f"{registry.host}/app:{tag}" for tag in tags))

        for blob in image.blobs:
            assert len(registry.find_requests("GET", f"/v2/app/blobs/{blob}")) == 1
    assert [one.name.rpartition(":")[2] for one in images_of(report)] == tags
    assert len(list(store.names)) == len(tags)
    parts = prefect.post("/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}})
    assert {part["name"]: part["state_type"] for part in parts} == {
        "fetch, part 1": "COMPLETED",
        "fetch, part 2": "COMPLETED",
    }
    assert len(prefect.task_runs(run)) == len(parts)
    first, second = (part["id"] for part in sorted(parts, key=lambda part: part["name"]))
    assert len(prefect.task_runs(first, at_least=MOST_IMAGES + 3)) == MOST_IMAGES + 3  # all images have the same content
    assert len(prefect.task_runs(second, at_least=1)) == 1
    assert report.tasks == len(tags) + 3 + len(parts)


def test_a_long_retry_after_is_one_scheduled_state_of_the_task(prefect: PrefectServer, fetch: Fetch) -> None:
    image = images.image(190, layers=1)
    layer = list(image.blobs)[-1]
    with FakeRegistry() as registry:
        images.load(registry, "app", image, "v1")
        registry.inject(Fault(path=f"/v2/app/blobs/{layer}", action=Answer(429, (("Retry-After", "12"),))))

        began = time.monotonic()
        report, run = fetch(f"{registry.host}/app:v1", retries=0)
        assert time.monotonic() - began > 12

        assert [r.status for r in registry.find_requests("GET", f"/v2/app/blobs/{layer}")] == [429, 200]
    assert not report.errors
    (task,) = [task for task in prefect.task_runs(run, at_least=4) if task["name"] == task_name("layer", layer)]
    assert prefect.states(task["id"]) == ["PENDING", "RUNNING", "SCHEDULED", "RUNNING", "COMPLETED"]


def test_corrupt_content_is_fetched_again_once_and_never_stored(fetch: Fetch, store: ContentStore) -> None:
    image = images.image(200, layers=1)
    layer = list(image.blobs)[-1]
    with FakeRegistry() as registry:
        images.load(registry, "app", image, "v1")
        registry.inject(Fault(path=f"/v2/app/blobs/{layer}", nth=None, action=Flip(7)))

        report, _ = fetch(f"{registry.host}/app:v1", retries=3)

        assert len(registry.find_requests("GET", f"/v2/app/blobs/{layer}")) == 2
    assert f"expected {layer}, got sha256:" in error_lines(report)[0]
    assert stored_digests(store) == set(image.descriptors) - {layer}
    assert not list(store.names)


def test_an_interrupted_download_resumes_within_one_attempt(prefect: PrefectServer, fetch: Fetch, store: ContentStore) -> None:
    image = images.image(210, layers=1, layer_bytes=300_000)
    layer = list(image.blobs)[-1]
    with FakeRegistry() as registry:
        images.load(registry, "app", image, "v1")
        registry.inject(Fault(path=f"/v2/app/blobs/{layer}", times=2, action=Cut(100_000)))

        report, run = fetch(f"{registry.host}/app:v1", retries=0)

        requests = registry.find_requests("GET", f"/v2/app/blobs/{layer}")
    assert [r.headers.get("range", "").partition("-")[0] for r in requests] == ["", "bytes=100000", "bytes=200000"]
    assert not report.errors
    assert {task["run_count"] for task in prefect.task_runs(run, at_least=4)} == {1}
    assert store.info(Digest.parse(layer)).size == len(image.blobs[layer])


def test_a_stopped_run_sends_no_further_requests(fetch: Fetch, store: ContentStore) -> None:
    image = images.image(260, layers=4)
    cancel = CancelToken()

    def stop_at_config(event: Event) -> None:
        if isinstance(event, ContentAdvanced) and event.gained and event.descriptor.kind == "config":
            cancel.request("asked to end")

    with FakeRegistry() as registry, use_token(cancel), notify_also(stop_at_config):
        images.load(registry, "app", image, "v1")
        report, _ = fetch(f"{registry.host}/app:v1", concurrency=1, ends="CANCELLED")
        assert not [one for one in registry.requests if any(layer in one.path for layer in list(image.blobs)[1:])]

    assert report.status == "stopped"
    assert images_of(report)[0].failed == 4
    assert [str(one.error) for one in report.errors] == ["asked to end; complete content is kept, run again to resume"]
    assert not list(store.names)


def test_the_table_of_images_is_an_artifact_of_the_flow_run(prefect: PrefectServer, fetch: Fetch) -> None:
    with FakeRegistry() as registry:
        report, run = fetch(f"{registry.host}/none:v1", retries=0)

    found = prefect.post("/artifacts/filter", {"flow_runs": {"id": {"any_": [run]}}})
    (artifact,) = (one for one in found if one["key"] == "fetch")
    assert (artifact["key"], artifact["type"], artifact["description"]) == ("fetch", "table", message_line(report))
    assert f"{registry.host}/none:v1" in artifact["data"]


def test_no_store_name_is_recorded_for_an_image_with_missing_content(store: ContentStore) -> None:
    from prefect_dist.transfer.session import SessionSpec, open_session

    image = images.image(220)
    with (
        FakeRegistry() as registry,
        open_session(SessionSpec(store=store.url)) as session,
    ):
        images.load(registry, "app", image, "v1")
        reference = Reference.parse(f"{registry.host}/app:v1")
        root = session.open_source(reference).resolve(reference)
        fetch_tree(session, reference, root, workers=4)
        gone = Digest.parse(list(image.blobs)[-1])
        store.delete(gone)

        with pytest.raises(NotFound, match=f"1 descriptor missing in the store \\(layer {gone}\\)"):
            session.recorder.record(reference, root)

    assert not list(store.names)


def test_the_report_has_the_remaining_quota_of_a_registry(fetch: Fetch) -> None:
    with FakeRegistry() as registry:
        images.load(registry, "app", images.image(270), "v1")
        settings = (("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "42;w=21600"))
        registry.inject(Fault(method="HEAD", nth=None, action=WithHeaders(settings)))
        report, _ = fetch(f"{registry.host}/app:v1")
    assert summary_line(report).endswith(f"; {registry.host}: 42 of 100 pulls left")
    assert document(report)["quotas"] == {registry.host: {"limit": 100, "remaining": 42, "window_s": 21600}}
