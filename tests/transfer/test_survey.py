"""Surveys compare sources with targets: their requests, the manifests that they read, and their results."""

import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from prefect_dist.ocispec import Digest, Platform
from prefect_dist.ocispec.errors import DistError
from prefect_dist.ocispec.index_filter import filter_index
from prefect_dist.ocispec.referrers import cosign_tags, fallback_tag
from prefect_dist.transfer.cancellation import Stopped
from prefect_dist.transfer.related import EVERYTHING, Related
from prefect_dist.transfer.session import Session
from prefect_dist.transfer.survey import ImageInfo, ImageQuery, QueryResult, survey_images
from tests import images
from tests.fakes.faults import Answer, Call, Fault
from tests.fakes.registry import FakeRegistry
from tests.transfer.content import list_requests, reference_at, root_of

ONE, OTHER = images.image(800, layers=2), images.image(801, layers=2, platform="linux/arm64/v8")
INDEX = images.index([ONE, OTHER])


@pytest.fixture
def source() -> Iterator[FakeRegistry]:
    with FakeRegistry() as source:
        for image, tag in ((INDEX, "all"), (ONE, "one")):
            images.load(source, "app", image, tag)
        yield source


def image_info(found: QueryResult) -> ImageInfo:
    assert isinstance(found.image, ImageInfo)
    return found.image


def test_a_survey_sends_one_request_to_the_source_and_to_each_target(
    session: Session, source: FakeRegistry, target: FakeRegistry
) -> None:
    images.load(target, "copy", INDEX, "all")
    query = ImageQuery(source=reference_at(source, "app:all"), targets=(reference_at(target, "copy:all"),))
    (found,) = survey_images(session, [query], keep=True, workers=2)
    assert image_info(found).content == ()
    assert (list_requests(source), list_requests(target)) == (["HEAD /v2/app/manifests/all"], ["HEAD /v2/copy/manifests/all"])


def test_a_repeated_survey_requests_only_images_with_errors_again(
    session: Session, source: FakeRegistry, target: FakeRegistry
) -> None:
    images.load(target, "copy", INDEX, "all")
    queries = [
        ImageQuery(source=reference_at(source, name), targets=(reference_at(target, "copy:all"),))
        for name in ("app:all", "app:absent")
    ]
    first = survey_images(session, queries, keep=True, workers=2)
    before = list_requests(source)
    assert [bool(one.errors) for one in first] == [False, True]

    assert survey_images(session, queries, keep=True, workers=2)[0] is first[0]

    repeated = list_requests(source)[len(before) :]
    assert repeated
    assert not [one for one in repeated if one.endswith("/all")]


@pytest.mark.parametrize("keep", [True, False])
def test_a_survey_reads_the_manifests_of_an_image_that_a_target_lacks(
    session: Session, source: FakeRegistry, target: FakeRegistry, *, keep: bool
) -> None:
    images.load(target, "copy", ONE, "all")
    targets = reference_at(target, "copy:all"), reference_at(target, "other:all")
    (found,) = survey_images(
        session, [ImageQuery(source=reference_at(source, "app:all"), targets=targets)], keep=keep, workers=2
    )
    standing = [one and str(one.digest) if not isinstance(one, DistError) else one for one in found.standing]
    assert standing == [ONE.root.digest, None]
    assert {str(descriptor.digest) for descriptor in image_info(found).content} == set(INDEX.descriptors)
    manifests = {ONE.root.digest, OTHER.root.digest, INDEX.root.digest}
    assert {one.path.rpartition("/")[2] for one in source.requests if one.method == "GET"} == manifests
    assert {str(info.digest) for info in session.store.walk()} == (manifests if keep else set())


