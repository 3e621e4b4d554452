"""Copies of one image or repository: the requests to source and target, and the images at the target."""

from pathlib import Path

import pytest

from prefect_dist.mirror.render import summary_line
from prefect_dist.mirror.report import TargetRow
from prefect_dist.ocispec.errors import InvalidInput, NotFound
from prefect_dist.storage import open_store
from tests import images
from tests.fakes.faults import Answer, Fault
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import (
    copy_directly,
    count_reads,
    count_requests,
    count_uploads,
    fetch_directly,
    find_missing,
    push_directly,
)
from tests.flows.reports import error_lines, outcomes, plan_of

ONE, OTHER = images.image(660, layers=2), images.image(661, layers=2, platform="linux/arm64/v8")
INDEX = images.index([ONE, OTHER])
SIGNATURE = images.artifact(662, subject=INDEX)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def name(source: FakeRegistry) -> str:
    """An index at the source, with a signature."""
    images.load(source, "app", SIGNATURE)
    images.load(source, "app", INDEX, "v1")
    return f"{source.host}/app:v1"


def test_an_image_is_read_and_uploaded_once_and_its_store_name_is_recorded(
    source: FakeRegistry, target: FakeRegistry, store: str, name: str
) -> None:
    report = copy_directly(store, name, f"{target.host}/team/tool:v2")

    assert report.status == "complete", error_lines(report)
    assert outcomes(report) == {f"{target.host}/team/tool:v2": "added"}
    assert summary_line(report).startswith("copy complete: 1 added, 0 changed, 0 unchanged; ")
    assert find_missing(target, "team/tool", INDEX, "v2") == []
    assert count_uploads(target.requests) == dict.fromkeys(INDEX.blobs, 1)
    assert count_reads(source.requests) == dict.fromkeys(INDEX.descriptors, 1)
    assert [one.name for one in open_store(store).names] == [name]


def test_a_copy_of_an_unchanged_index_asks_the_target_for_its_tag_and_its_manifests_only(
    source: FakeRegistry, target: FakeRegistry, store: str, name: str
) -> None:
    copy_directly(store, name, f"{target.host}/app:v1")
    before = len(source.requests), len(target.requests)

    report = copy_directly(store, name, f"{target.host}/app:v1")

    assert report.counts["unchanged"] == 1
    asked = [*source.requests[before[0] :], *target.requests[before[1] :]]
    children = [one.root.digest for one in (ONE, OTHER)]
    assert [(one.method, one.path) for one in asked] == [
        ("HEAD", f"/v2/app/manifests/{one}") for one in ("v1", "v1", *children)
    ]


def test_blobs_are_mounted_within_a_registry(source: FakeRegistry, store: str, name: str) -> None:
    report = copy_directly(store, name, f"{source.host}/other:v1")

    assert (report.status, report.counts["mounted"]) == ("complete", len(INDEX.blobs))
    assert find_missing(source, "other", INDEX, "v1") == []
    assert count_uploads(source.requests) == {}


def test_a_dry_run_plans_and_sends_nothing(target: FakeRegistry, store: str, name: str) -> None:
    report = copy_directly(store, name, f"{target.host}/app:v1", is_dry=True)

    assert outcomes(report) == {f"{target.host}/app:v1": "planned"}
    assert plan_of(report).cost.fetched == len(INDEX.descriptors)
    assert {one.method for one in target.requests} == {"HEAD"}
    assert list(open_store(store).walk()) == []


@pytest.mark.parametrize("is_rewritten", [False, True])
def test_selected_platforms_are_copied(store: str, name: str, *, is_rewritten: bool) -> None:
    with FakeRegistry(sparse=not is_rewritten) as target:
        report = copy_directly(store, name, f"{target.host}/app:v1", platforms=["linux/arm64"], rewrite_index=is_rewritten)

        assert report.status == "complete", error_lines(report)
        assert find_missing(target, "app", OTHER) == []
        assert target.manifest("app", ONE.root.digest) is None
        published = target.manifest("app", "v1")
        assert published is not None
        assert (published[1] == INDEX.manifests[-1].raw) == (not is_rewritten)


