"""Mirrors with `referrerFilters`: which of the listed referrers go along with an image."""

import json
from typing import Any

import pytest

from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.referrers import cosign_tags, fallback_tag
from tests import images
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import Mirrors, find_missing, results
from tests.flows.reports import error_lines, plan_of

BILLS, NOTES, SCANS = "application/vnd.example.bill", "application/vnd.example.note", "application/vnd.example.scan"
KEY, LEVEL = "org.example.key", "org.example.level"
FILTERS = [{"artifactType": BILLS}, {"artifactType": NOTES, "annotations": {KEY: None, LEVEL: "high"}}]

ONE = images.image(1060, layers=1)
INDEX = images.index([ONE])
BILL = images.artifact(1061, subject=INDEX, artifact_type=BILLS)
BILL_OF_IMAGE = images.artifact(1062, subject=ONE, artifact_type=BILLS)
BILL_OF_BILL = images.artifact(1063, subject=BILL, artifact_type=BILLS)
NOTE = images.artifact(1064, subject=INDEX, artifact_type=NOTES, annotations={KEY: "any", LEVEL: "high"})
SIGNATURE = images.artifact(1065)
SIGNATURE_TAG = cosign_tags(Digest.parse(INDEX.root.digest))[0]
WANTED = (BILL, BILL_OF_IMAGE, BILL_OF_BILL, NOTE)

SCAN = images.artifact(1066, subject=INDEX, artifact_type=SCANS)
OTHERS = (
    SCAN,
    images.artifact(1067, subject=BILL, artifact_type=SCANS),
    images.artifact(1068, subject=SCAN, artifact_type=BILLS),
    images.artifact(1069, subject=INDEX, artifact_type=NOTES, annotations={KEY: "any", LEVEL: "low"}),
    images.artifact(1070, subject=INDEX, artifact_type=NOTES, annotations={LEVEL: "high"}),
    images.artifact(1071, subject=INDEX, artifact_type=SCANS, annotations={KEY: "any", LEVEL: "high"}),
)


def load_all(source: FakeRegistry, *, api: bool = True) -> None:
    images.load(source, "app", INDEX, "v1")
    images.load(source, "app", SIGNATURE, SIGNATURE_TAG)
    lists: dict[str, list[dict[str, Any]]] = {}
    for artifact in (*WANTED, *OTHERS):
        images.load(source, "app", artifact)
        document = json.loads(artifact.manifests[-1].raw)
        settings = {key: document[key] for key in ("artifactType", "annotations") if key in document}
        listed = {"mediaType": artifact.root.media_type, "digest": artifact.root.digest, "size": artifact.root.size, **settings}
        lists.setdefault(document["subject"]["digest"], []).append(listed)
    for subject, entries in () if api else lists.items():
        index = {"schemaVersion": 2, "mediaType": images.OCI_INDEX, "manifests": entries}
        source.put_manifest("app", json.dumps(index).encode(), images.OCI_INDEX, tag=fallback_tag(Digest.parse(subject)))


def entry(source: FakeRegistry, target: FakeRegistry, filters: Any = FILTERS, **settings: Any) -> dict[str, Any]:
    names = {"source": f"{source.host}/app:v1", "target": f"{target.host}/copy:v1"}
    return {"type": "image", **names, "referrers": True, "referrerFilters": filters, **settings}


def find_unwanted(target: FakeRegistry) -> list[str]:
    return [one.root.digest for one in OTHERS if target.manifest("copy", one.root.digest) is not None]


def recorded_referrers(mirrors: Mirrors, target: FakeRegistry) -> set[str]:
    return set(mirrors.read_lock()[f"{target.host}/copy:v1"]["referrers"])