def test_the_errors_of_a_source_and_of_a_target_are_part_of_the_result(
    session: Session, source: FakeRegistry, target: FakeRegistry
) -> None:
    target.inject(Fault(method="HEAD", path="/v2/shut/.*", action=Answer(401, (), b"")))
    queries = [
        ImageQuery(source=reference_at(source, "app:none"), targets=(reference_at(target, "copy:none"),)),
        ImageQuery(
            source=reference_at(source, "app:one"), targets=(reference_at(target, "shut:one"), reference_at(target, "copy:one"))
        ),
    ]
    missing, shut = survey_images(session, queries, keep=True, workers=2)
    assert str(missing.errors[0]).startswith(f"{source.host}/app:none: ")
    (error,) = shut.errors
    assert str(error).startswith(f"{target.host}/shut:one: ")
    assert shut.standing[1] is None
    assert {str(descriptor.digest) for descriptor in image_info(shut).content} == set(ONE.descriptors)


def test_a_stop_leaves_the_results_of_earlier_queries(session: Session, source: FakeRegistry, target: FakeRegistry) -> None:
    def stop() -> None:
        session.cancel.set("Ctrl-C")

    target.inject(Fault(method="HEAD", path="/v2/copy/manifests/second", action=Call(stop)))
    places = [reference_at(target, "copy:first"), reference_at(target, "copy:second"), reference_at(target, "copy:third")]
    queries = [ImageQuery(source=reference_at(source, "app:one"), targets=(place,)) for place in places]

    first, *others = survey_images(session, queries, keep=True, workers=1)

    assert (image_info(first).root, first.standing) == (root_of(ONE), (None,))
    for one in others:
        assert [type(error) for error in one.errors] == [Stopped, Stopped]
    assert list_requests(target) == ["HEAD /v2/copy/manifests/first", "HEAD /v2/copy/manifests/second"]
    assert len([one for one in source.requests if one.method == "HEAD"]) == 1


def test_a_rewritten_index_is_compared_with_the_target(session: Session, source: FakeRegistry, target: FakeRegistry) -> None:
    platforms = (Platform.parse("linux/arm64"),)
    documents = {Digest.parse(one.digest): one.raw for one in INDEX.manifests}
    target_root = filter_index(root_of(INDEX), platforms, lambda descriptor: documents[descriptor.digest]).root
    assert target_root.data is not None
    images.load(target, "copy", OTHER)
    target.put_manifest("copy", target_root.data, images.OCI_INDEX, tag="all")
    query = ImageQuery(
        source=reference_at(source, "app:all"), targets=(reference_at(target, "copy:all"),), platforms=platforms, rewritten=True
    )
    (found,) = survey_images(session, [query], keep=True, workers=1)
    assert image_info(found).root.digest == root_of(INDEX).digest
    assert image_info(found).target_root.digest == target_root.digest
    assert image_info(found).content == ()
    assert found.standing[0] is not None
    assert [one for one in list_requests(source) if one.startswith("GET")] == [f"GET /v2/app/manifests/{INDEX.root.digest}"]


def test_referrers_of_an_unchanged_image_are_listed_if_they_are_selected(
    session: Session, source: FakeRegistry, target: FakeRegistry
) -> None:
    signature = images.artifact(820, subject=ONE)
    images.load(source, "app", signature)
    images.load(target, "copy", ONE, "one")
    query = ImageQuery(source=reference_at(source, "app:one"), targets=(reference_at(target, "copy:one"),), related=EVERYTHING)
    (found,) = survey_images(session, [query], keep=True, workers=1)
    assert image_info(found).referrers == {Digest.parse(signature.root.digest)}


