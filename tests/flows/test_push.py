"""Pushes from the content store to a real and to a fake registry: the requests, the report, and the tasks in Prefect."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from prefect_dist.mirror.render import summary_line
from prefect_dist.mirror.report import RunReport, TargetRow
from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.ocispec.errors import Conflict, DistError, InvalidInput, NotFound
from prefect_dist.ocispec.referrers import Referrer, fallback_tag
from prefect_dist.storage import ContentStore, open_store
from prefect_dist.transfer.cancellation import CancelToken, use_token
from tests import images
from tests.fakes.faults import Answer, Call, Cut, Drop, Fault, WithoutHeaders
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import count_uploads, find_missing, push_directly
from tests.flows.reports import error_lines, outcomes, plan_of, result_of
from tests.images import BuiltImage
from tests.peers import skopeo
from tests.peers.prefect import PrefectServer
from tests.peers.registry import CncfRegistry

ONE, OTHER = images.image(600, layers=2), images.image(601, layers=2, platform="linux/arm64/v8")
INDEX = images.index([ONE, OTHER])
SIGNATURE = images.artifact(602, subject=INDEX)
Push = Callable[..., RunReport]


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    store = open_store(str(tmp_path / "store"))
    for name, image in (("one", ONE), ("index", INDEX)):
        put_image(store, image, name)
    return store


@pytest.fixture
def push(store: ContentStore) -> Push:
    """Pushes on the thread pool."""
    return lambda name, target, **more: push_directly(store.url, name, target, **more)


def run_flow(prefect: PrefectServer, *arguments: Any, **parameters: Any) -> tuple[RunReport, str]:
    """Push as a flow run. Return the report and the id of the run."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from prefect_dist.flows.push import push as flow

    with temporary_settings({PREFECT_API_URL: prefect.url}):
        state = flow(*arguments, return_state=True, **parameters)
    report = result_of(state)
    if isinstance(report, DistError):
        raise report
    assert isinstance(report, RunReport), report
    assert state.type.value == ("COMPLETED" if report.status == "complete" else "FAILED")
    return report, str(state.state_details.flow_run_id)


def put_image(store: ContentStore, image: BuiltImage, name: str, *, source: str = "elsewhere.example/app") -> Descriptor:
    for digest, data in (*image.blobs.items(), *((m.digest, m.raw) for m in image.manifests)):
        if any(str(info.digest) == digest for info in store.walk()):
            continue
        with store.writer(digest, expected=Digest.parse(digest), total=len(data)) as writer:
            writer.write(data)
            writer.commit()
    root = image.root
    descriptor = Descriptor(media_type=root.media_type, digest=Digest.parse(root.digest), size=root.size)
    store.names.put(name, descriptor, source=source)
    return descriptor


def sign_index(store: ContentStore) -> None:
    """Record a signature as a referrer of the image `index`."""
    root, signature = put_image(store, INDEX, "index"), put_image(store, SIGNATURE, "signature")
    store.names.put("index", root, source="elsewhere.example/app", referrers=(Referrer(signature),))


def put_targets(registry: FakeRegistry) -> list[str]:
    """Return the tags and digests of the accepted uploads, in the order of the requests."""
    puts = [one for one in registry.requests if one.method == "PUT" and one.status == 201]
    return [parse_qs(one.query).get("digest", [one.path.rpartition("/")[2]])[0] for one in puts]


def row_of(report: RunReport) -> TargetRow:
    (row,) = report.select(TargetRow)
    return row


def task_name(verb: str, digest: str) -> str:
    return f"{verb} {digest[:19]}"


def test_skopeo_reads_a_pushed_index_byte_by_byte(push: Push, registry: CncfRegistry, store: ContentStore) -> None:
    target = f"{registry.host}/push/whole:v1"
    report = push("index", target)
    assert (report.status, outcomes(report)) == ("complete", {target: "added"})
    assert str(row_of(report).source) == "store:index"
    assert report.counts["sent_bytes"] == sum(info.size for info in store.walk())
    assert report.counts["fetched_bytes"] == 0
    assert summary_line(report).startswith("push complete: 1 added, 0 changed, 0 unchanged; 0 B fetched, ")
    for image in (INDEX, ONE, OTHER):
        raw = skopeo.raw(f"docker://{registry.host}/push/whole@{image.root.digest}")
        assert raw == image.manifests[-1].raw


