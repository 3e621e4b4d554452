"""Referrers and signatures: requests to registries with and without the API."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dist.ocispec import Descriptor, Digest, manifest
from prefect_dist.ocispec.errors import Busy, Denied, DistError, InvalidInput, Unavailable, Unsupported
from prefect_dist.ocispec.referrers import cosign_tags, fallback_tag, make_entry
from prefect_dist.remotes import Hosts, HostSettings, Registries, RegistrySettings
from prefect_dist.remotes.headers import next_page
from prefect_dist.remotes.pusher import Pusher
from tests import images
from tests.fakes.faults import Answer, Fault, Redirect, Replace, WithHeaders
from tests.fakes.registry import FakeRegistry
from tests.peers import skopeo
from tests.peers.registry import cncf_registry
from tests.remotes.asking import REPOSITORY, anonymous, check_message, descriptor, fetcher, list_requests, reference
from tests.remotes.pushing import Reader, pusher

IMAGE = images.index([images.image(seed=1)])
SUBJECT = descriptor(IMAGE.manifests[-1].raw, IMAGE.root.media_type)
ARTIFACTS = [images.artifact(seed, subject=IMAGE) for seed in range(5)]
DIGESTS = {one.root.digest for one in ARTIFACTS}
API = f"/v2/{REPOSITORY}/referrers/{SUBJECT.digest}"
TAG = f"/v2/{REPOSITORY}/manifests/{fallback_tag(SUBJECT.digest)}"
HTML = Replace(b"<html>")


def fill(registry: FakeRegistry) -> None:
    for one in [IMAGE, *ARTIFACTS]:
        images.load(registry, REPOSITORY, one)


def listed(registries: Registries, registry: FakeRegistry, artifact_type: str | None = None) -> list[Descriptor]:
    return list(fetcher(registries, registry).referrers(SUBJECT, artifact_type=artifact_type))


def digests(found: list[Descriptor]) -> set[str]:
    return {str(one.digest) for one in found}


def put(target: Pusher, artifact: images.BuiltImage) -> None:
    """Push an artifact, and list it under the fallback tag if the registry does not list it."""
    for content in artifact.blobs.values():
        target.upload(descriptor(content), Reader(content))
    raw = artifact.manifests[-1].raw
    described = descriptor(raw, artifact.root.media_type)
    about = manifest.subject(raw, described.media_type, at="artifact")
    if about and target.put(raw, described) is None:
        target.list_referrer(about.digest, make_entry(raw, described, at="artifact"))


@pytest.fixture
def bare() -> Iterator[FakeRegistry]:
    with FakeRegistry(referrers=False) as bare:
        fill(bare)
        yield bare


def test_the_api_is_not_requested_if_it_is_to_be_avoided(registry: FakeRegistry) -> None:
    fill(registry)
    images.load(registry, REPOSITORY, images.index(ARTIFACTS), fallback_tag(SUBJECT.digest))
    hosts = Hosts(named={registry.host: HostSettings(avoid=frozenset({"referrers"}))})
    with Registries(RegistrySettings(hosts=hosts), credentials=anonymous) as registries:
        assert digests(listed(registries, registry)) == DIGESTS
    assert list_requests(registry) == [f"GET {TAG}"]


def test_all_pages_are_read(registries: Registries) -> None:
    with FakeRegistry(page_entries=2) as registry:
        fill(registry)
        found = listed(registries, registry, images.ARTIFACT)
        assert (len(found), digests(found)) == (5, DIGESTS)
        assert {one.artifact_type for one in found} == {images.ARTIFACT}
        assert list_requests(registry) == [f"GET {API}"] * 3
        assert all("artifactType=application%2Fvnd" in one.query for one in registry.requests)


@pytest.mark.parametrize("filters", [True, False])
def test_referrers_are_filtered_by_type(registries: Registries, *, filters: bool) -> None:
    with FakeRegistry(filters=filters) as registry:
        fill(registry)
        assert listed(registries, registry, "a/b") == []
        assert digests(listed(registries, registry, images.ARTIFACT)) == DIGESTS
        assert list_requests(registry) == [f"GET {API}"] * 2


def test_an_invalid_artifact_type_is_not_sent(registries: Registries, registry: FakeRegistry) -> None:
    with pytest.raises(InvalidInput):
        fetcher(registries, registry).referrers(SUBJECT, artifact_type="a b")
    assert registry.requests == []


@pytest.mark.parametrize(
    ("link", "error"),
    [
        (API, Unsupported),
        ("http://127.0.0.1:1/v2/", Unsupported),
        ("https://[", Unsupported),
        ("file:///etc/passwd", Unavailable),
    ],
)
def test_an_invalid_link_is_an_error(registries: Registries, registry: FakeRegistry, link: str, error: type[DistError]) -> None:
    fill(registry)
    registry.inject(Fault(nth=None, action=WithHeaders((("Link", f'<{link}>; rel="next"'),))))
    with pytest.raises(error) as caught:
        listed(registries, registry)
    check_message(caught.value, registry.host, str(SUBJECT.digest))
    assert len(registry.requests) == 1


def test_endless_pages_are_an_error(registries: Registries, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(registry)
    monkeypatch.setattr("prefect_dist.remotes.referrers.MAX_PAGES", 3)
    for number in range(5):
        registry.inject(Fault(nth=number + 1, action=WithHeaders((("Link", f"<?last={number}>; rel=next"),))))
    with pytest.raises(Unsupported, match="at most 3 pages"):
        listed(registries, registry)
    assert len(registry.requests) == 3


def test_endless_entries_are_an_error(registries: Registries, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(registry)
    monkeypatch.setattr("prefect_dist.remotes.referrers.MAX_REFERRERS", 4)
    with pytest.raises(Unsupported, match="at most 4"):
        listed(registries, registry)


def test_a_page_above_the_limit_is_an_error(registries: Registries, registry: FakeRegistry) -> None:
    registry.inject(Fault(action=Replace(b" " * (4 * 1024 * 1024 + 1))))
    with pytest.raises(Unsupported, match="at most 4194304 bytes"):
        listed(registries, registry)


@pytest.mark.parametrize("action", [Answer(404), Answer(405), HTML])
def test_a_missing_api_is_requested_once(registries: Registries, registry: FakeRegistry, action: Answer) -> None:
    registry.inject(Fault(path=API, nth=None, action=action))
    assert listed(registries, registry) == listed(registries, registry) == []
    assert list_requests(registry) == [f"GET {API}", f"GET {TAG}", f"GET {TAG}"]


@pytest.mark.parametrize("status", [429, 403, 503])
def test_a_query_that_is_redirected_to_another_host_and_refused_there_falls_back_to_the_tag(
    bare: FakeRegistry, other: FakeRegistry, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    # GHCR answers some queries with 303 to a web interface that limits requests
    for artifact in ARTIFACTS:
        with Registries(RegistrySettings(connect_timeout_s=10), credentials=anonymous) as pushing:
            put(pusher(pushing, bare), artifact)
    asked_before = len(bare.requests)
    bare.inject(Fault(path=API, nth=None, action=Redirect(f"http://{other.host}/-/v2/packages?sig=topsecret", 303)))
    other.inject(Fault(path="/-/v2/packages", nth=None, action=Answer(status, (("Retry-After", "3600"),))))
    waits: list[tuple[str, float]] = []
    with Registries(
        RegistrySettings(connect_timeout_s=10), credentials=anonymous, on_throttled=lambda *what: waits.append(what)
    ) as found:
        for _ in range(2):
            assert digests(listed(found, bare)) == DIGESTS
        assert found.resolve(reference(bare, f"@{SUBJECT.digest}")).descriptor == SUBJECT  # the registry answers at once
    assert waits == ([] if status == 403 else [(other.host, 3600)])
    assert {one.status for one in bare.requests[asked_before:]} == {303, 200}
    assert f"redirected the query to http://{other.host}/-/v2/packages?sig=…, which answered {status}" in caplog.text
    assert "topsecret" not in caplog.text


@pytest.mark.parametrize("status", [429, 503])
def test_a_query_that_another_registry_cannot_answer_now_is_an_error_to_retry(
    registries: Registries, registry: FakeRegistry, other: FakeRegistry, status: int
) -> None:
    # registry.k8s.io redirects all queries to the registries that have its content
    fill(other)
    registry.inject(Fault(path=API, nth=None, action=Redirect(f"http://{other.host}{{path}}")))
    other.inject(Fault(path=API, action=Answer(status)))
    with pytest.raises(Unavailable) as caught:
        listed(registries, registry)
    check_message(caught.value, str(SUBJECT.digest), f"GET http://{other.host}{API}: {status}")
    assert list_requests(registry) == [f"GET {API}", f"GET {TAG}"]
    assert digests(listed(registries, registry)) == DIGESTS


def test_a_query_that_another_registry_cannot_answer_now_is_answered_by_the_tag(
    registries: Registries, bare: FakeRegistry, other: FakeRegistry
) -> None:
    put(pusher(registries, bare), ARTIFACTS[0])
    bare.inject(Fault(path=API, nth=None, action=Redirect(f"http://{other.host}{{path}}")))
    other.inject(Fault(path=API, action=Answer(503)))
    assert digests(listed(registries, bare)) == {ARTIFACTS[0].root.digest}


@pytest.mark.parametrize("status", [401, 403, 404, 405])
def test_a_query_that_another_registry_does_not_answer_is_answered_by_the_tag(
    registries: Registries, registry: FakeRegistry, other: FakeRegistry, status: int
) -> None:
    registry.inject(Fault(path=API, nth=None, action=Redirect(f"http://{other.host}{{path}}")))
    other.inject(Fault(path=API, nth=None, action=Answer(status)))
    assert listed(registries, registry) == []
    again = [f"GET {API}"] if status == 403 else []  # the URL may have expired
    assert list_requests(registry) == [f"GET {API}", *again, f"GET {TAG}"]


def test_a_query_that_a_web_interface_keeps_refusing_does_not_fail(
    registries: Registries, registry: FakeRegistry, other: FakeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    # GHCR; the image has no referrers under the tag
    registry.inject(Fault(path=API, nth=None, action=Redirect(f"http://{other.host}/-/v2/packages", 303)))
    other.inject(Fault(path="/-/v2/packages", nth=None, action=Answer(429)))
    assert listed(registries, registry) == listed(registries, registry) == []
    assert "which answered 429; only the fallback tag is read" in caplog.text


def test_a_missing_repository_does_not_prove_a_missing_api(registries: Registries, registry: FakeRegistry) -> None:
    registry.inject(Fault(path=API, action=Answer(404, (), b'{"errors": [{"code": "NAME_UNKNOWN"}]}')))
    assert listed(registries, registry) == listed(registries, registry) == []
    assert list_requests(registry) == [f"GET {API}", f"GET {TAG}", f"GET {API}"]


def test_a_refusal_is_reported(registries: Registries, registry: FakeRegistry) -> None:
    registry.inject(Fault(path=API, action=Answer(403, (), b"{}")))
    with pytest.raises(Denied):
        listed(registries, registry)


def test_the_subject_under_the_tag_has_no_referrers(registries: Registries, bare: FakeRegistry) -> None:
    # GitLab takes the tag for the digest (oras-go #1396): the children of an index are not its referrers.
    raw = IMAGE.manifests[-1].raw
    bare.inject(Fault(path=TAG, nth=None, action=Answer(200, (("Content-Type", images.OCI_INDEX),), raw)))
    assert listed(registries, bare) == []
    with pytest.raises(Unsupported) as caught:
        put(pusher(registries, bare), ARTIFACTS[0])
    check_message(caught.value, bare.host, fallback_tag(SUBJECT.digest))
    assert bare.find_requests("PUT", TAG) == []


def test_a_referrer_is_listed_and_read_under_the_fallback_tag(registries: Registries, bare: FakeRegistry) -> None:
    target = pusher(registries, bare)
    for artifact in (*ARTIFACTS, ARTIFACTS[0]):
        put(target, artifact)
    assert [one.method for one in bare.requests if one.path == TAG] == ["GET", "PUT", "GET"] * 5 + ["GET"]
    found = listed(registries, bare, images.ARTIFACT)
    assert (len(found), digests(found)) == (5, DIGESTS)
    assert listed(registries, bare, "a/b") == []


def test_writers_of_one_process_take_turns(registries: Registries, bare: FakeRegistry) -> None:
    target = pusher(registries, bare)
    with ThreadPoolExecutor(5) as threads:
        list(threads.map(lambda artifact: put(target, artifact), ARTIFACTS))
    assert digests(listed(registries, bare)) == DIGESTS
    assert len(bare.find_requests("PUT", TAG)) == 5


def test_an_overwritten_entry_is_written_again(registries: Registries, bare: FakeRegistry) -> None:
    bare.inject(Fault(path=TAG, nth=2, action=Answer(404)))  # as if another client had written an index without the entry
    put(pusher(registries, bare), ARTIFACTS[0])
    assert len(bare.find_requests("PUT", TAG)) == 2
    bare.inject(Fault(path=TAG, nth=None, action=Answer(404)))
    with pytest.raises(Busy):
        put(pusher(registries, bare), ARTIFACTS[1])
    assert len(bare.find_requests("PUT", TAG)) == 2 + 5


def test_digest_tags_of_cosign_are_resolved(registries: Registries, registry: FakeRegistry) -> None:
    signature = images.image(seed=9)
    tags = cosign_tags(SUBJECT.digest)
    images.load(registry, REPOSITORY, signature, tag=tags[1])
    ((tag, found),) = fetcher(registries, registry).signatures(SUBJECT)
    assert (tag, str(found.digest)) == (tags[1], signature.root.digest)
    assert list_requests(registry) == [f"HEAD /v2/{REPOSITORY}/manifests/{tag}" for tag in tags]


@pytest.mark.parametrize("mirror_has", [True, False])
def test_an_empty_list_of_a_mirror_does_not_end_the_search(
    registry: FakeRegistry, bare: FakeRegistry, *, mirror_has: bool
) -> None:
    fill(registry)
    tag = cosign_tags(SUBJECT.digest)[0]
    images.load(registry, REPOSITORY, images.image(seed=9), tag=tag)
    hosts = Hosts(named={bare.host: HostSettings(mirrors=(registry.host,)), registry.host: HostSettings(mirrors=(bare.host,))})
    with Registries(RegistrySettings(hosts=hosts), credentials=anonymous) as found:
        host = bare if mirror_has else registry
        assert digests(listed(found, host)) == DIGESTS
        assert [one for one, _ in fetcher(found, host).signatures(SUBJECT)] == [tag]
        assert bool(bare.find_requests("GET", ".*")) is not mirror_has


def test_referrers_are_kept_under_fallback_tags_at_the_cncf_registry(registries: Registries, tmp_path: Path) -> None:
    with cncf_registry(tmp_path / "cncf") as cncf:
        images.push(cncf.host, REPOSITORY, IMAGE)
        for artifact in ARTIFACTS:
            put(pusher(registries, cncf.host), artifact)
        found = list(fetcher(registries, cncf.host).referrers(SUBJECT))
        assert digests(found) == DIGESTS
        index = json.loads(skopeo.raw(f"docker://{reference(cncf.host, f':{fallback_tag(SUBJECT.digest)}')}"))
        assert index["mediaType"] == images.OCI_INDEX
        assert [Digest.parse(one["digest"]) for one in index["manifests"]] == [one.digest for one in found]
        assert {one["artifactType"] for one in index["manifests"]} == {images.ARTIFACT}


@given(st.text(st.characters(max_codepoint=255)) | st.text('<>;=", relnxt/:[]').map(lambda text: f"<{text}>; rel=next"))
def test_any_link_is_a_url_or_an_error(text: str) -> None:
    response = httpx.Response(
        200, headers=[(b"link", text.encode("latin-1"))], request=httpx.Request("GET", "https://registry.example/v2/")
    )
    try:
        found = next_page(response, "s")
    except Unavailable as exc:
        check_message(exc, "Link")
    else:
        assert found is None or found.host
