"""Pruning at registries that delete only whole manifests keeps the content of remaining tags."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.referrers import cosign_tags
from tests import images
from tests.fakes.faults import Answer, Call, Fault
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import Mirrors, find_missing, repository, results
from tests.flows.reports import error_lines, removals
from tests.peers import skopeo
from tests.peers.registry import cncf_registry

AMD, ARM = images.image(1970, layers=1), images.image(1971, layers=1, platform="linux/arm64")
INDEX, LIST = images.index([AMD, ARM]), images.index([AMD, ARM], docker=True)
AT_ONCE = {"after": "0s", "most": 20}


def list_deletions(mirrors: Mirrors, registry: FakeRegistry) -> list[str]:
    requests = (one for one in mirrors.take_requests(registry) if one.method == "DELETE" and one.status == 202)
    return [one.path.rpartition("/")[2] for one in requests]


def deny(entry: dict[str, Any], *tags: str) -> dict[str, Any]:
    return {**entry, "tags": {"deny": list(tags)}}


def outcome(report: Any, tag: str) -> tuple[str, str]:
    (found,) = [one for one in removals(report) if one.target.tag == tag]
    return found.outcome, found.note or ""


def test_an_index_on_the_cncf_registry_keeps_its_manifests_when_their_own_tags_are_pruned(
    mirrors: Mirrors, source: FakeRegistry, tmp_path: Path
) -> None:
    for tag, built in (("1.0", INDEX), ("1.0-amd64", AMD), ("1.0-arm64", ARM), ("other", images.image(1972, layers=1))):
        images.load(source, "app", built, tag)
    with cncf_registry(tmp_path / "registry") as target:
        entry = {"source": f"{source.host}/app", "target": f"{target.host}/copy", "type": "repository", "prune": AT_ONCE}
        assert mirrors.run(entry, retries=3).status == "complete"

        report = mirrors.run(deny(entry, "1.0-.*", "other"))

        skopeo.copy(f"docker://{target.host}/copy:1.0", f"oci:{tmp_path / 'pulled'}:1.0")
        removed = {one.target.tag: (one.outcome, one.note) for one in removals(report)}
        only = "this registry deletes only whole manifests, not tags"
        needed = {
            tag: f"{target.host}/copy:1.0 needs {one.root.digest}, and {only}"
            for tag, one in (("1.0-amd64", AMD), ("1.0-arm64", ARM))
        }
        assert removed == {**{tag: ("shared", why) for tag, why in needed.items()}, "other": ("removed", None)}
        assert report.status == "complete"
        with urllib.request.urlopen(f"http://{target.host}/v2/copy/tags/list") as answer:
            assert sorted(json.load(answer)["tags"]) == ["1.0", "1.0-amd64", "1.0-arm64"]


def test_tags_of_others_with_nested_indexes_keep_their_manifests(mirrors: Mirrors, source: FakeRegistry) -> None:
    images.load(source, "app", AMD, "amd64")
    images.load(source, "app", images.image(1972, layers=1), "kept")
    with FakeRegistry(deletes="manifests") as target:
        entry = repository(source, target, prune=AT_ONCE)
        mirrors.run(entry)
        theirs = images.index([AMD, ARM], nested=True)
        images.load(target, "copy", theirs, "of-another-team")
        mirrors.take_requests(target)

        report = mirrors.run(deny(entry, "amd64"))

        assert outcome(report, "amd64")[0] == "shared"
        assert f"{target.host}/copy:of-another-team needs {AMD.root.digest}" in outcome(report, "amd64")[1]
        assert list_deletions(mirrors, target) == []
        assert not find_missing(target, "copy", theirs, "of-another-team")


def test_a_tag_that_was_moved_to_the_manifest_of_another_unwanted_tag_is_kept(mirrors: Mirrors, source: FakeRegistry) -> None:
    for tag, built in (("t1", AMD), ("t2", ARM), ("kept", INDEX)):
        images.load(source, "app", images.image(1980, layers=1) if tag == "kept" else built, tag)
    with FakeRegistry(deletes="manifests") as target:
        entry = repository(source, target, prune=AT_ONCE)
        mirrors.run(entry)
        images.load(target, "copy", AMD, "t2")
        mirrors.take_requests(target)

        report = mirrors.run(deny(entry, "t."))

        assert not find_missing(target, "copy", AMD, "t2")
        assert list_deletions(mirrors, target) == []
        assert outcome(report, "t1")[0] == "shared"
        moved = (
            f"it resolves to {AMD.root.digest} now, not to {ARM.root.digest} as this mirror left it; it is someone else's tag"
        )
        assert outcome(report, "t2") == ("changed", moved)
        assert set(mirrors.read_lock()) == {f"{target.host}/copy:t1", f"{target.host}/copy:kept"}


def test_nothing_is_deleted_if_a_manifest_of_a_remaining_tag_cannot_be_read(mirrors: Mirrors, source: FakeRegistry) -> None:
    for tag, built in (("v1", AMD), ("kept", ARM)):
        images.load(source, "app", built, tag)
    with FakeRegistry(deletes="manifests") as target:
        entry = repository(source, target, prune=AT_ONCE)
        mirrors.run(entry)
        theirs = images.index([images.image(1990)])
        images.load(target, "copy", theirs, "theirs")
        mirrors.take_requests(target)
        target.inject(Fault(path=f".*/{theirs.root.digest}", nth=None, action=Answer(403)))

        report = mirrors.run(deny(entry, "v1"))

        assert report.status == "failed"
        (error,) = error_lines(report)
        assert error.startswith(f"orphaned tag {target.host}/copy:v1: ")
        assert theirs.root.digest in error
        assert list_deletions(mirrors, target) == []
        assert not find_missing(target, "copy", AMD, "v1")
        assert results(mirrors.run(entry)).get("copy:v1") == "unchanged"


def test_a_tag_that_moves_during_the_reads_of_other_tags_is_kept(mirrors: Mirrors, source: FakeRegistry) -> None:
    for tag, built in (("v1", AMD), ("kept", ARM)):
        images.load(source, "app", built, tag)
    with FakeRegistry(deletes="manifests") as target:
        entry = repository(source, target, prune=AT_ONCE)
        mirrors.run(entry)
        theirs = images.image(1991)
        mirrors.take_requests(target)
        target.inject(Fault(path=".*/tags/list", action=Call(lambda: images.load(target, "copy", theirs, "v1"))))

        report = mirrors.run(deny(entry, "v1"))

        assert outcome(report, "v1")[0] == "changed"
        assert list_deletions(mirrors, target) == []
        assert not find_missing(target, "copy", theirs, "v1")


def test_a_mirrored_signature_does_not_keep_its_image_but_a_signature_of_others_does(
    mirrors: Mirrors, source: FakeRegistry
) -> None:
    signature, theirs = images.artifact(1992), images.artifact(1993)
    for tag, built in (("v1", AMD), ("v2", ARM), ("kept", images.image(1994, layers=1))):
        images.load(source, "app", built, tag)
    sig = cosign_tags(Digest.parse(AMD.root.digest))[0]
    images.load(source, "app", signature, sig)
    with FakeRegistry(deletes="manifests", referrers=False) as target:
        entry = repository(source, target, prune=AT_ONCE, digestTags=True, tags={"deny": ["sha256-.*"]})
        mirrors.run(entry)
        assert not find_missing(target, "copy", signature, sig)
        foreign = cosign_tags(Digest.parse(ARM.root.digest))[0]
        images.load(target, "copy", theirs, foreign)
        mirrors.take_requests(target)

        report = mirrors.run(deny(entry, "sha256-.*", "v1", "v2"))

        assert outcome(report, "v1") == ("removed", "")
        assert outcome(report, "v2")[0] == "shared"
        assert f"{target.host}/copy:{foreign} needs {ARM.root.digest}" in outcome(report, "v2")[1]
        assert list_deletions(mirrors, target) == [AMD.root.digest]


def test_an_orphaned_index_is_deleted_before_its_manifests_and_each_manifest_is_read_once(
    mirrors: Mirrors, source: FakeRegistry
) -> None:
    for tag, built in (("a-amd", AMD), ("b-arm", ARM), ("c-index", INDEX), ("kept", images.image(1995, layers=1))):
        images.load(source, "app", built, tag)
    with FakeRegistry(deletes="manifests", referrers=False) as target:
        entry = repository(source, target, prune=AT_ONCE)
        mirrors.run(entry)
        theirs = [images.index([images.image(1996 + number)]) for number in range(3)]
        for number, built in enumerate(theirs):
            images.load(target, "copy", built, f"theirs{number}")
        mirrors.take_requests(target)

        report = mirrors.run(deny(entry, "[abc]-.*"))

        requests = mirrors.take_requests(target)
        assert [one.outcome for one in removals(report)] == ["removed"] * 3
        gone = [one.path.rpartition("/")[2] for one in requests if one.method == "DELETE" and one.status == 202]
        assert gone == [INDEX.root.digest, AMD.root.digest, ARM.root.digest]
        assert sum(one.path.endswith("/tags/list") for one in requests) == 1
        read = [one.path.rpartition("/")[2] for one in requests if one.method == "GET" and "/manifests/sha256:" in one.path]
        assert sorted(read) == sorted({m.digest for built in theirs for m in built.manifests})


def test_only_the_tag_is_deleted_if_the_registry_deletes_tags(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    for tag, built in (("1.0", INDEX), ("1.0-amd64", AMD), ("1.0-arm64", ARM)):
        images.load(source, "app", built, tag)
    entry = repository(source, target, prune=AT_ONCE)
    mirrors.run(entry)
    mirrors.take_requests(target)

    report = mirrors.run(deny(entry, "1.0-.*"))

    assert {outcome(report, tag) for tag in ("1.0-amd64", "1.0-arm64")} == {("removed", "")}
    assert list_deletions(mirrors, target) == ["1.0-amd64", "1.0-arm64"]
    assert not find_missing(target, "copy", INDEX, "1.0")


def test_a_referrer_of_a_remaining_image_is_kept_when_its_own_tag_is_pruned(mirrors: Mirrors, source: FakeRegistry) -> None:
    bill = images.artifact(1998, subject=AMD)
    for tag, built in (("v1", AMD), ("v1-bill", bill)):
        images.load(source, "app", built, tag)
    with FakeRegistry(deletes="manifests", referrers=True) as target:
        entry = repository(source, target, prune=AT_ONCE)
        mirrors.run(entry)
        mirrors.take_requests(target)

        report = mirrors.run(deny(entry, "v1-bill"))

        assert outcome(report, "v1-bill")[0] == "shared"
        assert f"{target.host}/copy:v1 needs {bill.root.digest}" in outcome(report, "v1-bill")[1]
        assert list_deletions(mirrors, target) == []


@pytest.mark.parametrize("tags", [None, ["1.0-amd64", "1.0-arm64", "x1"], ["1.0", "1.0-amd64", "1.0-arm64", "x1"]])
def test_nothing_is_deleted_if_the_list_of_tags_lacks_a_tag_that_exists(
    mirrors: Mirrors, source: FakeRegistry, tags: list[str] | None
) -> None:
    other = images.image(1999, layers=1)
    for tag, built in (("1.0", INDEX), ("1.0-amd64", AMD), ("1.0-arm64", ARM), ("x1", other), ("x2", other)):
        images.load(source, "app", built, tag)
    with FakeRegistry(deletes="manifests") as target:
        entry = repository(source, target, prune=AT_ONCE)
        mirrors.run(entry)
        mirrors.take_requests(target)
        body = json.dumps({"name": "copy", "tags": tags}).encode()
        short = Answer(200, (("Content-Type", "application/json"),), body)
        target.inject(Fault(path="/v2/copy/tags/list", nth=None, action=short))

        report = mirrors.run(deny(entry, "1.0-.*", "x1"))

        assert list_deletions(mirrors, target) == []
        assert not find_missing(target, "copy", INDEX, "1.0")
        assert not find_missing(target, "copy", other, "x2")
        errors = error_lines(report)
        assert [one.object for one in report.errors] == [
            f"orphaned tag {target.host}/copy:{tag}" for tag in ("1.0-amd64", "1.0-arm64", "x1")
        ]
        lacked = min({"1.0", "1.0-amd64", "1.0-arm64", "x1", "x2"} - {*(tags or ())})
        assert all(f"{target.host}/copy: the list of tags lacks {lacked}, which resolves to sha256:" in one for one in errors)
        assert {name.rpartition(":")[2] for name in mirrors.read_lock()} == {"1.0", "1.0-amd64", "1.0-arm64", "x1", "x2"}