def test_children_are_pushed_before_parents_and_the_tag_last(push: Push) -> None:
    with FakeRegistry() as fake:
        assert push("index", f"{fake.host}/app:v1").status == "complete"
        pushed = put_targets(fake)
    for image in (ONE, OTHER):
        assert pushed.index(image.root.digest) > max(map(pushed.index, image.blobs))
    assert pushed[-1] == "v1"
    assert sorted(pushed[:-1]) == sorted({*INDEX.descriptors} - {INDEX.root.digest})


def test_a_push_of_a_new_image_sends_three_requests_per_blob_and_one_per_manifest(push: Push) -> None:
    with FakeRegistry() as fake:
        push("one", f"{fake.host}/app:v1")
        requests = [one.method for one in fake.requests]
    blobs = len(ONE.blobs)
    # Two HEAD requests for the tag: one before the run, one immediately before the tag is set.
    assert (requests.count("HEAD"), requests.count("POST"), requests.count("PUT")) == (blobs + 2, blobs, blobs + 1)
    assert len(requests) == 3 * blobs + 3


def test_a_layer_that_is_named_twice_is_sent_once(push: Push, store: ContentStore) -> None:
    def repeat_layers(document: dict[str, Any]) -> None:
        document["layers"] += [{**layer, "annotations": {"n": "2"}} for layer in document["layers"]]

    image = images.with_manifest(ONE, repeat_layers, blobs=ONE.blobs)
    put_image(store, image, "twice")
    with FakeRegistry() as fake:
        report = push("twice", f"{fake.host}/app:v1")
        assert report.status == "complete", error_lines(report)
        assert count_uploads(fake.requests) == dict.fromkeys(ONE.blobs, 1)
        assert fake.manifest("app", "v1") == (images.OCI_MANIFEST, image.manifests[-1].raw)


def test_the_graph_of_tasks_is_the_tree_of_content_and_ends_with_the_publication(
    prefect: PrefectServer, store: ContentStore, registry: CncfRegistry
) -> None:
    target = f"{registry.host}/push/graph:v1"
    report, run = run_flow(prefect, "index", target, store.url)
    assert report.tasks == 2 + len(INDEX.descriptors)
    assert len(prefect.task_runs(run, at_least=report.tasks)) == report.tasks
    index = task_name("mirror index", INDEX.root.digest)
    expected = {("survey store:index", index)}
    for image in (ONE, OTHER):
        manifest = task_name("mirror manifest", image.root.digest)
        config, *layers = image.blobs
        leaves = {task_name("mirror config", config), *(task_name("mirror layer", layer) for layer in layers)}
        expected |= (
            {(index, manifest)} | {(manifest, leaf) for leaf in leaves} | {(leaf, f"publish {target}") for leaf in leaves}
        )
    assert prefect.edges(run) == expected


def test_blobs_are_mounted_from_the_repository_that_the_store_name_records(
    push: Push, registry: CncfRegistry, store: ContentStore
) -> None:
    push("one", f"{registry.host}/push/first:v1")
    put_image(store, ONE, "from there", source=f"{registry.host}/push/first")
    before = len(registry.requests())
    report = push("from there", f"{registry.host}/push/second:v1")
    assert (report.status, report.counts["mounted"]) == ("complete", len(ONE.blobs))
    assert report.counts["sent_bytes"] == len(ONE.manifests[-1].raw)
    requests = registry.requests(at_least=before + 2 * len(ONE.blobs) + 1)[before:]
    assert not [one for one in requests if one.method in ("PATCH", "PUT") and "/blobs/" in one.path]


