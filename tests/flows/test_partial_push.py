"""Pushes of an index of which the store has only some platforms: the image of one platform, or the sparse index."""

from pathlib import Path

import pytest

from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import InvalidInput, NotFound
from prefect_dist.storage import open_store
from tests import images
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import count_uploads, fetch_directly, find_missing, push_directly
from tests.flows.reports import error_lines, outcomes

ONE, OTHER = images.image(720, layers=2), images.image(721, layers=2, platform="linux/arm64/v8")
INDEX = images.index([ONE, OTHER])
SIGNATURE, BILL = images.artifact(722, subject=INDEX), images.artifact(723, subject=OTHER)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def name(source: FakeRegistry, store: str) -> str:
    """The index with its referrers, fetched into the store for one of two platforms."""
    for built in (SIGNATURE, BILL):
        images.load(source, "app", built)
    images.load(source, "app", INDEX, "v1")
    report = fetch_directly(store, [f"{source.host}/app:v1"], platforms=["linux/arm64"], referrers=True)
    assert report.status == "complete", error_lines(report)
    return f"{source.host}/app:v1"


def test_the_image_of_one_platform_is_pushed_under_the_tag(target: FakeRegistry, store: str, name: str) -> None:
    report = push_directly(store, name, f"{target.host}/app:v1", platform="linux/arm64")

    assert report.status == "complete", error_lines(report)
    assert outcomes(report) == {f"{target.host}/app:v1": "added"}
    assert find_missing(target, "app", OTHER, "v1") == []
    assert count_uploads(target.requests) == dict.fromkeys(OTHER.blobs, 1)
    assert target.manifest("app", INDEX.root.digest) is None


def test_the_referrers_of_the_platform_are_pushed_with_its_image(target: FakeRegistry, store: str, name: str) -> None:
    report = push_directly(store, name, f"{target.host}/app:v1", platform="linux/arm64", referrers=True)

    assert report.status == "complete", error_lines(report)
    assert find_missing(target, "app", BILL) == []
    assert target.manifest("app", SIGNATURE.root.digest) is None


def test_a_sparse_index_is_pushed_unchanged_with_the_platforms_in_the_store(store: str, name: str) -> None:
    with FakeRegistry(sparse=True) as target:
        report = push_directly(store, name, f"{target.host}/app:v1", sparse=True)

        assert report.status == "complete", error_lines(report)
        published = target.manifest("app", "v1")
        assert published is not None
        assert published[1] == INDEX.manifests[-1].raw
        assert find_missing(target, "app", OTHER) == []
        assert target.manifest("app", ONE.root.digest) is None
        again = push_directly(store, name, f"{target.host}/app:v1", sparse=True)
    assert outcomes(again) == {f"{target.host}/app:v1": "unchanged"}


def test_the_refusal_of_a_sparse_index_names_the_remedies(target: FakeRegistry, store: str, name: str) -> None:
    report = push_directly(store, name, f"{target.host}/app:v1", sparse=True)

    assert report.status == "failed"
    (line,) = error_lines(report)
    assert "MANIFEST_BLOB_UNKNOWN" in line
    assert line.endswith(
        "; this registry accepts no sparse index, but demands the missing manifests; push the image of one platform "
        "(--platform), or fetch all platforms and push the whole index"
    )
    assert target.manifest("app", "v1") is None


def test_a_whole_index_is_pushed_with_and_without_the_option(source: FakeRegistry, target: FakeRegistry, store: str) -> None:
    images.load(source, "app", INDEX, "v1")
    fetch_directly(store, [f"{source.host}/app:v1"])

    report = push_directly(store, f"{source.host}/app:v1", f"{target.host}/app:v1", sparse=True)

    assert report.status == "complete", error_lines(report)
    assert find_missing(target, "app", INDEX, "v1") == []


def test_a_push_of_a_partial_image_without_an_option_names_both_options(target: FakeRegistry, store: str, name: str) -> None:
    remedy = r"fetch the image again for all platforms, then push it, or push one platform \(linux/arm64.*\), or .*, sparse"
    with pytest.raises(NotFound, match=remedy):
        push_directly(store, name, f"{target.host}/app:v1")
    assert target.requests == []


def test_a_platform_that_the_store_lacks_fails_before_any_request(target: FakeRegistry, store: str, name: str) -> None:
    with pytest.raises(NotFound, match="fetch the image again for linux/amd64, then push it"):
        push_directly(store, name, f"{target.host}/app:v1", platform="linux/amd64")
    with pytest.raises(NotFound, match="windows/amd64"):
        push_directly(store, name, f"{target.host}/app:v1", platform="windows/amd64")
    assert target.requests == []


def test_a_target_digest_is_that_of_the_platform(target: FakeRegistry, store: str, name: str) -> None:
    with pytest.raises(InvalidInput, match=f"expected the digest of {name}, which is {OTHER.root.digest}"):
        push_directly(store, name, f"{target.host}/app@{INDEX.root.digest}", platform="linux/arm64")
    report = push_directly(store, name, f"{target.host}/app@{OTHER.root.digest}", platform="linux/arm64")
    assert report.status == "complete", error_lines(report)
    assert open_store(store).info(Digest.parse(OTHER.root.digest)).size


def test_one_platform_of_a_sparse_index_is_refused(store: str) -> None:
    with pytest.raises(InvalidInput, match="expected either one platform or a sparse index"):
        push_directly(store, "app", "registry.example/app:v1", platform="linux/arm64", sparse=True)
