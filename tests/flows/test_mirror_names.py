"""Invalid target references, and targets with two sources. Only their images fail; other images are mirrored."""

from typing import Any

import pytest

from prefect_dist.mirror.report import TargetRow
from tests import images
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import Mirrors, find_missing, image, repository, results
from tests.flows.reports import document, error_lines

V1, V2, MORE = images.image(1030, layers=1), images.image(1031, layers=1), images.image(1032, layers=1)
NO = {"command": ["sh", "-c", "echo not signed; exit 1"]}


@pytest.fixture
def source() -> FakeRegistry:  # type: ignore[misc]
    with FakeRegistry() as source:
        images.load(source, "app", V1, "v1")
        images.load(source, "app", V2, "v2")
        images.load(source, "more", MORE, "v2")
        yield source


def test_two_sources_for_one_target_fail_and_other_images_are_mirrored(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    one, two = repository(source, target), {**image(source, target, "more:v2"), "target": f"{target.host}/copy:v2"}

    report = mirrors.run(one, two)

    assert results(report) == {"copy:v1": "added", "copy:v2": "failed"}
    assert not find_missing(target, "copy", V1, "v1")
    assert target.manifest("copy", "v2") is None
    at = f"{mirrors.directory}/mirror.yaml:1"
    claims = (
        f"expected one source for this target, got 2: {source.host}/app:v2 ({at}: sync[0]) and {source.host}/more:v2 "
        f"({at}: sync[1])"
    )
    assert sorted(error_lines(report)) == sorted(
        f"{source.host}/{name} to {target.host}/copy:v2: {claims}" for name in ("app:v2", "more:v2")
    )
    assert target.find_requests("HEAD", ".*/manifests/v2") == []
    assert mirrors.read_lock().keys() == {f"{target.host}/copy:v1"}
    assert report.counts["failed"] == 2


def test_two_tags_that_are_renamed_to_one_target_tag_both_fail(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    images.load(source, "app", MORE, "other")
    entry = repository(source, target, rename=[{"match": "copy:v.*", "to": "copy:stable"}])

    report = mirrors.run(entry)

    assert results(report) == {"copy:other": "added", "copy:stable": "failed"}
    assert not find_missing(target, "copy", MORE, "other")
    assert target.manifest("copy", "stable") is None
    assert len(error_lines(report)) == 2


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"gate": NO}, "gate"),
        ({"platforms": ["linux/amd64"]}, "platforms"),
        ({"referrers": True, "digestTags": True}, "digestTags, referrers"),
        ({"backup": "old-{{.Ref.Tag}}"}, "backup"),
    ],
    ids=["gate", "platforms", "referrers", "backup"],
)
def test_two_entries_with_different_options_for_one_target_fail_and_skip_no_gate(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, options: dict[str, Any], named: str
) -> None:
    again = {**image(source, target, "app:v1", **options), "target": f"{target.host}/copy:v1"}

    report = mirrors.run(repository(source, target), again)

    assert results(report) == {"copy:v1": "failed", "copy:v2": "added"}
    assert target.manifest("copy", "v1") is None
    at = f"{mirrors.directory}/mirror.yaml:1"
    (error,) = error_lines(report)
    assert error == (
        f"{source.host}/app:v1 to {target.host}/copy:v1: expected equal options for {source.host}/app:v1, which several "
        f"entries publish to this target; different: {named} in {at}: sync[0] and {at}: sync[1]; make them equal, or keep "
        "only one of these entries"
    )


def test_two_entries_with_equal_options_for_one_target_are_allowed(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    again = {**image(source, target, "app:v1", prune={"after": "1d"}), "target": f"{target.host}/copy:v1"}
    report = mirrors.run(repository(source, target), again)
    assert (report.status, results(report)) == ("complete", {"copy:v1": "added", "copy:v2": "added"})


def test_a_backup_tag_that_is_too_long_fails_only_its_image(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    long = "v" * 125
    images.load(source, "app", V1, long)
    entry = repository(source, target, backup="old-{{.Ref.Tag}}")
    assert mirrors.run(entry).status == "complete"
    for tag in ("v1", long):
        images.load(source, "app", MORE, tag)

    report = mirrors.run(entry)

    assert results(report) == {"copy:v1": "changed", "copy:v2": "unchanged", f"copy:{long}": "failed"}
    assert not find_missing(target, "copy", MORE, "v1")
    assert not find_missing(target, "copy", V1, "old-v1")
    assert not find_missing(target, "copy", V1, long)
    (error,) = error_lines(report)
    assert error.startswith(f"{source.host}/app:{long} to {target.host}/copy:{long}: {mirrors.config}:1: sync[0].backup: ")
    assert "expected 1 to 128 letters, digits" in error
    assert mirrors.read_lock()[f"{target.host}/copy:{long}"]["digest"] == V1.root.digest


def test_an_invalid_tag_at_one_target_fails_only_its_image_there(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, other: FakeRegistry
) -> None:
    long = "v" * 125
    images.load(source, "app", MORE, long)
    entry = {**repository(source, target), "targets": [f"{target.host}/copy", f"{other.host}/copy:base-{{{{.Ref.Tag}}}}"]}

    report = mirrors.run(entry)

    for place, prefix in ((target, ""), (other, "base-")):
        assert not find_missing(place, "copy", V1, f"{prefix}v1")
        assert not find_missing(place, "copy", V2, f"{prefix}v2")
    assert not find_missing(target, "copy", MORE, long)
    (error,) = error_lines(report)
    assert error.startswith(f"{source.host}/app:{long}: {mirrors.config}:1: sync[0].targets[1]: ")
    assert (report.counts["failed"], report.counts["added"]) == (1, 5)
    assert [str(row.source) for row in report.select(TargetRow) if row.outcome == "failed"] == [f"{source.host}/app:{long}"]
    (failed,) = [one for one in document(report)["targets"] if one["outcome"] == "failed"]
    assert (failed["source"], failed["target"]) == (f"{source.host}/app:{long}", None)
    assert mirrors.run(entry).counts["unchanged"] == 5
