"""Checks and repairs of targets, from the store or from the source, with few requests."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from prefect_dist.mirror.render import summary_line, table
from prefect_dist.mirror.report import AuditRow
from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.ocispec.referrers import cosign_tags, fallback_tag
from prefect_dist.ocispec.units import format_count
from prefect_dist.storage import open_store
from prefect_dist.transfer.cancellation import CancelToken, describe_stop, use_token
from tests import images
from tests.fakes.faults import Answer, Fault, Flip, Response
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import Mirrors, count_reads, count_requests, count_uploads, find_missing, image, repository
from tests.flows.reports import document, error_lines
from tests.peers.prefect import PrefectServer

ONE, OTHER = images.image(1150, layers=2), images.image(1151, layers=1, platform="linux/arm64/v8")
DEEP = images.index([images.image(1152, layers=1, platform="linux/s390x")])
INDEX = images.index([ONE, OTHER, DEEP])
BILL, SIGNATURE = images.artifact(1153, subject=ONE), images.artifact(1154)
SIGNATURE_TAG = cosign_tags(Digest.parse(INDEX.root.digest))[0]
STRANGER, LATER = images.image(1155), images.image(1156)
LAYER = list(ONE.blobs)[1]
Damage = Callable[[FakeRegistry], object]


def load(source: FakeRegistry) -> None:
    images.load(source, "app", INDEX, "v1")
    images.load(source, "app", BILL)
    images.load(source, "app", SIGNATURE, SIGNATURE_TAG)


def entry(source: FakeRegistry, target: FakeRegistry, **settings: Any) -> dict[str, Any]:
    return image(source, target, "app:v1", referrers=True, digestTags=True, **settings)


def find_lost(target: FakeRegistry) -> list[str]:
    tagged = find_missing(target, "app", INDEX, "v1") + find_missing(target, "app", SIGNATURE, SIGNATURE_TAG)
    return tagged + find_missing(target, "app", BILL)


def lose(*digests: str) -> Damage:
    def damage(target: FakeRegistry) -> None:
        for digest in digests:
            target.lose("app", digest)

    return damage


# The blobs that a repair of each damage sends again.
DAMAGE: dict[str, tuple[Damage, set[str]]] = {
    "a layer is missing": (lose(LAYER), {LAYER}),
    "a config is missing": (lose(next(iter(ONE.blobs))), {next(iter(ONE.blobs))}),
    "a child is missing": (lose(OTHER.root.digest), set()),
    "an index in an index is missing": (lose(DEEP.root.digest), set()),
    "a child and its content are missing": (lose(*OTHER.descriptors), set(OTHER.blobs)),
    "a tag is missing": (lambda target: target.untag("app", "v1"), set()),
    "a tag has moved": (lambda target: images.load(target, "app", STRANGER, "v1"), set()),
    "the manifest of a tag is missing": (lose(INDEX.root.digest), set()),
    "a referrer is missing": (lose(BILL.root.digest), set()),
    "a blob of a referrer is missing": (lose(list(BILL.blobs)[1]), {list(BILL.blobs)[1]}),
    "the tag of a signature is missing": (lambda target: target.untag("app", SIGNATURE_TAG), set()),
    "the tag of a signature has moved": (lambda target: images.load(target, "app", STRANGER, SIGNATURE_TAG), set()),
    "all content is missing": (
        lose(*INDEX.descriptors, *BILL.descriptors, *SIGNATURE.descriptors),
        {*INDEX.blobs, *BILL.blobs, *SIGNATURE.blobs},
    ),
}


def test_a_check_of_complete_targets_is_ok_and_sends_no_content(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    load(source)
    mirrors.run(entry(source, target))
    mirrors.take_requests(source, target)

    for repair in (False, True):
        report = mirrors.check(repair=repair)
        assert (report.status, report.counts["ok"], report.rows, table(report).list_cells()) == ("complete", 1, (), [])
        assert summary_line(report).startswith("check of mirror complete: 1 ok in ")
        assert mirrors.take_requests(source) == []
        assert {one.method for one in mirrors.take_requests(target)} == {"GET", "HEAD"}


def test_each_damage_is_repaired_from_the_store_and_checked_again(mirrors: Mirrors, source: FakeRegistry) -> None:
    load(source)
    with ExitStack() as running:
        targets = {damage: running.enter_context(FakeRegistry()) for damage in DAMAGE}
        wanted = entry(source, source, targets=[f"{target.host}/app:v1" for target in targets.values()])
        del wanted["target"]
        mirrors.run(wanted)
        for damage, target in targets.items():
            DAMAGE[damage][0](target)
        mirrors.take_requests(source, *targets.values())

        report = mirrors.check(repair=True)

        assert report.status == "complete", error_lines(report)
        assert Counter(row["outcome"] for row in table(report).list_cells()) == {"repaired": len(DAMAGE)}
        assert {damage: find_lost(target) for damage, target in targets.items()} == {damage: [] for damage in DAMAGE}
        by_damage = {damage: mirrors.take_requests(target) for damage, target in targets.items()}
        assert {damage: set(count_uploads(one)) for damage, one in by_damage.items()} == {
            name: resent for name, (_, resent) in DAMAGE.items()
        }
        for requests in by_damage.values():
            *_, last = [number for number, one in enumerate(requests) if one.method == "PUT"]
            looked = {one.path for one in requests[last:] if one.method == "HEAD"}
            assert looked >= {f"/v2/app/blobs/{digest}" for digest in INDEX.blobs}
        assert mirrors.take_requests(source) == []


def test_a_repair_sets_the_backup_tag_of_the_entry_before_it_overwrites_a_tag(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    images.load(source, "app", ONE, "v1")
    mirrors.run(image(source, target, "app:v1", backup="old-{{.Ref.Tag}}"))
    theirs = images.image(7400)
    images.load(target, "app", theirs, "v1")

    report = mirrors.check(repair=True)

    assert report.status == "complete", error_lines(report)
    assert not find_missing(target, "app", ONE, "v1")
    assert not find_missing(target, "app", theirs, "old-v1")


def test_a_check_without_repair_reports_damage_and_changes_nothing(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    load(source)
    images.load(source, "app", LATER, "v2")
    mirrors.run(entry(source, target), image(source, target, "app:v2"))
    target.lose("app", OTHER.root.digest)
    target.lose("app", LAYER)
    name = f"{target.host}/app:v1"
    mirrors.take_requests(source, target)

    report = mirrors.check()

    faults = [f"layer {LAYER} is missing", f"manifest {OTHER.root.digest} is missing"]
    assert (report.status, report.counts["ok"]) == ("failed", 1)
    checked = document(report)
    assert [(one["target"], one["outcome"], sorted(one["faults"])) for one in checked["targets"]] == [(name, "damaged", faults)]
    (error,) = error_lines(report)
    assert error.startswith(f"{name}: ")
    assert all(fault in error for fault in faults)
    assert {one.method for one in mirrors.take_requests(target)} == {"GET", "HEAD"}
    assert mirrors.take_requests(source) == []


def test_shared_content_of_targets_is_requested_once_in_each_repository(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, other: FakeRegistry
) -> None:
    for tag, built in (("v1", INDEX), ("v2", images.index([ONE])), ("v3", ONE)):
        images.load(source, "app", built, tag)
    mirrors.run(repository(source, target, other))
    mirrors.take_requests(source, target, other)

    report = mirrors.check()

    assert (report.status, report.counts["ok"], report.tasks) == ("complete", 6, 2)
    for place in (target, other):
        requests = mirrors.take_requests(place)
        assert count_requests(requests) == {
            "HEAD manifests": 3,
            "GET manifests": len(INDEX.manifests) + 1,
            "HEAD blobs": len(INDEX.blobs),
        }
        assert max(count_reads(requests).values()) == 1
    assert mirrors.take_requests(source) == []


def test_each_target_is_repaired_with_only_the_content_that_it_lacks(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, other: FakeRegistry
) -> None:
    images.load(source, "app", INDEX, "v1")
    mirrors.run(repository(source, target, other))
    target.lose("copy", LAYER)
    other.lose("copy", OTHER.root.digest)
    mirrors.take_requests(source, target, other)

    report = mirrors.check(repair=True)

    assert report.status == "complete", error_lines(report)
    assert [row["outcome"] for row in table(report).list_cells()] == ["repaired", "repaired"]
    assert count_uploads(mirrors.take_requests(target)) == {LAYER: 1}
    assert count_uploads(mirrors.take_requests(other)) == {}
    assert find_missing(target, "copy", INDEX, "v1") + find_missing(other, "copy", INDEX, "v1") == []


def test_content_that_the_store_lacks_is_repaired_from_the_source_by_digest(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    load(source)
    mirrors.run(entry(source, target))
    images.load(source, "app", LATER, "v1")
    shutil.rmtree(mirrors.store)
    target.lose("app", LAYER)
    target.lose("app", BILL.root.digest)
    mirrors.take_requests(source, target)

    report = mirrors.check(repair=True)

    assert report.status == "complete", error_lines(report)
    assert find_lost(target) == []
    requests = mirrors.take_requests(source)
    assert not [one.path for one in requests if one.path.endswith("/v1") or "/referrers/" in one.path]
    assert count_reads(requests) == Counter({*INDEX.descriptors, *BILL.descriptors, *SIGNATURE.descriptors})
    assert count_uploads(mirrors.take_requests(target)) == {LAYER: 1}


@pytest.mark.parametrize("is_writable", [True, False])
def test_a_repair_lists_the_names_that_it_records_in_index_json(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, *, is_writable: bool
) -> None:
    load(source)
    mirrors.run(entry(source, target))
    shutil.rmtree(mirrors.store)
    target.lose("app", LAYER)
    index = mirrors.store / "index.json"
    if not is_writable:
        open_store(str(mirrors.store)).prepare()
        index.unlink()
        index.mkdir()

    report = mirrors.check(repair=True)

    assert [row.outcome for row in report.select(AuditRow)] == ["repaired"]
    assert [name.name for name in open_store(str(mirrors.store)).names] == [f"{source.host}/app:v1"]
    if is_writable:
        assert report.status == "complete"
        listed = {one["digest"] for one in json.loads(index.read_text())["manifests"]}
        assert listed == {INDEX.root.digest, BILL.root.digest, SIGNATURE.root.digest}
    else:
        (error,) = error_lines(report)
        assert (report.status, "index.json" in error) == ("failed", True)


def test_lost_content_is_a_failure_and_other_targets_are_repaired(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    images.load(source, "app", INDEX, "v1")
    images.load(source, "app", LATER, "v2")
    mirrors.run(repository(source, target))
    shutil.rmtree(mirrors.store)
    for digest in INDEX.descriptors:
        source.lose("app", digest)
    target.lose("copy", LAYER)
    target.lose("copy", LATER.root.digest)

    report = mirrors.check(repair=True)

    assert report.status == "failed"
    by_tag = {str(row.target).rpartition(":")[2]: row.outcome for row in report.select(AuditRow)}
    assert by_tag == {"v1": "failed", "v2": "repaired"}
    (error,) = error_lines(report)
    assert error.startswith(f"{target.host}/copy:v1: {source.host}/app@{INDEX.root.digest}: ")
    assert not find_missing(target, "copy", LATER, "v2")


def test_a_repair_from_the_store_needs_no_source(mirrors: Mirrors, target: FakeRegistry) -> None:
    with FakeRegistry() as source:
        load(source)
        mirrors.run(entry(source, target))
    for digest in (LAYER, DEEP.root.digest, BILL.root.digest):
        target.lose("app", digest)
    target.untag("app", SIGNATURE_TAG)

    report = mirrors.check(repair=True)

    assert report.status == "complete", error_lines(report)
    assert find_lost(target) == []


def test_an_unresolved_target_is_not_damaged_and_gets_no_content(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, other: FakeRegistry
) -> None:
    images.load(source, "app", INDEX, "v1")
    mirrors.run(repository(source, target, other))
    other.inject(Fault(method="HEAD", path=f".*/blobs/{LAYER}", nth=None, action=Answer(503)))
    target.lose("copy", LAYER)
    mirrors.take_requests(source, target, other)

    report = mirrors.check(repair=True)

    assert report.status == "failed"
    assert [row["outcome"] for row in table(report).list_cells()] == ["unresolved", "repaired"]
    assert [str(row.target) for row in report.select(AuditRow) if row.outcome == "unresolved"] == [f"{other.host}/copy:v1"]
    (error,) = error_lines(report)
    assert error.startswith(f"{other.host}/copy:v1: layer {LAYER} ")
    assert {one.method for one in mirrors.take_requests(other)} == {"GET", "HEAD"}
    assert "1 unresolved" in summary_line(report)


def test_a_repair_that_does_not_remove_the_damage_is_a_failure(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    images.load(source, "app", INDEX, "v1")
    mirrors.run(image(source, target, "app:v1"))
    target.inject(Fault(path=f".*/manifests/{ONE.root.digest}", nth=None, action=Flip(7)))

    report = mirrors.check(repair=True)

    assert report.status == "failed"
    (error,) = error_lines(report)
    fault = f"manifest {ONE.root.digest}: expected {ONE.root.digest}, the target has sha256:"
    assert error.startswith(f"{target.host}/app:v1: after the repair: {fault}")


@pytest.mark.parametrize("rewrite", [False, True])
def test_an_index_for_some_platforms_is_checked_and_repaired_without_the_others(
    mirrors: Mirrors, source: FakeRegistry, *, rewrite: bool
) -> None:
    flat = images.index([ONE, OTHER])
    with FakeRegistry(sparse=not rewrite) as target:
        images.load(source, "app", flat, "v1")
        settings = {"platforms": ["linux/arm64"], **({"rewriteIndex": True} if rewrite else {})}
        mirrors.run(image(source, target, "app:v1", **settings))
        assert mirrors.check().status == "complete"
        published = target.manifest("app", "v1")
        target.lose("app", list(OTHER.blobs)[1])
        target.untag("app", "v1")
        mirrors.take_requests(source, target)

        report = mirrors.check(repair=True)

        assert report.status == "complete", error_lines(report)
        assert not find_missing(target, "app", OTHER)
        assert target.manifest("app", "v1") == published
        assert target.manifest("app", ONE.root.digest) is None
        assert mirrors.take_requests(source) == []


def test_the_index_under_a_fallback_tag_is_repaired_without_a_referrers_api(mirrors: Mirrors, source: FakeRegistry) -> None:
    with FakeRegistry(referrers=False) as target:
        load(source)
        mirrors.run(entry(source, target))
        listing = fallback_tag(Digest.parse(ONE.root.digest))
        target.untag("app", listing)

        report = mirrors.check(repair=True)

        assert report.status == "complete", error_lines(report)
        assert (
            table(report).list_cells()[0]["note"]
            == f"referrer {BILL.root.digest} is not in the list of referrers of its subject"
        )
        listed = target.manifest("app", listing)
        assert listed is not None
        assert BILL.root.digest.encode() in listed[1]


def test_orphaned_tags_are_counted_and_not_requested(mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry) -> None:
    for tag, built in (("v1", ONE), ("v2", LATER)):
        images.load(source, "app", built, tag)
    mirrors.run(repository(source, target))
    source.untag("app", "v2")
    mirrors.run(repository(source, target))
    target.untag("copy", "v2")
    mirrors.take_requests(target)

    report = mirrors.check()

    assert (report.status, report.counts["ok"], report.counts["unchecked"]) == ("complete", 1, 1)
    assert summary_line(report).endswith("; 1 tag without an entry not checked")
    assert not [one for one in mirrors.take_requests(target) if one.path.endswith("/v2")]


def test_a_stopped_check_has_one_error_for_all_unreached_targets(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    for number in range(3):
        images.load(source, f"app{number}", ONE, "v1")
    mirrors.run({"type": "registry", "source": source.host, "target": f"{target.host}/copy"})
    cancel = CancelToken()

    class Stopping:
        def apply(self, response: Response) -> Response:
            cancel.request("asked to end")
            return response

    target.inject(Fault(method="HEAD", path=".*/manifests/v1", action=Stopping()))
    with use_token(cancel):
        report = mirrors.check(repair=True)

    assert (report.status, report.counts["damaged"]) == ("stopped", 0)
    unreached = report.counts["unresolved"]
    assert error_lines(report) == [f"{format_count(unreached, 'target')} not finished: {describe_stop('asked to end')}"]
    assert table(report).list_cells() == []


def test_a_check_without_a_lock_file_is_an_error(mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry) -> None:
    mirrors.run(image(source, target, "app:v1"), dry_run=True)
    with pytest.raises(InvalidInput, match=r"nothing to check: .*mirror\.lock\.json names no image; run mirror or seed first"):
        mirrors.check()


def test_a_check_of_a_configuration_without_the_key_lock_is_an_error(prefect: PrefectServer, tmp_path: Path) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from prefect_dist.flows.check import check

    wanted = {"sync": [{"type": "image", "source": "a.example/app:v1", "target": "b.example/app:v1"}]}
    with temporary_settings({PREFECT_API_URL: prefect.url}):
        state = check(json.dumps(wanted), str(tmp_path / "store"), return_state=True)
    assert "nothing to check: no lock file is configured, set `lock`" in str(state.message)
