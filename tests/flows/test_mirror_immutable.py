"""Immutable tags: a run sends one request to the target for each tag, and still notices changes of the configuration."""

import json
import shutil
from typing import Any

import pytest

from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.referrers import cosign_tags
from tests import images
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import Mirrors, count_requests, find_missing, image, repository, results
from tests.flows.reports import plan_of

ONE, OTHER = images.image(960, layers=1), images.image(961, layers=1, platform="linux/arm64")
INDEX = images.index([ONE, OTHER])
SIGNATURE, BILL = images.artifact(962), images.artifact(963, subject=INDEX)
SIGNATURE_TAG = cosign_tags(Digest.parse(INDEX.root.digest))[0]


def immutable_entry(source: FakeRegistry, target: FakeRegistry, name: str = "app:1.0", **settings: Any) -> dict[str, Any]:
    """Return an entry for an image with an immutable tag."""
    return image(source, target, name, immutableTags=[r"\d.*"], **settings)


def test_an_immutable_tag_costs_one_request_to_the_target_and_none_to_the_source(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    for tag in ("1.0", "1.1"):
        images.load(source, "app", INDEX, tag)
    entries = [immutable_entry(source, target, f"app:{tag}") for tag in ("1.0", "1.1")]
    mirrors.run(*entries)
    before = mirrors.read_lock()
    mirrors.take_requests(source, target)

    report = mirrors.run(*entries)

    assert mirrors.take_requests(source) == []
    assert sorted((one.method, one.path) for one in mirrors.take_requests(target)) == [
        ("HEAD", "/v2/app/manifests/1.0"),
        ("HEAD", "/v2/app/manifests/1.1"),
    ]
    assert (report.status, report.counts["unchanged"], report.tasks) == ("complete", 2, 1)
    assert mirrors.read_lock() == before


def test_with_trust_lock_an_immutable_tag_costs_no_request_and_a_new_target_is_filled(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    images.load(source, "app", INDEX, "1.0")
    entry = immutable_entry(source, target, trustLock=True, referrers=True)
    mirrors.run(entry)
    target.untag("app", "1.0")
    mirrors.take_requests(source, target)

    report = mirrors.run(entry)

    assert mirrors.take_requests(source, target) == []
    assert (report.status, report.counts["unchanged"], report.tasks) == ("complete", 1, 0)
    assert mirrors.read_lock().keys() == {f"{target.host}/app:1.0"}
    assert results(mirrors.run({**entry, "target": f"{target.host}/more"})) == {"more:latest": "added"}


@pytest.mark.parametrize("later", [{"referrers": True}, {"digestTags": True}, {"referrerFilters": []}], ids=str)
def test_with_trust_lock_options_that_are_added_later_take_effect_once(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, later: dict[str, Any]
) -> None:
    images.load(source, "app", INDEX, "1.0")
    images.load(source, "app", BILL)
    images.load(source, "app", SIGNATURE, SIGNATURE_TAG)
    before: dict[str, Any] = {"referrers": True, "digestTags": False, "referrerFilters": [{"artifactType": "none/such"}]}
    mirrors.run(immutable_entry(source, target, trustLock=True, **(before if "referrerFilters" in later else {})))
    entry = immutable_entry(source, target, trustLock=True, **({**before, **later} if "referrerFilters" in later else later))

    assert results(mirrors.run(entry)) == {"app:1.0": "changed"}
    assert find_missing(target, "app", SIGNATURE, SIGNATURE_TAG) == [] or "referrerFilters" in later
    assert find_missing(target, "app", BILL) == [] or "digestTags" in later
    mirrors.take_requests(source, target)
    mirrors.run(entry)
    assert mirrors.take_requests(source, target) == []


def test_with_trust_lock_a_record_without_options_is_compared_once(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    images.load(source, "app", INDEX, "1.0")
    entry = immutable_entry(source, target, trustLock=True, referrers=True)
    mirrors.run(entry)
    document = json.loads(mirrors.lock.read_text())
    del document["images"][f"{target.host}/app:1.0"]["related"]
    mirrors.lock.write_text(json.dumps(document))
    images.load(source, "app", BILL)

    assert results(mirrors.run(entry)) == {"app:1.0": "changed"}
    assert not find_missing(target, "app", BILL)
    mirrors.take_requests(source, target)
    mirrors.run(entry)
    assert mirrors.take_requests(source, target) == []


@pytest.mark.parametrize("trusting", [False, True], ids=["asks the target", "trusts the lock"])
def test_a_new_source_of_an_immutable_tag_is_mirrored(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, *, trusting: bool
) -> None:
    images.load(source, "app", INDEX, "1.0")
    images.load(source, "fork", OTHER, "1.0")
    mirrors.run(immutable_entry(source, target, trustLock=trusting))

    moved = immutable_entry(source, target, trustLock=trusting) | {"source": f"{source.host}/fork:1.0"}
    assert results(mirrors.run(moved)) == {"app:1.0": "changed"}
    assert not find_missing(target, "app", OTHER, "1.0")
    record = mirrors.read_lock()[f"{target.host}/app:1.0"]
    assert (record["source"], record["digest"]) == (f"{source.host}/fork:1.0", OTHER.root.digest)


@pytest.mark.parametrize("key", ["referrers", "digestTags"])
def test_a_signature_of_an_immutable_tag_that_comes_later_is_mirrored(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, key: str
) -> None:
    images.load(source, "app", INDEX, "1.0")
    entry = immutable_entry(source, target, referrers=key == "referrers", digestTags=key == "digestTags")
    mirrors.run(entry)
    late = BILL if key == "referrers" else SIGNATURE
    images.load(source, "app", late, None if key == "referrers" else SIGNATURE_TAG)
    mirrors.take_requests(source)

    assert results(mirrors.run(entry)) == {"app:1.0": "changed"}

    assert not find_missing(target, "app", late, None if key == "referrers" else SIGNATURE_TAG)
    assert not [one for one in mirrors.take_requests(source) if one.path.endswith("/manifests/1.0")]
    assert results(mirrors.run(entry)) == {"app:1.0": "unchanged"}


def test_an_immutable_tag_that_was_deleted_or_moved_at_the_target_is_mirrored_again(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    images.load(source, "app", INDEX, "1.0")
    entry = immutable_entry(source, target)
    mirrors.run(entry)

    target.untag("app", "1.0")
    assert results(mirrors.run(entry)) == {"app:1.0": "added"}
    assert not find_missing(target, "app", INDEX, "1.0")

    images.load(target, "app", images.image(964), "1.0")
    assert results(mirrors.run(entry)) == {"app:1.0": "changed"}
    assert not find_missing(target, "app", INDEX, "1.0")


def test_new_platforms_of_an_immutable_tag_with_a_rewritten_index_are_mirrored(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    images.load(source, "app", INDEX, "1.0")
    few = immutable_entry(source, target, platforms=["linux/arm64"], rewriteIndex=True)
    more = immutable_entry(source, target, platforms=["linux/arm64", "linux/amd64"], rewriteIndex=True)
    assert results(mirrors.run(few)) == {"app:1.0": "added"}
    shutil.rmtree(mirrors.store)
    mirrors.take_requests(source)
    assert results(mirrors.run(few)) == {"app:1.0": "unchanged"}
    assert mirrors.take_requests(source) == []
    assert results(mirrors.run(more)) == {"app:1.0": "changed"}
    assert not find_missing(target, "app", INDEX, "1.0")
    assert results(mirrors.run(immutable_entry(source, target, platform="linux/arm64"))) == {"app:1.0": "changed"}
    assert not find_missing(target, "app", OTHER, "1.0")


def test_an_immutable_tag_that_is_too_old_becomes_orphaned(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    config = json.dumps({"os": "linux", "architecture": "amd64", "created": "2020-01-01T00:00:00Z"}).encode()

    def date(document: dict[str, Any]) -> None:
        document["config"] |= {"digest": images.digest_of(config), "size": len(config)}

    old = images.with_manifest(ONE, date, blobs={**ONE.blobs, images.digest_of(config): config})
    images.load(source, "app", old, "1.0")
    entry = repository(source, target, immutableTags=[r"\d.*"])
    assert results(mirrors.run(entry)) == {"copy:1.0": "added"}
    mirrors.take_requests(source)

    report = mirrors.run(entry | {"tags": {"created": {"within": "90d"}}})

    assert [str(orphan.target) for orphan in plan_of(report).orphans] == [f"{target.host}/copy:1.0"]
    assert count_requests(mirrors.take_requests(source)) == {"GET tags": 1}  # the store has the config, which has the date
