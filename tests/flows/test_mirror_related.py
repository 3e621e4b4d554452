"""Mirrors of listed referrers and of digest tags of cosign, also of those that appear later."""

import json
from typing import Any

import pytest

from prefect_dist.mirror.render import table
from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.referrers import cosign_tags, fallback_tag
from tests import images
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import Mirrors, bytes_of, count_reads, count_requests, find_missing, results
from tests.flows.reports import error_lines, plan_of
from tests.images import BuiltImage

ONE, OTHER = images.image(940, layers=1), images.image(941, layers=1, platform="linux/arm64/v8")
INDEX = images.index([ONE, OTHER])
BILL = images.artifact(942, subject=ONE)
ATTESTED = images.artifact(943, subject=INDEX)
SIGNED_BILL = images.artifact(944, subject=BILL)
LISTED = ((BILL, ONE), (ATTESTED, INDEX), (SIGNED_BILL, BILL))
SIGNATURE = images.artifact(945)
SIGNATURE_TAG = cosign_tags(Digest.parse(INDEX.root.digest))[0]


def load(source: FakeRegistry, *, api: bool = True) -> None:
    images.load(source, "app", INDEX, "v1")
    images.load(source, "app", SIGNATURE, SIGNATURE_TAG)
    for artifact, subject in LISTED:
        attach(source, artifact, subject, api=api)


def attach(source: FakeRegistry, artifact: BuiltImage, subject: BuiltImage, *, api: bool = True) -> None:
    images.load(source, "app", artifact)
    if not api:
        images.load(source, "app", images.index([artifact]), fallback_tag(Digest.parse(subject.root.digest)))


def entry(source: FakeRegistry, target: FakeRegistry, *, type_: str = "image", **settings: Any) -> dict[str, Any]:
    tag = ":v1" if type_ == "image" else ""
    names = {"source": f"{source.host}/app{tag}", "target": f"{target.host}/app{tag}"}
    return {"type": type_, **names, "referrers": True, "digestTags": True, **settings}


def find_lost(target: FakeRegistry) -> list[str]:
    tagged = find_missing(target, "app", INDEX, "v1") + find_missing(target, "app", SIGNATURE, SIGNATURE_TAG)
    return tagged + [digest for one, _ in LISTED for digest in find_missing(target, "app", one)]


@pytest.mark.parametrize("type_", ["image", "repository"])
@pytest.mark.parametrize("apis", [(True, True), (True, False), (False, True), (False, False)], ids=str)
def test_referrers_are_mirrored_and_the_next_run_changes_nothing(mirrors: Mirrors, type_: str, apis: tuple[bool, bool]) -> None:
    with FakeRegistry(referrers=apis[0]) as source, FakeRegistry(referrers=apis[1]) as target:
        load(source, api=apis[0])
        wanted = entry(source, target, type_=type_)
        report = mirrors.run(wanted)
        assert report.status == "complete", error_lines(report)
        assert not find_lost(target)
        if not apis[1]:
            for artifact, subject in LISTED:
                listed = target.manifest("app", fallback_tag(Digest.parse(subject.root.digest)))
                assert listed is not None
                assert artifact.root.digest.encode() in listed[1]
        mirrors.take_requests(source, target)

        again = mirrors.run(wanted)

        assert set(results(again).values()) == {"unchanged"}, table(again).list_cells()
        assert count_requests(mirrors.take_requests(target)).keys() == {"HEAD manifests"}
        assert not [one for one in mirrors.take_requests(source) if "/blobs/" in one.path]


def list_fallback(source: FakeRegistry, *artifacts: BuiltImage) -> str:
    """Load artifacts, and list them under the fallback tag of ONE as another client does. Return the tag."""
    for artifact in artifacts:
        images.load(source, "app", artifact)
    listed = images.index(artifacts)
    tag = fallback_tag(Digest.parse(ONE.root.digest))
    images.load(source, "app", listed, tag)
    return tag


@pytest.mark.parametrize("api", [True, False], ids=["API", "no API"])
def test_a_fallback_tag_is_mirrored_as_any_other_tag_without_referrers(mirrors: Mirrors, *, api: bool) -> None:
    """A push of a listed manifest writes the fallback tag of the target, before the run sets the tag itself."""
    tagged = images.artifact(946, subject=ONE)
    with FakeRegistry(referrers=False) as source, FakeRegistry(referrers=api) as target:
        images.load(source, "app", ONE, "v1")
        images.load(source, "app", tagged, "bill")
        wanted = entry(source, target, type_="repository", referrers=False, digestTags=False)
        for artifacts in ((BILL, tagged), (BILL, tagged, images.artifact(947, subject=ONE))):
            tag = list_fallback(source, *artifacts)

            report = mirrors.run(wanted)

            assert report.status == "complete", error_lines(report)
            assert [target.manifest("app", one) for one in ("v1", "bill", tag)] == [
                source.manifest("app", one) for one in ("v1", "bill", tag)
            ]
            assert set(results(mirrors.run(wanted)).values()) == {"unchanged"}