@pytest.mark.parametrize("api", [True, False], ids=["referrers API", "fallback tag"])
def test_only_listed_referrers_that_match_a_filter_and_all_digest_tags_are_mirrored(
    mirrors: Mirrors, target: FakeRegistry, *, api: bool
) -> None:
    with FakeRegistry(referrers=api) as source:
        load_all(source, api=api)

        report = mirrors.run(entry(source, target))

        assert report.status == "complete", error_lines(report)
        assert not find_missing(target, "copy", INDEX, "v1") + find_missing(target, "copy", SIGNATURE, SIGNATURE_TAG)
        assert not [digest for one in WANTED for digest in find_missing(target, "copy", one)]
        assert find_unwanted(target) == []
        assert recorded_referrers(mirrors, target) == {one.root.digest for one in (*WANTED, SIGNATURE)}
        read = {one.path.rpartition("/")[2] for one in source.requests if "/referrers/" not in one.path}
        assert not read & {one.root.digest for one in OTHERS}
        subjects = {one.path.rpartition("/")[2] for one in source.find_requests("GET", ".*/referrers/.*")}
        assert not subjects & {one.root.digest for one in OTHERS}


@pytest.mark.parametrize("settings", [{}, {"immutableTags": ["v.*"]}], ids=["tag that may change", "immutable tag"])
def test_a_filtered_image_is_unchanged_in_the_next_run_and_changes_with_its_filters(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, settings: dict[str, Any]
) -> None:
    load_all(source)
    mirrors.run(entry(source, target, **settings))
    mirrors.take_requests(source, target)

    again = mirrors.run(entry(source, target, **settings))

    assert results(again) == {"copy:v1": "unchanged"}
    assert {one.method for one in mirrors.take_requests(target)} == {"HEAD"}
    report = mirrors.run(entry(source, target, filters=[*FILTERS, {"artifactType": SCANS}], **settings))
    (action,) = plan_of(report).actions
    assert (results(report), action.note) == ({"copy:v1": "changed"}, "4 referrers not known to be there")
    assert not find_missing(target, "copy", SCAN)


def test_an_empty_list_of_filters_and_an_empty_filter_accept_all_referrers(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    load_all(source)
    every = {one.root.digest for one in (*WANTED, *OTHERS, SIGNATURE)}
    accepting: list[list[dict[str, Any]]] = [[], [{}]]
    for filters in accepting:
        wanted = entry(source, target, filters)
        report = mirrors.run(wanted, defaults={"referrerFilters": FILTERS})
        assert report.status == "complete", error_lines(report)
        assert recorded_referrers(mirrors, target) == every
        mirrors.lock.unlink()


def test_referrers_at_a_target_that_no_record_lists_are_compared_by_the_same_filters(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    load_all(source)
    mirrors.run(entry(source, target))
    mirrors.lock.unlink()
    images.load(target, "copy", SCAN)

    report = mirrors.run(entry(source, target))

    assert results(report) == {"copy:v1": "unchanged"}
    assert recorded_referrers(mirrors, target) == {one.root.digest for one in (*WANTED, SIGNATURE)}


def test_a_check_expects_and_repairs_the_referrers_that_match_a_filter(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    load_all(source)
    mirrors.run(entry(source, target))
    assert mirrors.check().status == "complete"
    target.lose("copy", NOTE.root.digest)

    report = mirrors.check(repair=True)

    assert report.status == "complete", error_lines(report)
    assert not find_missing(target, "copy", NOTE)
    assert find_unwanted(target) == []


def test_two_entries_with_different_filters_for_one_target_are_a_failure(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    load_all(source)

    report = mirrors.run(entry(source, target), entry(source, target, FILTERS[:1]))

    assert results(report) == {"copy:v1": "failed"}
    (error,) = error_lines(report)
    assert "; different: referrerFilters in " in error
    assert target.manifest("copy", "v1") is None


def test_two_entries_with_the_same_filters_in_another_order_are_equal(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    load_all(source)
    report = mirrors.run(entry(source, target), entry(source, target, FILTERS[::-1]))
    assert (report.status, results(report)) == ("complete", {"copy:v1": "added"})