@pytest.mark.parametrize("at", [":v1", f"@{INDEX.root.digest}", f":v1@{INDEX.root.digest}"])
def test_a_push_of_an_unchanged_index_sends_one_request_for_its_tag_and_one_for_each_platform(push: Push, at: str) -> None:
    with FakeRegistry() as fake:
        push("index", f"{fake.host}/app{at}")
        before = len(fake.requests)
        report = push("index", f"{fake.host}/app{at}")
        requests = [(one.method, one.path.rpartition("/")[2]) for one in fake.requests[before:]]
    tag = INDEX.root.digest if at.startswith("@") else "v1"
    assert requests == [("HEAD", one) for one in (tag, ONE.root.digest, OTHER.root.digest)]
    assert (row_of(report).outcome, report.counts["sent_bytes"], report.tasks) == ("unchanged", 0, 1)


@pytest.mark.parametrize(
    "name", ["app", "registry.example/app@" + ONE.root.digest, "Release 7", "registry.example:5000/app:v1"]
)
def test_a_store_name_of_any_form_is_pushed_and_keeps_its_record(push: Push, store: ContentStore, name: str) -> None:
    put_image(store, ONE, name)
    before = store.names.get(name)
    with FakeRegistry() as fake:
        report = push(name, f"{fake.host}/app:v1")
        assert find_missing(fake, "app", ONE, "v1") == []
    assert (report.status, str(row_of(report).source)) == ("complete", f"store:{name}")
    assert store.names.get(name) == before
    assert {one.name for one in store.names} == {"one", "index", name}


def test_the_tag_of_another_image_is_overwritten(push: Push) -> None:
    with FakeRegistry() as fake:
        images.load(fake, "app", ONE, "v1")
        report = push("index", f"{fake.host}/app:v1")
        assert find_missing(fake, "app", INDEX, "v1") == []
        assert count_uploads(fake.requests) == dict.fromkeys(OTHER.blobs, 1)
        assert len(fake.find_requests("PUT", "/v2/app/manifests/v1")) == 1
    row = row_of(report)
    assert (row.outcome, report.counts["existed"]) == ("changed", len(ONE.blobs))
    assert (str(row.old and row.old.digest), str(row.new and row.new.digest)) == (ONE.root.digest, INDEX.root.digest)


def test_a_tag_with_an_unknown_digest_is_read(push: Push) -> None:
    with FakeRegistry() as fake:
        images.load(fake, "app", ONE, "v1")
        fake.inject(Fault(method="HEAD", path=".*/manifests/v1", nth=None, action=WithoutHeaders(("Docker-Content-Digest",))))
        report = push("one", f"{fake.host}/app:v1")
        assert [(one.method, one.path) for one in fake.requests] == [
            ("HEAD", "/v2/app/manifests/v1"),
            ("GET", "/v2/app/manifests/v1"),
        ]
    assert row_of(report).outcome == "unchanged"


def test_a_tag_that_another_client_moves_during_the_push_is_not_overwritten(push: Push) -> None:
    with FakeRegistry() as fake:
        move = Call(lambda: images.load(fake, "app", OTHER, "v1"))
        fake.inject(Fault(method="PUT", path=".*/blobs/uploads/.*", nth=1, action=move))
        report = push("one", f"{fake.host}/app:v1")
        assert find_missing(fake, "app", OTHER, "v1") == []
    (error,) = row_of(report).errors
    assert isinstance(error, Conflict)


def test_a_refusing_registry_gets_one_attempt_and_the_report_has_one_error(push: Push) -> None:
    with FakeRegistry() as fake:
        for method in ("HEAD", "GET"):
            fake.inject(Fault(method=method, nth=None, action=Answer(403, (), b"")))
        report = push("index", f"{fake.host}/app:v1", retries=3)
        assert len(fake.requests) == 2  # the response to HEAD has no body, so a GET request follows
    assert len(error_lines(report)) == 1
    assert (report.status, row_of(report).outcome) == ("failed", "failed")


def test_non_distributable_layers_are_not_pushed(push: Push, store: ContentStore) -> None:
    image, layer = images.foreign(640)
    put_image(store, image, "foreign")
    with FakeRegistry() as fake:
        report = push("foreign", f"{fake.host}/app:v1")
        assert report.status == "complete", error_lines(report)
        assert not [one for one in fake.requests if layer in one.path or layer in one.query]
        assert fake.manifest("app", "v1") == (images.OCI_MANIFEST, image.manifests[-1].raw)
    store.delete(Digest.parse(layer))
    with FakeRegistry() as fake:
        report = push("foreign", f"{fake.host}/app:v1")
        assert report.status == "complete", error_lines(report)
        assert fake.manifest("app", "v1") is not None