@pytest.mark.parametrize("is_known", [True, False])
def test_the_subject_of_a_referrer_is_compared_once(
    session: Session, source: FakeRegistry, target: FakeRegistry, *, is_known: bool
) -> None:
    signature, forged = images.artifact(820, subject=ONE), images.artifact(821, subject=OTHER)
    for image in (signature, forged):
        images.load(source, "app", image)
    listing = images.index([signature, forged])
    path = f"/v2/app/referrers/{ONE.root.digest}"
    headers = (("Content-Type", images.OCI_INDEX),)
    source.inject(Fault(method="GET", path=path, action=Answer(200, headers, listing.manifests[-1].raw)))
    images.load(target, "copy", ONE, "one")
    verified = frozenset({Digest.parse(signature.root.digest)} if is_known else ())
    query = ImageQuery(
        source=reference_at(source, "app:one"),
        targets=(reference_at(target, "copy:one"),),
        related=EVERYTHING,
        verified=verified,
    )
    (found,) = survey_images(session, [query], keep=False, workers=1)
    assert image_info(found).referrers == {Digest.parse(signature.root.digest)}
    assert (f"GET /v2/app/manifests/{signature.root.digest}" in list_requests(source)) is not is_known
    assert f"GET /v2/app/manifests/{forged.root.digest}" in list_requests(source)


@pytest.mark.parametrize("is_recorded", [True, False])
def test_referrers_of_referrers_are_found_at_the_source_and_at_an_unrecorded_target(
    session: Session, source: FakeRegistry, target: FakeRegistry, *, is_recorded: bool
) -> None:
    bill = images.artifact(820, subject=ONE)
    bundle = images.index([images.artifact(822)])
    signatures = [images.artifact(821, subject=bill), images.artifact(823, subject=bundle)]
    for artifact in (bill, bundle, *signatures):
        images.load(source, "app", artifact)
    images.load(source, "app", bundle, cosign_tags(Digest.parse(bill.root.digest))[2])
    images.load(target, "copy", ONE, "one")
    images.load(target, "copy", bill)
    images.load(target, "copy", signatures[0])
    place = reference_at(target, "copy:one")
    unrecorded = () if is_recorded else (place,)
    query = ImageQuery(source=reference_at(source, "app:one"), targets=(place,), related=EVERYTHING, unrecorded=unrecorded)

    (found,) = survey_images(session, [query], keep=True, workers=1)

    assert {str(digest) for digest in image_info(found).referrers} == {one.root.digest for one in (bill, bundle, *signatures)}
    there = {str(digest) for digest in image_info(found).target_referrers.get(place, {})}
    assert there == (set() if is_recorded else {bill.root.digest, signatures[0].root.digest})


def test_referrers_in_a_cycle_are_requested_once(session: Session, target: FakeRegistry) -> None:
    first = images.artifact(824, subject=ONE)
    second = images.artifact(825, subject=first)
    with FakeRegistry(referrers=False) as source:
        images.load(source, "app", ONE, "one")
        for subject, referrer in ((ONE, first), (first, second), (second, first)):
            images.load(source, "app", referrer)
            images.load(source, "app", images.index([referrer]), fallback_tag(Digest.parse(subject.root.digest)))
        images.load(target, "copy", ONE, "one")
        query = ImageQuery(
            source=reference_at(source, "app:one"), targets=(reference_at(target, "copy:one"),), related=Related(listed=True)
        )

        (found,) = survey_images(session, [query], keep=True, workers=1)

        assert {str(digest) for digest in image_info(found).referrers} == {first.root.digest, second.root.digest}
        listings = [fallback_tag(Digest.parse(one.root.digest)) for one in (ONE, first, second)]
        assert [sum(one.endswith(f"/{tag}") for one in list_requests(source)) for tag in listings] == [1, 1, 1]


def test_an_image_with_too_many_referrers_is_an_error_that_names_it(session: Session, target: FakeRegistry) -> None:
    verified = set[Digest]()
    with FakeRegistry(referrers=False) as source:
        images.load(source, "app", INDEX, "all")
        for number, subject in enumerate((ONE, OTHER)):
            digests = [images.digest_of(f"{number}/{one}".encode()) for one in range(6_000)]
            verified |= {Digest.parse(digest) for digest in digests}
            entries = [{"mediaType": images.OCI_MANIFEST, "digest": digest, "size": 1} for digest in digests]
            listing = {"schemaVersion": 2, "mediaType": images.OCI_INDEX, "manifests": entries}
            tag = fallback_tag(Digest.parse(subject.root.digest))
            source.put_manifest("app", json.dumps(listing).encode(), images.OCI_INDEX, tag=tag)
        images.load(target, "copy", INDEX, "all")
        query = ImageQuery(
            source=reference_at(source, "app:all"),
            targets=(reference_at(target, "copy:all"),),
            related=Related(listed=True),
            verified=frozenset(verified),
        )

        (found,) = survey_images(session, [query], keep=True, workers=1)

        assert [str(one) for one in found.errors] == [
            f"{source.host}/app:all: expected at most 10000 referrers, there are more"
        ]
        assert len(list_requests(source)) < 20


