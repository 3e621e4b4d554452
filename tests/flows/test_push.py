"""Pushes from a store to a real and to a fake registry: the pushed content, its order, and the tasks in Prefect."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from prefect_dist.mirror.report import RunReport
from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.ocispec.errors import DistError, InvalidInput, NotFound
from prefect_dist.storage import ContentStore, open_store
from tests import images
from tests.fakes.faults import Answer, Cut, Drop, Fault, WithoutHeaders
from tests.fakes.registry import FakeRegistry
from tests.flows.reports import error_lines, pushed_row, result_of
from tests.images import BuiltImage
from tests.peers import skopeo
from tests.peers.prefect import PrefectServer
from tests.peers.registry import CncfRegistry

ONE, OTHER = images.image(600, layers=2), images.image(601, layers=2, platform="linux/arm64/v8")
INDEX = images.index([ONE, OTHER])
Push = Callable[..., tuple[RunReport, str]]


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    store = open_store(str(tmp_path / "store"))
    for name, image in (("one", ONE), ("index", INDEX)):
        put_image(store, image, name)
    return store


@pytest.fixture
def push(prefect: PrefectServer, store: ContentStore) -> Push:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from prefect_dist.flows.push import push as flow

    def run(name: str, target: str, **parameters: Any) -> tuple[RunReport, str]:
        with temporary_settings({PREFECT_API_URL: prefect.url}):
            state = flow(name, target, store.url, return_state=True, **parameters)
        report = result_of(state)
        if isinstance(report, DistError):
            raise report
        assert isinstance(report, RunReport), report
        assert state.type.value == ("COMPLETED" if report.status == "complete" else "FAILED")
        return report, str(state.state_details.flow_run_id)

    return run


def put_image(store: ContentStore, image: BuiltImage, name: str, *, source: str = "elsewhere.example/app") -> None:
    for digest, data in (*image.blobs.items(), *((m.digest, m.raw) for m in image.manifests)):
        if any(str(info.digest) == digest for info in store.walk()):
            continue
        with store.writer(digest, expected=Digest.parse(digest), total=len(data)) as writer:
            writer.write(data)
            writer.commit()
    root = image.root
    descriptor = Descriptor(media_type=root.media_type, digest=Digest.parse(root.digest), size=root.size)
    store.names.put(name, descriptor, source=source)


def task_name(verb: str, digest: str) -> str:
    return f"{verb} {digest[:19]}"


def test_skopeo_reads_a_pushed_index_byte_by_byte(push: Push, registry: CncfRegistry, store: ContentStore) -> None:
    report, _ = push("index", f"{registry.host}/push/whole:v1")
    assert (report.status, pushed_row(report).describe_counts()) == ("complete", f"{len(INDEX.descriptors)} pushed")
    assert report.counts["sent_bytes"] == sum(info.size for info in store.walk())
    for image in (INDEX, ONE, OTHER):
        raw = skopeo.raw(f"docker://{registry.host}/push/whole@{image.root.digest}")
        assert raw == image.manifests[-1].raw


def test_children_are_pushed_before_parents_and_the_tag_last(push: Push) -> None:
    with FakeRegistry() as fake:
        report, _ = push("index", f"{fake.host}/app:v1")
        assert report.status == "complete"
        requests = [one for one in fake.requests if one.method == "PUT"]
    pushed = [parse_qs(one.query).get("digest", [one.path.rpartition("/")[2]])[0] for one in requests]
    for image in (ONE, OTHER):
        assert pushed.index(image.root.digest) > max(map(pushed.index, image.blobs))
    assert pushed[-1] == "v1"
    assert sorted(pushed[:-1]) == sorted({*INDEX.descriptors} - {INDEX.root.digest})


def test_a_layer_that_is_named_twice_is_sent_once(push: Push, store: ContentStore) -> None:
    def repeat_layers(document: dict[str, Any]) -> None:
        document["layers"] += [{**layer, "annotations": {"n": "2"}} for layer in document["layers"]]

    image = images.with_manifest(ONE, repeat_layers, blobs=ONE.blobs)
    put_image(store, image, "twice")
    with FakeRegistry() as fake:
        report, _ = push("twice", f"{fake.host}/app:v1")
        assert report.status == "complete", error_lines(report)
        uploads = [one for one in fake.requests if one.method == "PUT" and "/blobs/" in one.path]
        assert len(uploads) == len(ONE.blobs)
        assert fake.manifest("app", "v1") == (images.OCI_MANIFEST, image.manifests[-1].raw)


def test_the_graph_of_tasks_is_the_tree_of_content_and_ends_with_the_publication(
    push: Push, prefect: PrefectServer, registry: CncfRegistry
) -> None:
    target = f"{registry.host}/push/graph:v1"
    report, run = push("index", target)
    assert report.tasks == 2 + len(INDEX.descriptors)
    assert len(prefect.task_runs(run, at_least=report.tasks)) == report.tasks
    index = task_name("read index", INDEX.root.digest)
    expected = {(f"resolve {target}", index)}
    for image in (ONE, OTHER):
        manifest = task_name("read manifest", image.root.digest)
        config, *layers = image.blobs
        leaves = {task_name("push config", config), *(task_name("push layer", layer) for layer in layers)}
        expected |= (
            {(index, manifest)} | {(manifest, leaf) for leaf in leaves} | {(leaf, f"publish {target}") for leaf in leaves}
        )
    assert prefect.edges(run) == expected


def test_blobs_are_mounted_from_another_repository_of_the_registry(
    push: Push, registry: CncfRegistry, store: ContentStore
) -> None:
    push("one", f"{registry.host}/push/first:v1")
    put_image(store, ONE, "from there", source=f"{registry.host}/push/first")
    before = len(registry.requests())
    report, _ = push("from there", f"{registry.host}/push/second:v1")
    assert pushed_row(report).describe_counts() == f"1 pushed, {len(ONE.blobs)} mounted"
    requests = registry.requests(at_least=before + 2 * len(ONE.blobs) + 1)[before:]
    assert not [one for one in requests if one.method in ("PATCH", "PUT") and "/blobs/" in one.path]


@pytest.mark.parametrize("at", [":v1", f"@{INDEX.root.digest}"])
def test_a_push_of_an_unchanged_image_sends_one_request(push: Push, at: str) -> None:
    with FakeRegistry() as fake:
        push("index", f"{fake.host}/app{at}")
        before = len(fake.requests)
        report, _ = push("index", f"{fake.host}/app{at}")
        (request,) = fake.requests[before:]
    assert (request.method, request.path) == ("HEAD", f"/v2/app/manifests/{at[1:]}")
    assert (pushed_row(report).describe_counts(), report.counts["sent_bytes"]) == (
        f"0 pushed, {len(INDEX.descriptors)} existed",
        0,
    )
    assert report.tasks == 1


@pytest.mark.parametrize(
    ("existing", "without", "pushed"),
    [(ONE, (), len(INDEX.descriptors) - len(ONE.descriptors)), (INDEX, ("Docker-Content-Digest",), 1)],
    ids=["another image", "unknown digest"],
)
def test_a_tag_of_another_or_unknown_image_is_overwritten(
    push: Push, existing: BuiltImage, without: tuple[str, ...], pushed: int
) -> None:
    with FakeRegistry() as fake:
        images.load(fake, "app", existing, "v1")
        fake.inject(Fault(method="HEAD", path=".*/manifests/v1", nth=None, action=WithoutHeaders(without)))
        report, _ = push("index", f"{fake.host}/app:v1")
        assert pushed_row(report).describe_counts() == f"{pushed} pushed, {len(INDEX.descriptors) - pushed} existed"
        assert len(fake.find_requests("PUT", "/v2/app/manifests/v1")) == 1
        assert fake.manifest("app", "v1") == (images.OCI_INDEX, INDEX.manifests[-1].raw)


def test_a_refusing_registry_gets_one_attempt_and_the_report_has_one_error(push: Push) -> None:
    with FakeRegistry() as fake:
        for method in ("HEAD", "GET"):
            fake.inject(Fault(method=method, nth=None, action=Answer(403, (), b"")))
        report, _ = push("index", f"{fake.host}/app:v1")
        assert len(fake.requests) == 2  # the response to HEAD has no body, so a GET request follows
    assert len(error_lines(report)) == 1
    assert (report.status, pushed_row(report).waiting) == ("failed", len(INDEX.descriptors))


def test_non_distributable_layers_are_not_pushed(push: Push, store: ContentStore) -> None:
    image, layer = images.foreign(640)
    put_image(store, image, "foreign")
    with FakeRegistry() as fake:
        report, _ = push("foreign", f"{fake.host}/app:v1")
        assert report.status == "complete", error_lines(report)
        assert not [one for one in fake.requests if layer in one.path or layer in one.query]
        assert fake.manifest("app", "v1") == (images.OCI_MANIFEST, image.manifests[-1].raw)
    store.delete(Digest.parse(layer))
    with FakeRegistry() as fake:
        assert push("foreign", f"{fake.host}/app:v1")[0].status == "complete"


def test_an_image_is_pushed_by_digest_without_a_tag(push: Push, registry: CncfRegistry) -> None:
    report, _ = push("one", f"{registry.host}/push/untagged@{ONE.root.digest}")
    assert report.status == "complete"
    assert skopeo.raw(f"docker://{registry.host}/push/untagged@{ONE.root.digest}") == ONE.manifests[-1].raw


def test_a_target_digest_of_another_image_is_refused(push: Push, registry: CncfRegistry) -> None:
    with pytest.raises(InvalidInput, match="expected the digest of one"):
        push("one", f"{registry.host}/push/x@{OTHER.root.digest}")


def test_a_missing_store_name_raises_not_found(push: Push, registry: CncfRegistry) -> None:
    with pytest.raises(NotFound, match="name none"):
        push("none", f"{registry.host}/push/x:v1")


def test_missing_content_in_the_store_ends_a_push_before_any_request(push: Push, store: ContentStore) -> None:
    store.delete(Digest.parse(list(ONE.blobs)[-1]))
    with FakeRegistry() as fake:
        with pytest.raises(NotFound, match="1 descriptor missing in the store"):
            push("one", f"{fake.host}/app:v1")
        assert fake.requests == []


def test_an_index_with_missing_platforms_in_the_store_is_not_pushed(push: Push, store: ContentStore) -> None:
    store.delete(Digest.parse(OTHER.root.digest))
    with FakeRegistry() as fake:
        with pytest.raises(
            NotFound, match=r"index: 1 descriptor missing .*; fetch the image again for all platforms, then push it"
        ):
            push("index", f"{fake.host}/app:v1")
        assert fake.requests == []


@pytest.mark.parametrize("action", [Drop(0), Answer(503, (), b"")])
def test_an_interrupted_upload_is_retried_by_prefect(push: Push, action: Drop | Answer) -> None:
    with FakeRegistry() as fake:
        fake.inject(Fault(method="PUT", path=".*/blobs/uploads/.*", action=action))
        report, _ = push("one", f"{fake.host}/app:v1", retries=2)
        assert report.status == "complete", error_lines(report)


def test_a_refused_blob_stops_manifests_and_the_tag_until_the_next_push(push: Push) -> None:
    with FakeRegistry() as fake:
        fake.inject(Fault(method="POST", path=".*/blobs/uploads/", nth=1, action=Answer(507, (), b"{}")))
        report, _ = push("index", f"{fake.host}/app:v1", retries=0, concurrency=1)
        assert report.status == "failed"
        assert len(report.errors) == 1
        assert pushed_row(report).waiting == 3  # the manifests and the index, which follow the blobs
        assert not [one for one in fake.requests if one.path.endswith("/manifests/v1") and one.method == "PUT"]
        again, _ = push("index", f"{fake.host}/app:v1")
        assert again.status == "complete"


def test_a_push_succeeds_after_a_truncated_response(push: Push) -> None:
    with FakeRegistry() as fake:
        fake.inject(Fault(method="PUT", path=".*/manifests/v1", action=Cut(0)))
        report, _ = push("one", f"{fake.host}/app:v1")
        assert report.status == "complete", error_lines(report)


def test_a_pushed_artifact_is_listed_under_the_fallback_tag_of_its_subject(
    push: Push, registry: CncfRegistry, store: ContentStore
) -> None:
    signature = images.artifact(630, subject=ONE)
    put_image(store, signature, "signature")
    push("one", f"{registry.host}/push/signed:v1")
    report, _ = push("signature", f"{registry.host}/push/signed@{signature.root.digest}")
    assert report.status == "complete", error_lines(report)
    tag = ONE.root.digest.replace(":", "-")
    (entry,) = skopeo.inspect(f"docker://{registry.host}/push/signed:{tag}", raw=True)["manifests"]
    assert (entry["digest"], entry["size"]) == (signature.root.digest, signature.root.size)
    assert entry["artifactType"]