def test_an_image_is_pushed_by_digest_without_a_tag(push: Push, registry: CncfRegistry) -> None:
    report = push("one", f"{registry.host}/push/untagged@{ONE.root.digest}")
    assert report.status == "complete"
    assert skopeo.raw(f"docker://{registry.host}/push/untagged@{ONE.root.digest}") == ONE.manifests[-1].raw


def test_a_target_digest_of_another_image_is_refused(push: Push) -> None:
    with FakeRegistry() as fake:
        with pytest.raises(InvalidInput, match=f"expected the digest of one, which is {ONE.root.digest}"):
            push("one", f"{fake.host}/x@{OTHER.root.digest}")
        assert fake.requests == []


def test_a_missing_store_name_ends_a_push_before_any_request(push: Push) -> None:
    with FakeRegistry() as fake:
        with pytest.raises(NotFound, match="name none"):
            push("none", f"{fake.host}/x:v1")
        assert fake.requests == []


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


def test_a_missing_referrer_ends_only_a_push_with_referrers(push: Push, store: ContentStore) -> None:
    sign_index(store)
    store.delete(Digest.parse(SIGNATURE.root.digest))
    with FakeRegistry() as fake:
        with pytest.raises(NotFound, match="index: 1 descriptor missing in the store"):
            push("index", f"{fake.host}/app:v1", referrers=True)
        assert fake.requests == []
        assert push("index", f"{fake.host}/app:v1").status == "complete"


def test_an_interrupted_upload_is_retried_by_prefect(prefect: PrefectServer, store: ContentStore) -> None:
    with FakeRegistry() as fake:
        fake.inject(Fault(method="PUT", path=".*/blobs/uploads/.*", action=Drop(0)))
        report, _ = run_flow(prefect, "one", f"{fake.host}/app:v1", store.url, retries=2)
        assert report.status == "complete", error_lines(report)
        assert find_missing(fake, "app", ONE, "v1") == []


def test_a_missing_store_name_is_the_error_of_the_flow(prefect: PrefectServer, store: ContentStore) -> None:
    with FakeRegistry() as fake:
        with pytest.raises(NotFound, match="name none"):
            run_flow(prefect, "none", f"{fake.host}/x:v1", store.url)
        assert fake.requests == []


def test_a_retry_does_not_send_content_of_an_earlier_attempt_again(push: Push) -> None:
    with FakeRegistry() as fake:
        fake.inject(Fault(method="HEAD", path=".*/manifests/v1", nth=2, action=Answer(503, (), b"")))
        report = push("index", f"{fake.host}/app:v1", retries=1)
        assert report.status == "complete", error_lines(report)
        assert sorted(put_targets(fake)) == sorted([*({*INDEX.descriptors} - {INDEX.root.digest}), "v1"])


def test_a_full_registry_gets_no_manifest_and_the_next_push_succeeds(push: Push) -> None:
    with FakeRegistry() as fake:
        for number in range(1, len(ONE.blobs) + 2):  # one attempt for each blob, and one attempt of the publication
            fake.inject(Fault(method="POST", path=".*/blobs/uploads/", nth=number, action=Answer(507, (), b"{}")))
        report = push("one", f"{fake.host}/app:v1", concurrency=1)
        assert (report.status, len(report.errors)) == ("failed", 1)
        assert put_targets(fake) == []
        again = push("one", f"{fake.host}/app:v1")
        assert (again.status, find_missing(fake, "app", ONE, "v1")) == ("complete", [])


def test_a_refused_manifest_leaves_the_tag_unset(push: Push) -> None:
    with FakeRegistry() as fake:
        fake.inject(Fault(method="PUT", path=f".*/manifests/{OTHER.root.digest}", action=Answer(403, (), b"")))
        report = push("index", f"{fake.host}/app:v1")
        (error,) = error_lines(report)
        assert error.startswith(f"store:index to {fake.host}/app:v1: ")
        assert fake.manifest("app", ONE.root.digest)
        assert fake.manifest("app", "v1") is None


