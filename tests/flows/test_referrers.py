"""Referrers of images are fetched and pushed on request, from and to registries with and without a referrers API."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from prefect_dist.mirror.render import summary_line
from prefect_dist.mirror.report import NameRow, RunReport
from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.referrers import Referrer, cosign_tags, fallback_tag
from prefect_dist.storage import ContentStore, Name, gc, open_store, presence
from tests import images
from tests.fakes.faults import Answer, Fault
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import fetch_directly, push_directly
from tests.flows.reports import document, error_lines, images_of, result_of
from tests.images import BuiltImage
from tests.peers import skopeo
from tests.peers.prefect import PrefectServer
from tests.peers.registry import CncfRegistry

ONE, OTHER = images.image(700, layers=1), images.image(701, layers=1, platform="linux/arm64/v8")
INDEX = images.index([ONE, OTHER])
BILL = images.artifact(702, subject=ONE)
SIGNED_BILL = images.artifact(703, subject=BILL)
ATTESTED = images.artifact(704, subject=INDEX)
LISTED = (BILL, SIGNED_BILL, ATTESTED)
SIGNATURE = images.artifact(705)  # without a subject, as cosign signs
SIGNATURE_TAG = cosign_tags(Digest.parse(INDEX.root.digest))[0]
Run = Callable[..., Any]


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return open_store(str(tmp_path / "store"))


@contextmanager
def use_server(server: PrefectServer) -> Iterator[None]:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: server.url}):
        yield


@pytest.fixture
def fetch(request: pytest.FixtureRequest, store: ContentStore) -> Run:
    """Fetches on the thread pool, or as a flow run if the test uses a Prefect server. Returns the report and the run id."""
    if "prefect" in request.fixturenames:
        return flow_of_fetch(request.getfixturevalue("prefect"), store)
    return lambda *names, referrers=True, **more: (fetch_directly(store.url, names, referrers=referrers, **more), "")


def flow_of_fetch(prefect: PrefectServer, store: ContentStore) -> Run:
    from prefect_dist.flows.fetch import fetch as flow

    def run(*references: str, referrers: bool = True, **parameters: Any) -> tuple[RunReport, str]:
        with use_server(prefect):
            state = flow(list(references), store.url, referrers=referrers, return_state=True, **parameters)
        report = result_of(state)
        assert isinstance(report, RunReport), report
        return report, str(state.state_details.flow_run_id)

    return run


@pytest.fixture
def push(store: ContentStore) -> Run:
    """Pushes with referrers on the thread pool."""
    return lambda name, target, **more: push_directly(store.url, name, target, referrers=True, **more)


def load(registry: FakeRegistry, *more: BuiltImage) -> str:
    for artifact in (*LISTED, *more):
        images.load(registry, "app", artifact)
    images.load(registry, "app", INDEX, "v1")
    images.load(registry, "app", SIGNATURE, SIGNATURE_TAG)
    return f"{registry.host}/app:v1"


def all_digests() -> set[str]:
    return {digest for image in (INDEX, SIGNATURE, *LISTED) for digest in image.descriptors}


def stored_digests(store: ContentStore) -> set[str]:
    return {str(info.digest) for info in store.walk()}


def recorded_referrers(name: Name) -> set[tuple[str, str | None]]:
    return {(str(referrer.descriptor.digest), referrer.tag) for referrer in name.referrers}


EXPECTED = {(artifact.root.digest, None) for artifact in LISTED} | {(SIGNATURE.root.digest, SIGNATURE_TAG)}


@pytest.mark.parametrize("api", [True, False])
def test_all_referrers_of_an_image_are_fetched_and_recorded(fetch: Run, store: ContentStore, *, api: bool) -> None:
    with FakeRegistry(referrers=api) as registry:
        name = load(registry)
        if not api:
            for subject, artifacts in ((ONE, [BILL]), (BILL, [SIGNED_BILL]), (INDEX, [ATTESTED])):
                images.load(registry, "app", images.index(artifacts), fallback_tag(Digest.parse(subject.root.digest)))

        report, _ = fetch(name)

    assert not error_lines(report)
    assert stored_digests(store) == all_digests()
    (image,) = images_of(report)
    assert (image.fetched, image.existed, image.referrers) == (len(all_digests()), 0, 4)
    assert document(report)["images"][0]["referrers"] == 4
    assert summary_line(report).startswith(f"1 image complete: {len(all_digests())} fetched, 0 existed, with 4 referrers;")
    assert recorded_referrers(store.names.get(name)) == EXPECTED


@pytest.mark.parametrize("forged", [images.image(720), images.artifact(721, subject=OTHER)], ids=["image", "artifact"])
def test_unrelated_manifests_in_a_list_of_referrers_are_ignored(
    fetch: Run, store: ContentStore, caplog: pytest.LogCaptureFixture, forged: BuiltImage
) -> None:
    lost = images.artifact(722, subject=ONE)
    with FakeRegistry(referrers=False) as registry:
        images.load(registry, "app", ONE, "v1")
        for one in (BILL, forged, lost):
            images.load(registry, "app", one)
        images.load(registry, "app", images.index([BILL, forged, lost]), fallback_tag(Digest.parse(ONE.root.digest)))
        registry.lose("app", lost.root.digest)
        with caplog.at_level("WARNING", logger="prefect_dist.transfer.related"):
            report, _ = fetch(f"{registry.host}/app:v1")
        manifests = [one.path.rpartition("/")[2] for one in registry.requests if one.method == "GET"]

    assert not error_lines(report)
    assert recorded_referrers(store.names.get(f"{registry.host}/app:v1")) == {(BILL.root.digest, None)}
    assert manifests.count(BILL.root.digest) == 1
    gc.collect(store, grace=timedelta(0), dry_run=False)
    assert stored_digests(store) == {digest for image in (ONE, BILL) for digest in image.descriptors}
    ignored = [message for message in caplog.messages if "and ignored: " in message]
    assert [forged.root.digest in ignored[0], lost.root.digest in ignored[1], len(ignored)] == [True, True, 2]
    assert (
        f"is listed as a referrer of manifest {ONE.root.digest} and ignored: expected the subject {ONE.root.digest}"
        in ignored[0]
    )


def test_no_referrers_are_requested_unless_selected(fetch: Run, store: ContentStore) -> None:
    with FakeRegistry() as registry:
        name = load(registry)
        report, _ = fetch(name, referrers=False)
        assert not [one for one in registry.requests if "referrers" in one.path or ".sig" in one.path]
    assert images_of(report)[0].referrers == 0
    assert stored_digests(store) == set(INDEX.descriptors)
    assert store.names.get(name).referrers == ()


def test_the_graph_of_tasks_shows_the_subject_of_each_referrer(fetch: Run, prefect: PrefectServer) -> None:
    with FakeRegistry() as registry:
        name = load(registry)
        report, run = fetch(name)

    assert len(prefect.task_runs(run, at_least=report.tasks)) == report.tasks
    edges = prefect.edges(run)

    def task_name(verb: str, image: BuiltImage, kind: str = "manifest") -> str:
        return f"{verb} {kind} {image.root.digest[:19]}"

    manifests = {a for a, _ in edges if a.startswith("referrers of")} | {b for _, b in edges if b.startswith("referrers of")}
    assert len(manifests) == 7  # each manifest once
    for arrow in (
        (task_name("fetch", INDEX, "index"), task_name("referrers of", INDEX, "index")),
        (task_name("fetch", ONE), task_name("referrers of", ONE)),
        (task_name("referrers of", ONE), task_name("fetch", BILL)),
        (task_name("fetch", BILL), task_name("referrers of", BILL)),
        (task_name("referrers of", BILL), task_name("fetch", SIGNED_BILL)),
        (task_name("referrers of", INDEX, "index"), task_name("fetch", ATTESTED)),
        (task_name("referrers of", INDEX, "index"), task_name("fetch", SIGNATURE)),
    ):
        assert arrow in edges


def test_a_run_with_nothing_to_do_lists_the_referrers_of_each_manifest_once(fetch: Run, store: ContentStore) -> None:
    with FakeRegistry() as registry:
        name = load(registry)
        fetch(name)
        before, known = len(registry.requests), store.names.get(name)
        report, _ = fetch(name)
        requests = registry.requests[before:]
    assert report.tasks == 1 + 7
    assert (images_of(report)[0].fetched, images_of(report)[0].existed) == (0, len(all_digests()))
    others = sorted(f"{one.method} {one.path}" for one in requests if "/referrers/" not in one.path)
    assert others == ["GET /v2/app/tags/list", f"HEAD /v2/app/manifests/{SIGNATURE_TAG}", "HEAD /v2/app/manifests/v1"]
    assert sum("/referrers/" in one.path for one in requests) == 7
    assert store.names.get(name) == known


def test_referrers_of_shared_manifests_are_requested_once(fetch: Run, store: ContentStore) -> None:
    with FakeRegistry() as registry:
        load(registry)
        images.load(registry, "app", INDEX, "v2")
        images.load(registry, "app", ONE, "one")
        report, _ = fetch(*(f"{registry.host}/app:{tag}" for tag in ("v1", "v2", "one")))
        assert len({one.path for one in registry.requests if "/referrers/" in one.path}) == 7
        assert sum("/referrers/" in one.path for one in registry.requests) == 7
    assert [image.referrers for image in images_of(report)] == [4, 4, 2]
    assert sum(image.fetched for image in images_of(report)) == len(all_digests())
    assert recorded_referrers(store.names.get(f"{registry.host}/app:one")) == {
        (one.root.digest, None) for one in (BILL, SIGNED_BILL)
    }


def test_only_a_new_referrer_is_fetched(fetch: Run, store: ContentStore) -> None:
    with FakeRegistry() as registry:
        name = load(registry)
        fetch(name)
        late = images.artifact(710, subject=OTHER)
        images.load(registry, "app", late)
        report, _ = fetch(name)
    assert (images_of(report)[0].fetched, images_of(report)[0].referrers) == (2, 5)  # the store had its empty config
    assert recorded_referrers(store.names.get(name)) == EXPECTED | {(late.root.digest, None)}


def test_no_store_name_is_recorded_if_a_list_of_referrers_fails(fetch: Run, store: ContentStore) -> None:
    with FakeRegistry() as registry:
        name = load(registry)
        registry.inject(Fault(path=f".*/referrers/{BILL.root.digest}", nth=None, action=Answer(500, (), b"")))
        report, _ = fetch(name, retries=0)
    (error,) = error_lines(report)
    assert error.startswith(f"{registry.host}/app:v1: referrers of {BILL.root.digest} at {registry.host}/app: ")
    assert stored_digests(store) == all_digests() - set(SIGNED_BILL.descriptors) | {Digest.of(b"{}").__str__()}
    assert not list(store.names)


def test_no_store_name_is_recorded_if_a_referrer_fails(fetch: Run, store: ContentStore) -> None:
    with FakeRegistry() as registry:
        name = load(registry)
        payload = list(ATTESTED.blobs)[-1]
        registry.inject(Fault(path=f".*/blobs/{payload}", nth=None, action=Answer(404, (), b"")))
        report, _ = fetch(name, retries=0)
        (error,) = error_lines(report)
        assert payload in error
        assert not list(store.names)
        again, _ = fetch(name, referrers=False)
    assert again.status == "complete"


def test_too_many_referrers_are_an_error(fetch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_dist.transfer.walk.MAX_REFERRERS", 2)
    with FakeRegistry() as registry:
        name = load(registry)
        report, _ = fetch(name)
    assert error_lines(report) == [f"{name}: expected at most 2 referrers, there are more"]


def test_only_referrers_of_the_selected_platform_are_fetched(fetch: Run, store: ContentStore) -> None:
    with FakeRegistry() as registry:
        name = load(registry)
        report, _ = fetch(name, platforms=["linux/arm64"])
    assert images_of(report)[0].referrers == 2
    assert stored_digests(store) == {d for image in (OTHER, ATTESTED, SIGNATURE) for d in image.descriptors} | {
        INDEX.root.digest
    }


def test_recorded_referrers_stay_after_a_fetch_without_referrers(fetch: Run, store: ContentStore) -> None:
    with FakeRegistry() as registry:
        name = load(registry)
        fetch(name)
        fetch(name, referrers=False)
    assert recorded_referrers(store.names.get(name)) == EXPECTED


def test_gc_keeps_recorded_referrers_and_the_check_of_names_includes_them(fetch: Run, store: ContentStore) -> None:
    from datetime import timedelta

    with FakeRegistry() as registry:
        name = load(registry)
        fetch(name)
    assert gc.collect(store, grace=timedelta(0), dry_run=False).blobs == ()
    record = store.names.get(name)
    assert len(presence.check_name(store, record).present) == len(all_digests())
    lost = Digest.parse(list(SIGNATURE.blobs)[-1])
    store.delete(lost)
    assert [missing.digest for missing in presence.check_name(store, record).missing] == [lost]
    store.names.delete(name)
    assert len(gc.collect(store, grace=timedelta(0), dry_run=False).blobs) == len(all_digests()) - 1


def test_a_repair_fetches_lost_content_of_referrers(fetch: Run, prefect: PrefectServer, store: ContentStore) -> None:
    from prefect_dist.flows.verify import verify

    with FakeRegistry() as registry:
        name = load(registry)
        fetch(name)
        store.delete(Digest.parse(list(SIGNED_BILL.blobs)[-1]))
        with use_server(prefect):
            state = verify(store.url, "all", return_state=True)
    report = result_of(state)
    assert isinstance(report, RunReport)
    assert [(row.name, row.outcome) for row in report.select(NameRow)] == [(name, "repaired")]
    assert stored_digests(store) == all_digests()
    assert recorded_referrers(store.names.get(name)) == EXPECTED


def test_skopeo_reads_a_signature_from_the_store(fetch: Run, store: ContentStore) -> None:
    with FakeRegistry() as registry:
        name = load(registry)
        fetch(name)
    raw = skopeo.raw(f"oci:{store.url}:{registry.host}/app:{SIGNATURE_TAG}")
    assert raw == SIGNATURE.manifests[-1].raw
    assert skopeo.raw(f"oci:{store.url}:{name}") == INDEX.manifests[-1].raw


def test_referrers_are_copied_from_one_registry_to_another_through_the_store(
    fetch: Run, push: Run, store: ContentStore, registry: CncfRegistry
) -> None:
    with FakeRegistry() as source:
        name = load(source)
        fetch(name)
    report = push(name, f"{registry.host}/referrers/copy:v1")
    assert report.status == "complete", error_lines(report)
    target = f"docker://{registry.host}/referrers/copy"
    assert skopeo.raw(f"{target}:{SIGNATURE_TAG}") == SIGNATURE.manifests[-1].raw
    for subject, artifact in ((ONE, BILL), (BILL, SIGNED_BILL), (INDEX, ATTESTED)):
        (entry,) = skopeo.inspect(f"{target}:{fallback_tag(Digest.parse(subject.root.digest))}", raw=True)["manifests"]
        assert entry["digest"] == artifact.root.digest
        assert skopeo.raw(f"{target}@{artifact.root.digest}") == artifact.manifests[-1].raw

    back, _ = fetch(f"{registry.host}/referrers/copy:v1")
    assert (images_of(back)[0].fetched, images_of(back)[0].existed) == (0, len(all_digests()))
    assert recorded_referrers(store.names.get(f"{registry.host}/referrers/copy:v1")) == EXPECTED


def test_referrers_are_pushed_after_their_subjects_and_before_the_tag(fetch: Run, push: Run) -> None:
    with FakeRegistry() as source, FakeRegistry() as target:
        fetch(load(source))
        report = push(f"{source.host}/app:v1", f"{target.host}/copy:v1")
        assert report.status == "complete", error_lines(report)
        order = [one.path.rpartition("/")[2] for one in target.requests if one.method == "PUT" and "/manifests/" in one.path]
    assert order[-1] == "v1"
    assert SIGNATURE_TAG in order
    for subject, artifact in ((ONE, BILL), (BILL, SIGNED_BILL), (INDEX, ATTESTED)):
        assert order.index(subject.root.digest) < order.index(artifact.root.digest)


def test_a_tag_is_not_set_if_a_referrer_is_refused(fetch: Run, push: Run) -> None:
    with FakeRegistry() as source, FakeRegistry() as target:
        fetch(load(source))
        target.inject(Fault(method="PUT", path=f".*/manifests/{SIGNED_BILL.root.digest}", action=Answer(403, (), b"")))
        report = push(f"{source.host}/app:v1", f"{target.host}/copy:v1")
        assert report.status == "failed"
        assert target.manifest("copy", "v1") is None
        again = push(f"{source.host}/app:v1", f"{target.host}/copy:v1")
        assert again.status == "complete"
        assert target.manifest("copy", "v1") is not None


def test_a_push_lists_an_existing_unlisted_referrer(fetch: Run, push: Run, registry: CncfRegistry) -> None:
    with FakeRegistry() as source:
        fetch(load(source))
    images.push(registry.host, "referrers/half", ONE, "v1")
    images.push(registry.host, "referrers/half", BILL)  # as a run that stopped before it listed the referrer
    report = push(f"{source.host}/app:v1", f"{registry.host}/referrers/half:v1")
    assert report.status == "complete", error_lines(report)
    tag = fallback_tag(Digest.parse(ONE.root.digest))
    (entry,) = skopeo.inspect(f"docker://{registry.host}/referrers/half:{tag}", raw=True)["manifests"]
    assert entry["digest"] == BILL.root.digest


def test_a_push_with_nothing_to_do_sends_no_content(fetch: Run, push: Run) -> None:
    with FakeRegistry() as source, FakeRegistry() as target:
        fetch(load(source))
        push(f"{source.host}/app:v1", f"{target.host}/copy:v1")
        before = len(target.requests)
        report = push(f"{source.host}/app:v1", f"{target.host}/copy:v1")
        requests = target.requests[before:]
    assert report.counts["unchanged"] == 1
    assert {one.method for one in requests} == {"HEAD", "GET"}
    # No content is requested. A HEAD shows which manifests of the index the target has.
    assert not [one for one in requests if one.method == "GET" and "/manifests/" in one.path]
    assert not [one for one in requests if "/blobs/" in one.path]


def test_a_record_without_referrers_is_readable_and_referrers_are_recorded(store: ContentStore) -> None:
    name = Name.from_json(
        b"""{"name": "n", "source": "s", "platforms": null, "recorded": "2026-01-01T00:00:00+00:00",
        "descriptor": {"mediaType": "a/b", "digest": "sha256:%064d", "size": 1}}"""
        % 0
    )
    assert name.referrers == ()
    one = Referrer(name.descriptor, "sha256-0.sig")
    kept = store.names.put("n", name.descriptor, source="s", referrers=(one, Referrer(name.descriptor)))
    assert store.names.get("n") == kept
    assert kept.referrers == (one, Referrer(name.descriptor))