def test_only_a_new_signature_is_mirrored(mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry) -> None:
    images.load(source, "app", INDEX, "v1")
    wanted = entry(source, target)
    mirrors.run(wanted)
    images.load(source, "app", SIGNATURE, SIGNATURE_TAG)
    attach(source, BILL, ONE)
    mirrors.take_requests(source, target)

    report = mirrors.run(wanted)

    assert results(report) == {"app:v1": "changed"}
    (action,) = plan_of(report).actions
    assert action.note == "2 referrers not known to be there"
    assert not find_missing(target, "app", SIGNATURE, SIGNATURE_TAG) + find_missing(target, "app", BILL)
    read = count_reads(one for one in mirrors.take_requests(source) if "/referrers/" not in one.path)
    assert read.keys() == {*SIGNATURE.descriptors, *BILL.descriptors}
    assert report.counts["fetched_bytes"] == bytes_of(SIGNATURE, BILL)
    assert sorted(mirrors.read_lock()[f"{target.host}/app:v1"]["referrers"]) == sorted(
        [SIGNATURE.root.digest, BILL.root.digest]
    )
    mirrors.take_requests(target)
    assert results(mirrors.run(wanted)) == {"app:v1": "unchanged"}
    assert count_requests(mirrors.take_requests(target)) == {"HEAD manifests": 1}


def test_a_late_signature_of_a_bill_of_materials_is_mirrored(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    images.load(source, "app", INDEX, "v1")
    attach(source, BILL, ONE)
    wanted = entry(source, target)
    mirrors.run(wanted)
    attach(source, SIGNED_BILL, BILL)

    report = mirrors.run(wanted)

    assert results(report) == {"app:v1": "changed"}
    assert not find_missing(target, "app", SIGNED_BILL)
    assert results(mirrors.run(wanted)) == {"app:v1": "unchanged"}


def test_related_manifests_of_one_index_under_several_tags_are_requested_once(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    load(source)
    for tag in ("v2", "v3"):
        images.load(source, "app", INDEX, tag)
    wanted = entry(source, target, type_="repository", tags={"deny": ["sha256-.*"]})
    mirrors.run(wanted)
    mirrors.take_requests(source, target)

    report = mirrors.run(wanted)

    assert set(results(report).values()) == {"unchanged"}
    # Three tags and one digest tag; the index, its two images and four related manifests are subjects.
    assert count_requests(mirrors.take_requests(source)) == {"GET tags": 1, "HEAD manifests": 3 + 1, "GET referrers": 7}
    assert count_requests(mirrors.take_requests(target)) == {"HEAD manifests": 3}


@pytest.mark.parametrize("apis", [(True, True), (True, False), (False, True)], ids=str)
def test_existing_referrers_are_found_without_a_lock_file(mirrors: Mirrors, apis: tuple[bool, bool]) -> None:
    with FakeRegistry(referrers=apis[0]) as source, FakeRegistry(referrers=apis[1]) as target:
        load(source, api=apis[0])
        wanted = entry(source, target)
        mirrors.run(wanted)
        before = mirrors.read_lock()[f"{target.host}/app:v1"]["referrers"]
        mirrors.lock.unlink()
        mirrors.take_requests(target)

        report = mirrors.run(wanted)

        assert results(report) == {"app:v1": "unchanged"}
        assert not [one for one in mirrors.take_requests(target) if one.method not in ("GET", "HEAD")]
        assert mirrors.read_lock()[f"{target.host}/app:v1"]["referrers"] == before
        assert results(mirrors.run(wanted)) == {"app:v1": "unchanged"}

        if apis[1]:
            target.lose("app", BILL.root.digest)
        else:
            target.untag("app", fallback_tag(Digest.parse(ONE.root.digest)))
        mirrors.lock.unlink()
        assert results(mirrors.run(wanted)) == {"app:v1": "changed"}
        assert not find_lost(target)


@pytest.mark.parametrize(
    ("settings", "is_listed", "is_tagged"),
    [
        ({"referrers": True}, True, True),
        ({"referrers": True, "digestTags": True}, True, True),
        ({"referrers": True, "digestTags": False}, True, False),
        ({"digestTags": True}, False, True),
        ({}, False, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_late", [False, True], ids=["at once", "later"])
def test_referrers_include_digest_tags_unless_these_are_excluded(
    mirrors: Mirrors,
    source: FakeRegistry,
    target: FakeRegistry,
    *,
    settings: dict[str, bool],
    is_listed: bool,
    is_tagged: bool,
    is_late: bool,
) -> None:
    wanted = {"type": "image", "source": f"{source.host}/app:v1", "target": f"{target.host}/app:v1", **settings}
    if is_late:
        images.load(source, "app", INDEX, "v1")
        mirrors.run(wanted)
    load(source)

    mirrors.run(wanted)

    assert (target.manifest("app", BILL.root.digest) is not None) is is_listed
    assert (target.manifest("app", SIGNATURE_TAG) is not None) is is_tagged


def test_no_referrers_are_requested_if_none_are_selected(mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry) -> None:
    load(source)
    mirrors.run(entry(source, target, referrers=False, digestTags=False))
    assert not [one for one in source.requests if "/referrers/" in one.path or ".sig" in one.path]
    assert target.manifest("app", SIGNATURE_TAG) is None


def test_a_referrer_that_only_the_target_lists_stays_listed(mirrors: Mirrors) -> None:
    with FakeRegistry(referrers=False) as source, FakeRegistry(referrers=False) as target:
        load(source, api=False)
        theirs = images.artifact(946, subject=ONE)
        images.load(target, "app", theirs)
        tag = fallback_tag(Digest.parse(ONE.root.digest))
        images.load(target, "app", images.index([theirs]), tag)
        wanted = entry(source, target, type_="repository")
        for _ in range(2):
            report = mirrors.run(wanted)
            assert report.status == "complete", error_lines(report)
            listed = target.manifest("app", tag)
            assert listed is not None
            assert {one["digest"] for one in json.loads(listed[1])["manifests"]} == {BILL.root.digest, theirs.root.digest}
        assert results(report) == {"app:v1": "unchanged", f"app:{SIGNATURE_TAG}": "unchanged"}