def test_a_push_succeeds_after_a_truncated_response(push: Push) -> None:
    with FakeRegistry() as fake:
        fake.inject(Fault(method="PUT", path=".*/manifests/v1", action=Cut(0)))
        report = push("one", f"{fake.host}/app:v1", retries=1)
        assert report.status == "complete", error_lines(report)


@pytest.mark.parametrize(("method", "path"), [("POST", ".*/blobs/uploads/"), ("PUT", ".*/manifests/sha256:.*")])
def test_a_stopped_push_has_one_error_and_sets_no_tag(push: Push, method: str, path: str) -> None:
    cancel = CancelToken()
    with FakeRegistry() as fake, use_token(cancel):
        fake.inject(Fault(method=method, path=path, action=Call(lambda: cancel.set("Ctrl-C"))))
        report = push("index", f"{fake.host}/app:v1", concurrency=1)
        assert fake.manifest("app", "v1") is None
    assert (report.status, row_of(report).outcome) == ("stopped", "failed")
    assert error_lines(report) == [f"store:index to {fake.host}/app:v1: Ctrl-C; complete content is kept, run again to resume"]


@pytest.mark.parametrize("has_api", [True, False])
def test_referrers_in_the_store_are_pushed_and_listed(push: Push, store: ContentStore, *, has_api: bool) -> None:
    sign_index(store)
    with FakeRegistry(referrers=has_api) as fake:
        report = push("index", f"{fake.host}/app:v1", referrers=True)
        assert report.status == "complete", error_lines(report)
        assert find_missing(fake, "app", INDEX, "v1") + find_missing(fake, "app", SIGNATURE) == []
        is_listed = fake.manifest("app", fallback_tag(Digest.parse(INDEX.root.digest))) is not None
        assert is_listed != has_api
        pushed = put_targets(fake)
        assert pushed[-1] == "v1"
        assert pushed.index(INDEX.root.digest) < pushed.index(SIGNATURE.root.digest)
        before = len(fake.requests)
        again = push("index", f"{fake.host}/app:v1", referrers=True)
        assert {one.method for one in fake.requests[before:]} <= {"HEAD", "GET"}
    assert row_of(again).outcome == "unchanged"


def test_new_referrers_of_an_unchanged_image_are_pushed(push: Push, store: ContentStore) -> None:
    sign_index(store)
    with FakeRegistry() as fake:
        push("index", f"{fake.host}/app:v1")
        before = len(fake.requests)
        report = push("index", f"{fake.host}/app:v1", referrers=True)
        assert find_missing(fake, "app", SIGNATURE) == []
        assert not [
            one for one in fake.requests[before:] if "/blobs/" in one.path and one.path.rpartition("/")[2] in INDEX.blobs
        ]
        assert count_uploads(fake.requests[before:]) == dict.fromkeys(SIGNATURE.blobs, 1)
    assert (row_of(report).outcome, row_of(report).note) == ("changed", "1 referrer not known to be there")


def test_the_plan_of_a_push_has_the_content_to_send(push: Push) -> None:
    with FakeRegistry() as fake:
        plan = plan_of(push("one", f"{fake.host}/app:v1"))
    (image,) = plan.images
    assert {str(one.digest) for one in image.sent} == {*ONE.descriptors}
    assert plan.cost.fetched == 0


def test_a_pushed_artifact_is_listed_under_the_fallback_tag_of_its_subject(
    push: Push, registry: CncfRegistry, store: ContentStore
) -> None:
    signature = images.artifact(630, subject=ONE)
    put_image(store, signature, "signature")
    push("one", f"{registry.host}/push/signed:v1")
    report = push("signature", f"{registry.host}/push/signed@{signature.root.digest}")
    assert report.status == "complete", error_lines(report)
    tag = ONE.root.digest.replace(":", "-")
    (entry,) = skopeo.inspect(f"docker://{registry.host}/push/signed:{tag}", raw=True)["manifests"]
    assert (entry["digest"], entry["size"]) == (signature.root.digest, signature.root.size)
    assert entry["artifactType"]