def test_a_list_of_many_unrelated_manifests_is_refused(session: Session, source: FakeRegistry, target: FakeRegistry) -> None:
    digests = [images.digest_of(str(one).encode()) for one in range(1000)]
    entries = [{"mediaType": images.OCI_MANIFEST, "digest": digest, "size": 1} for digest in digests]
    listing = json.dumps({"schemaVersion": 2, "mediaType": images.OCI_INDEX, "manifests": entries}).encode()
    headers = (("Content-Type", images.OCI_INDEX),)
    source.inject(Fault(method="GET", path="/v2/app/referrers/.*", action=Answer(200, headers, listing)))
    images.load(target, "copy", ONE, "one")
    query = ImageQuery(
        source=reference_at(source, "app:one"), targets=(reference_at(target, "copy:one"),), related=Related(listed=True)
    )
    (found,) = survey_images(session, [query], keep=False, workers=1)
    assert [str(one) for one in found.errors] == [
        f"manifest {ONE.root.digest}: its list of referrers has more than 100 manifests that do not refer to it"
    ]
    assert len(list_requests(source)) < 210  # a request for a manifest, then for a blob, for each digest


def load_signed_tags(source: FakeRegistry, target: FakeRegistry, *, tags: int) -> list[ImageQuery]:
    """Load a signed index with a referrer under several tags. Return a query for each tag, with an unrecorded target."""
    bill, signature = images.artifact(830, subject=INDEX), images.artifact(831)
    for registry, repository in ((source, "app"), (target, "copy")):
        images.load(registry, repository, bill)
        images.load(registry, repository, signature, cosign_tags(Digest.parse(INDEX.root.digest))[0])
        for number in range(tags):
            images.load(registry, repository, INDEX, f"v{number}")
    places = [reference_at(target, f"copy:v{number}") for number in range(tags)]
    return [
        ImageQuery(source=reference_at(source, f"app:v{n}"), targets=(place,), related=EVERYTHING, unrecorded=(place,))
        for n, place in enumerate(places)
    ]


def test_related_manifests_of_a_subject_are_requested_once_in_a_repository(
    session: Session, source: FakeRegistry, target: FakeRegistry
) -> None:
    queries = load_signed_tags(source, target, tags=6)

    found = [one for part in (queries[:3], queries[3:]) for one in survey_images(session, part, keep=True, workers=3)]

    assert {len(image_info(one).referrers) for one in found} == {2}
    assert {len(image_info(one).target_referrers[one.query.targets[0]]) for one in found} == {2}
    for registry, repository in ((source, "app"), (target, "copy")):
        requests = Counter(list_requests(registry))
        digests = [root.digest for root in (INDEX.root, ONE.root, OTHER.root)]
        assert [requests[f"GET /v2/{repository}/referrers/{digest}"] for digest in digests] == [1, 1, 1]
        assert {requests[one] for one in requests if "/referrers/" in one} == {1}
        assert requests[f"GET /v2/{repository}/tags/list"] == 1
        tagged = [one for one in requests.elements() if "/manifests/sha256-" in one]
        assert tagged == [f"HEAD /v2/{repository}/manifests/{cosign_tags(Digest.parse(INDEX.root.digest))[0]}"]


