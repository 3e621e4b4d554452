"""The flows gc, verify and pull on a real Prefect server."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefect_dist.mirror.render import summary_line
from prefect_dist.mirror.report import BlobRow, NameRow, UnpackRow
from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import InvalidInput, NotFound
from prefect_dist.storage import ContentStore, open_store
from tests import images
from tests.fakes.faults import Answer, Fault
from tests.fakes.registry import FakeRegistry
from tests.flows.reports import error_lines, result_of
from tests.peers.prefect import PrefectServer
from tests.peers.seaweedfs import S3Server
from tests.storage.conformance import Place, blob_path

Run = Callable[..., tuple[Any, str]]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(url=str(tmp_path / "store"))


@pytest.fixture
def store(place: Place) -> ContentStore:
    return open_store(place.url)


@pytest.fixture
def run(prefect: PrefectServer) -> Run:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    def call(flow: Callable[..., Any], *arguments: Any, **parameters: Any) -> tuple[Any, str]:
        with temporary_settings({PREFECT_API_URL: prefect.url}):
            state = flow(*arguments, return_state=True, **parameters)
        report = result_of(state)
        if isinstance(report, BaseException):
            raise report
        assert state.type.value == {"complete": "COMPLETED", "failed": "FAILED"}[report.status]
        return report, str(state.state_details.flow_run_id)

    return call


def task_names(prefect: PrefectServer, run: str) -> list[str]:
    return sorted(task["name"] for task in prefect.task_runs(run, at_least=1))


def test_gc_is_one_task_and_reports_the_removed_blobs(prefect: PrefectServer, run: Run, store: ContentStore) -> None:
    from prefect_dist.flows.fetch import fetch
    from prefect_dist.flows.gc import gc

    with FakeRegistry() as registry:
        images.load(registry, "app", images.image(600), "v1")
        run(fetch, [f"{registry.host}/app:v1"], store.url)
    store.names.delete(f"{registry.host}/app:v1")

    planned, _ = run(gc, store.url, "0", dry_run=True)
    assert len(list(store.walk())) == planned.counts["planned"] == 5
    report, flow_run = run(gc, store.url, "0")

    assert not list(store.walk())
    assert summary_line(report).startswith("5 blobs with ")
    assert task_names(prefect, flow_run) == ["sweep"]
    artifacts = prefect.post("/artifacts/filter", {"flow_runs": {"id": {"any_": [flow_run]}}})
    assert {one["key"] for one in artifacts} == {"gc", "summary"}
    assert len(report.select(BlobRow)) == 5


def test_verify_hashes_all_blobs_of_a_sound_store(prefect: PrefectServer, run: Run, store: ContentStore) -> None:
    from prefect_dist.flows.fetch import fetch
    from prefect_dist.flows.verify import verify

    image = images.image(610)
    with FakeRegistry() as registry:
        images.load(registry, "app", image, "v1")
        run(fetch, [f"{registry.host}/app:v1"], store.url)

    report, flow_run = run(verify, store.url)

    assert (report.counts["ok"], report.errors, report.counts["unreferenced"]) == (len(image.descriptors), (), 0)
    (name,) = task_names(prefect, flow_run)
    assert name.startswith("verify 5 blobs, ")


def test_verify_quarantines_reports_and_repairs_corrupt_blobs(
    prefect: PrefectServer, run: Run, place: Place, store: ContentStore
) -> None:
    from prefect_dist.flows.fetch import fetch
    from prefect_dist.flows.verify import verify

    index = images.index([images.image(620), images.image(621, platform="linux/arm64")])
    layer = list(index.blobs)[1]
    with FakeRegistry() as registry:
        images.load(registry, "app", index, "v1")
        name = f"{registry.host}/app:v1"
        run(fetch, [name], store.url)
        for digest in (layer, index.manifests[0].digest):  # a layer, and a manifest with its content
            place.plant(blob_path(Digest.parse(digest)), b"wrong")

        found, _ = run(verify, store.url)
        assert {str(row.digest) for row in found.select(BlobRow)} == {layer, index.manifests[0].digest}
        assert [(row.name, row.outcome) for row in found.select(NameRow)] == [(name, "damaged")]
        assert "missing in the store" in error_lines(found)[0]
        before = len(registry.requests)

        repaired, flow_run = run(verify, store.url, "all")

    shown = prefect.post("/artifacts/filter", {"flow_runs": {"id": {"any_": [flow_run]}}})
    assert [one["data"] for one in shown if one["key"] == "progress"] == [100]
    assert repaired.tasks == len(prefect.task_runs(flow_run, at_least=repaired.tasks))
    assert [(row.name, row.outcome) for row in repaired.select(NameRow)] == [(name, "repaired")]
    assert error_lines(repaired) == []
    requested = {request.path.rpartition("/")[2] for request in registry.requests[before:] if request.method == "GET"}
    assert requested == {layer, index.manifests[0].digest}
    assert {str(info.digest) for info in store.walk()} == set(index.descriptors)


def test_a_failed_repair_reports_its_cause(run: Run, place: Place, store: ContentStore) -> None:
    from prefect_dist.flows.fetch import fetch
    from prefect_dist.flows.verify import verify

    image = images.image(630, layers=1)
    layer = list(image.blobs)[-1]
    with FakeRegistry() as registry:
        images.load(registry, "app", image, "v1")
        name = f"{registry.host}/app:v1"
        run(fetch, [name], store.url)
        place.plant(blob_path(Digest.parse(layer)), b"wrong")
        registry.inject(Fault(path=f"/v2/app/blobs/{layer}", nth=None, action=Answer(404)))

        report, _ = run(verify, store.url, [name])

    assert report.status == "failed"
    assert any("not found" in line for line in error_lines(report))


def test_pull_unpacks_an_image_to_a_directory(prefect: PrefectServer, run: Run, store: ContentStore, tmp_path: Path) -> None:
    from prefect_dist.flows.pull import pull

    arm = images.image(640, layers=2, platform="linux/arm64")
    index = images.index([images.image(641), arm])
    with FakeRegistry() as registry:
        images.load(registry, "app", index, "v1")

        report, flow_run = run(pull, f"{registry.host}/app:v1", str(tmp_path / "root"), store.url, "linux/arm64")

    (unpacked,) = report.select(UnpackRow)
    assert (unpacked.layers, str(unpacked.manifest)) == (2, arm.root.digest)
    assert sorted(path.name for path in (tmp_path / "root").iterdir())
    names = {task["name"] for task in prefect.task_runs(flow_run, at_least=7)}  # resolve, five pieces of content, unpack
    assert f"unpack {registry.host}/app:v1" in names


def test_a_pull_that_cannot_unpack_keeps_the_image_and_reports_the_cause(run: Run, store: ContentStore, tmp_path: Path) -> None:
    from prefect_dist.flows.pull import pull

    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with FakeRegistry() as registry:
        images.load(registry, "app", images.image(650), "v1")

        report, _ = run(pull, f"{registry.host}/app:v1", str(tmp_path / "full"), store.url, "linux/amd64")

    assert "expected a new or empty directory" in error_lines(report)[0]
    assert [name.name for name in store.names] == [f"{registry.host}/app:v1"]


def test_a_store_block_hides_its_secrets_from_the_flow_run(prefect: PrefectServer, run: Run, s3: S3Server) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.types import SecretDict

    from prefect_dist.flows import blocks
    from prefect_dist.flows.fetch import fetch

    image = images.image(660)
    with temporary_settings({PREFECT_API_URL: prefect.url}):
        blocks.ContentStore(
            url=f"{s3.url}/block",
            options={"endpoint_url": s3.endpoint, "client_kwargs": {"region_name": s3.region}},
            secrets=SecretDict({"key": s3.key, "secret": s3.secret}),
        ).save("mine")
    with FakeRegistry() as registry:
        images.load(registry, "app", image, "v1")

        _, flow_run = run(fetch, [f"{registry.host}/app:v1"], "block:mine")

    store = open_store(f"{s3.url}/block", options=s3.storage_options)
    assert {str(info.digest) for info in store.walk()} == set(image.descriptors)
    assert s3.secret not in str(prefect.get(f"/flow_runs/{flow_run}"))


def test_a_missing_store_block_is_an_error_that_names_it(run: Run) -> None:
    from prefect_dist.flows.fetch import fetch

    with pytest.raises(InvalidInput, match="block 'none' not found"):
        run(fetch, ["redis"], "block:none")


def test_gc_and_verify_of_a_missing_store_raise_not_found(run: Run, tmp_path: Path) -> None:
    from prefect_dist.flows.gc import gc
    from prefect_dist.flows.verify import verify

    for flow in (gc, verify):
        with pytest.raises(NotFound, match="no store found"):
            run(flow, str(tmp_path / "typo"))