def test_referrers_are_copied_on_request(target: FakeRegistry, store: str, name: str) -> None:
    copy_directly(store, name, f"{target.host}/without:v1")
    copy_directly(store, name, f"{target.host}/with:v1", referrers=True)

    assert target.manifest("without", SIGNATURE.root.digest) is None
    assert find_missing(target, "with", SIGNATURE) == []


def test_all_tags_of_a_repository_are_copied(source: FakeRegistry, target: FakeRegistry, store: str, name: str) -> None:
    images.load(source, "app", ONE, "v2")

    report = copy_directly(store, name.rpartition(":")[0], f"{target.host}/team/copy", all_tags=True)

    assert outcomes(report) == {f"{target.host}/team/copy:{tag}": "added" for tag in ("v1", "v2")}
    assert find_missing(target, "team/copy", INDEX, "v1") + find_missing(target, "team/copy", ONE, "v2") == []
    assert count_uploads(target.requests) == dict.fromkeys(INDEX.blobs, 1)


def test_a_copy_of_a_store_name_sends_the_requests_of_a_push(
    source: FakeRegistry, target: FakeRegistry, other: FakeRegistry, store: str, name: str
) -> None:
    fetch_directly(store, [name])
    before = len(source.requests)
    pushed = push_directly(store, name, f"{target.host}/app:v1", concurrency=1)
    copied = copy_directly(store, f"store:{name}", f"{other.host}/app:v1", concurrency=1)

    assert (pushed.status, copied.status) == ("complete", "complete")
    assert find_missing(target, "app", INDEX, "v1") + find_missing(other, "app", INDEX, "v1") == []
    assert count_requests(target.requests) == count_requests(other.requests)
    assert len(source.requests) == before


def test_selected_platforms_of_a_store_name_are_copied(source: FakeRegistry, store: str, name: str) -> None:
    with FakeRegistry(sparse=True) as first, FakeRegistry(sparse=True) as second:
        copy_directly(store, name, f"{first.host}/app:v1", platforms=["linux/arm64"])
        report = copy_directly(store, f"store:{name}", f"{second.host}/app:v1", platforms=["linux/arm64"])
        assert report.status == "complete", error_lines(report)
        assert find_missing(second, "app", OTHER) == []
        with pytest.raises(NotFound, match=r"missing in the store .*; fetch the image again for all platforms"):
            copy_directly(store, f"store:{name}", f"{second.host}/app:v2")
        assert second.find_requests("HEAD", "/v2/app/manifests/v2") == []
    assert open_store(store).names.get(name).platforms is not None
    assert source.requests


def test_a_target_digest_of_another_image_fails_before_an_upload(target: FakeRegistry, store: str, name: str) -> None:
    report = copy_directly(store, name, f"{target.host}/app@{ONE.root.digest}")

    (row,) = report.select(TargetRow)
    assert [type(error) for error in row.errors] == [InvalidInput]
    assert error_lines(report)[0].endswith(
        f": the image has the digest {INDEX.root.digest}; correct or remove the digest of the target"
    )
    assert {one.method for one in target.requests} == {"HEAD"}


def test_a_missing_image_and_a_refusing_target_fail(source: FakeRegistry, target: FakeRegistry, store: str, name: str) -> None:
    missing = copy_directly(store, f"{source.host}/app:none", f"{target.host}/app:none")
    target.inject(Fault(method="POST", nth=None, action=Answer(403, (), b"")))
    refused = copy_directly(store, name, f"{target.host}/app:v1")

    assert (missing.status, refused.status) == ("failed", "failed")
    assert len(missing.errors) == len(refused.errors) == 1
    assert [one for one in target.requests if one.method == "PUT"] == []