def test_digest_tags_are_requested_one_by_one_if_the_list_of_tags_fails(
    session: Session, source: FakeRegistry, target: FakeRegistry
) -> None:
    queries = load_signed_tags(source, target, tags=2)
    for registry in (source, target):
        registry.inject(Fault(path=".*/tags/list", nth=None, action=Answer(405, (), b"")))

    found = survey_images(session, queries, keep=True, workers=2)

    assert {len(image_info(one).referrers) for one in found} == {2}
    assert {len(image_info(one).target_referrers[one.query.targets[0]]) for one in found} == {2}
    for registry in (source, target):
        requests = Counter(list_requests(registry))
        assert sum(requests[one] for one in requests if "/tags/list" in one) == 1
        probed = [one for one in requests if "/manifests/sha256-" in one]
        # The index, its two images and two related manifests, with three tags each.
        assert (len(probed), {requests[one] for one in probed}) == (15, {1})


def test_a_list_of_referrers_that_failed_is_requested_again(
    session: Session, source: FakeRegistry, target: FakeRegistry
) -> None:
    (query,) = load_signed_tags(source, target, tags=1)
    source.inject(Fault(path=f"/v2/app/referrers/{ONE.root.digest}", action=Answer(403, (), b"")))

    (failed,) = survey_images(session, [query], keep=True, workers=1)
    (found,) = survey_images(session, [query], keep=True, workers=1)

    assert f"referrers of {ONE.root.digest}" in str(failed.errors[0])
    assert len(image_info(found).referrers) == 2


def test_referrers_of_an_image_that_a_target_lacks_are_not_requested(
    session: Session, source: FakeRegistry, target: FakeRegistry
) -> None:
    query = ImageQuery(source=reference_at(source, "app:one"), targets=(reference_at(target, "copy:one"),), related=EVERYTHING)
    (found,) = survey_images(session, [query], keep=True, workers=1)
    assert image_info(found).referrers == frozenset()
    assert not [one for one in list_requests(source) if "/referrers/" in one]


@pytest.mark.parametrize("created", ["2026-01-31T12:00:00Z", None])
def test_the_creation_date_of_an_image_is_read_from_its_config(
    session: Session, source: FakeRegistry, target: FakeRegistry, created: str | None
) -> None:
    config = json.dumps({"os": "linux", "architecture": "amd64", "created": created, "rootfs": {"type": "layers"}}).encode()

    def set_date(document: dict[str, Any]) -> None:
        document["config"] |= {"digest": images.digest_of(config), "size": len(config)}

    image = images.with_manifest(ONE, set_date, blobs={**ONE.blobs, images.digest_of(config): config})
    images.load(source, "app", images.index([image]), "dated")
    query = ImageQuery(source=reference_at(source, "app:dated"), targets=(reference_at(target, "copy:dated"),), dated=True)
    (found,) = survey_images(session, [query], keep=True, workers=1)
    assert image_info(found).created == (None if created is None else datetime(2026, 1, 31, 12, tzinfo=UTC))


def test_a_single_platform_replaces_an_index_by_its_image(session: Session, source: FakeRegistry, target: FakeRegistry) -> None:
    images.load(source, "app", images.index([ONE, OTHER], nested=True), "nested")
    for tag in ("all", "nested"):
        query = ImageQuery(
            source=reference_at(source, f"app:{tag}"),
            targets=(reference_at(target, f"copy:{tag}"),),
            single=Platform.parse("linux/arm64"),
        )
        (found,) = survey_images(session, [query], keep=True, workers=1)
        assert image_info(found).root.digest == image_info(found).target_root.digest == root_of(OTHER).digest
        assert {str(descriptor.digest) for descriptor in image_info(found).content} == set(OTHER.descriptors)
    query = ImageQuery(
        source=reference_at(source, "app:one"),
        targets=(reference_at(target, "copy:one"),),
        single=Platform.parse("linux/arm64"),
    )
    (found,) = survey_images(session, [query], keep=True, workers=1)
    assert image_info(found).root.digest == root_of(ONE).digest  # an image without an index stays the root
