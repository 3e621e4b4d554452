"""Pruning: a mirror removes its own orphaned tags after a grace period, with a limit per run."""

import json
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from prefect_dist.mirror.render import summary_line, table
from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.referrers import cosign_tags
from tests import images
from tests.fakes.faults import Answer, Fault, Refuse, Response
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import Mirrors, find_missing, repository, results
from tests.flows.reports import document, error_lines, plan_of, removals

BUILT = {tag: images.image(950 + number, layers=1) for number, tag in enumerate(("v1", "v2", "v3", "v4"))}
AT_ONCE = {"after": "0s", "most": 20}


@pytest.fixture
def entry(source: FakeRegistry, target: FakeRegistry) -> dict[str, Any]:
    for tag, built in BUILT.items():
        images.load(source, "app", built, tag)
    return repository(source, target, prune=AT_ONCE)


def deny(entry: dict[str, Any], *tags: str, **settings: Any) -> dict[str, Any]:
    return {**entry, "tags": {"deny": list(tags)}, **settings}


def set_orphaned_since(mirrors: Mirrors, *targets: str, date: str = "2026-01-01T00:00:00Z") -> None:
    """Change the date since which targets are orphaned in the lock file."""
    document = json.loads(mirrors.lock.read_text())
    for target in targets:
        assert document["images"][target]["unwanted"]
        document["images"][target]["unwanted"] = date
    mirrors.lock.write_text(json.dumps(document))


def list_deletions(mirrors: Mirrors, registry: FakeRegistry) -> list[str]:
    return [one.path.rpartition("/")[2] for one in mirrors.take_requests(registry) if one.method == "DELETE"]


def test_an_orphaned_tag_is_removed_after_the_grace_period(
    mirrors: Mirrors, entry: dict[str, Any], target: FakeRegistry
) -> None:
    patient = {**entry, "prune": {"after": "1d"}}
    mirrors.run(patient)
    images.load(target, "copy", BUILT["v1"], "foreign")
    name = f"{target.host}/copy:v2"

    report = mirrors.run(deny(patient, "v2"))
    assert [(str(orphan.target), orphan.is_due) for orphan in plan_of(report).orphans] == [(name, False)]
    assert (report.status, list_deletions(mirrors, target)) == ("complete", [])
    assert "3 unchanged, 1 orphaned; " in summary_line(report)
    assert mirrors.read_lock()[name]["unwanted"]

    mirrors.run(patient)
    assert mirrors.read_lock()[name]["unwanted"] is None

    mirrors.run(deny(patient, "v2"))
    set_orphaned_since(mirrors, name)
    dry = mirrors.run(deny(patient, "v2"), dry_run=True)
    assert [orphan.is_due for orphan in plan_of(dry).orphans] == [True]
    assert list_deletions(mirrors, target) == []

    report = mirrors.run(deny(patient, "v2"))
    assert (report.status, [(str(one.target), one.outcome, one.note) for one in removals(report)]) == (
        "complete",
        [(name, "removed", None)],
    )
    assert "1 removed" in summary_line(report)
    assert list_deletions(mirrors, target) == ["v2"]
    assert name not in mirrors.read_lock()
    assert target.manifest("copy", "v2") is None
    assert not find_missing(target, "copy", BUILT["v1"], "foreign")
    assert not find_missing(target, "copy", BUILT["v1"], "v1")
    assert plan_of(mirrors.run(deny(patient, "v2"))).orphans == ()


def test_the_limit_per_run_removes_the_longest_orphaned_tags_first(
    mirrors: Mirrors, entry: dict[str, Any], target: FakeRegistry
) -> None:
    mirrors.run(entry)
    slow = deny(entry, "v[234]", prune={"after": "1d", "most": 2})
    mirrors.run(slow)
    for tag, date in (("v2", "2026-01-03"), ("v3", "2026-01-01"), ("v4", "2026-01-02")):
        set_orphaned_since(mirrors, f"{target.host}/copy:{tag}", date=f"{date}T00:00:00Z")
    mirrors.take_requests(target)
    mirrors.run(slow)
    assert list_deletions(mirrors, target) == ["v3", "v4"]
    mirrors.run(slow)
    assert list_deletions(mirrors, target) == ["v2"]


def test_tags_that_others_made_or_changed_are_not_removed(
    mirrors: Mirrors, entry: dict[str, Any], source: FakeRegistry, target: FakeRegistry
) -> None:
    images.load(source, "app", images.image(962), "kept")
    images.load(target, "copy", BUILT["v1"], "v1")  # existed before, with the same image
    images.load(target, "copy", images.image(960), "v2")  # existed before, and is overwritten
    expected = {"copy:v1": "unchanged", "copy:v2": "changed", "copy:v3": "added", "copy:v4": "added", "copy:kept": "added"}
    assert results(mirrors.run(entry)) == expected
    theirs = images.image(961)
    images.load(target, "copy", theirs, "v3")
    mirrors.take_requests(target)

    report = mirrors.run(deny(entry, "v.*"))

    assert report.status == "complete", error_lines(report)
    assert list_deletions(mirrors, target) == ["v4"]
    assert not find_missing(target, "copy", theirs, "v3")
    was = f"not to {BUILT['v3'].root.digest} as this mirror left it; it is someone else's tag"
    assert list(report.notes) == [f"{target.host}/copy:v3: not removed: it resolves to {theirs.root.digest} now, {was}"]
    assert "1 removed, 1 not removed" in summary_line(report)
    left = {name.rpartition(":")[2] for name in mirrors.read_lock()}
    assert left == {"v1", "v2", "kept"}
    assert plan_of(mirrors.run(deny(entry, "v.*"))).orphans == ()


def test_an_entry_that_selects_no_image_prunes_nothing(mirrors: Mirrors, entry: dict[str, Any], target: FakeRegistry) -> None:
    """The configuration may have a mistake, or the source may be empty by mistake."""
    mirrors.run(entry)
    mirrors.take_requests(target)

    report = mirrors.run({**entry, "tags": {"allow": ["w.*"]}})

    assert (report.status, plan_of(report).orphans, list_deletions(mirrors, target)) == ("complete", (), [])
    note = f"{mirrors.config}:1: sync[0]: no image of {entry['source']} is selected, so no tag of this entry is pruned"
    assert list(report.notes) == [note]
    assert not any(record["unwanted"] for record in mirrors.read_lock().values())


def test_a_repository_that_is_not_listed_or_has_no_tags_at_the_source_is_not_pruned(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    for number, name in enumerate(("a", "b")):
        images.load(source, name, images.image(990 + number, layers=1), "v1")
    entry = {"source": source.host, "target": target.host, "type": "registry", "prune": AT_ONCE}
    mirrors.run(entry)
    mirrors.take_requests(target)
    lost = f"no tag of {source.host}/b is selected any more, so their tags at the target are not pruned"
    note = f"{mirrors.config}:1: sync[0]: {lost}; to prune them, exclude the repositories with repos.deny"
    for path, body in (("/v2/b/tags/list", b'{"name":"b","tags":[]}'), ("/v2/_catalog", b'{"repositories":["a"]}')):
        source.inject(Fault(path=path, action=Answer(200, (("Content-Type", "application/json"),), body)))

        report = mirrors.run(entry)

        assert (report.status, plan_of(report).orphans, list_deletions(mirrors, target)) == ("complete", (), [])
        assert list(report.notes) == [note]
        assert not any(record["unwanted"] for record in mirrors.read_lock().values())
    report = mirrors.run({**entry, "repos": {"deny": ["b"]}})

    assert (list(report.notes), list_deletions(mirrors, target)) == ([], ["v1"])
    assert {name.removeprefix(f"{target.host}/") for name in mirrors.read_lock()} == {"a:v1"}


def test_a_signature_tag_is_kept_as_a_referrer_of_a_mirrored_image(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    built, signature = images.image(980, layers=1), images.artifact(981)
    tag = cosign_tags(Digest.parse(built.root.digest))[0]
    images.load(source, "app", built, "v1")
    images.load(source, "app", signature, tag)
    entry = repository(source, target, prune=AT_ONCE)
    mirrors.run(entry)

    for _ in range(2):
        report = mirrors.run({**entry, "referrers": True, "tags": {"allow": ["v.*"]}})

        assert (report.status, plan_of(report).orphans, list_deletions(mirrors, target)) == ("complete", (), [])
        assert not find_missing(target, "copy", signature, tag)
    assert {name.rpartition(":")[2]: record["unwanted"] for name, record in mirrors.read_lock().items()} == {
        "v1": None,
        tag: None,
    }


@pytest.mark.parametrize("deletes", ["all", "manifests", "nothing"])
def test_pruning_respects_which_deletions_a_registry_supports(
    mirrors: Mirrors, source: FakeRegistry, deletes: Literal["all", "manifests", "nothing"]
) -> None:
    exclusive, shared, orphaned = (images.image(seed, layers=1) for seed in (970, 971, 972))
    loaded = (("exclusive", exclusive), ("shared", shared), ("kept", shared), ("orphaned", orphaned), ("orphaned2", orphaned))
    for tag, built in loaded:
        images.load(source, "app", built, tag)
    with FakeRegistry(deletes=deletes) as target:
        entry = repository(source, target, prune=AT_ONCE)
        mirrors.run(entry)

        report = mirrors.run(deny(entry, "exclusive", "shared", "orphaned.*"))

        gone = {tag for tag, _ in loaded if target.manifest("copy", tag) is None}
        left = {name.rpartition(":")[2] for name in mirrors.read_lock()}
        assert not find_missing(target, "copy", shared, "kept")
        if deletes == "all":
            assert (report.status, gone, left) == ("complete", {"exclusive", "shared", "orphaned", "orphaned2"}, {"kept"})
            assert list_deletions(mirrors, target) == ["exclusive", "orphaned", "orphaned2", "shared"]
            assert "4 removed" in summary_line(report)
        elif deletes == "manifests":
            assert (report.status, gone, left) == ("complete", {"exclusive", "orphaned", "orphaned2"}, {"kept", "shared"})
            assert [one for one in list_deletions(mirrors, target) if ":" in one] == [
                exclusive.root.digest,
                orphaned.root.digest,
            ]
            (note,) = list(report.notes)
            needed = f"{target.host}/copy:kept needs {shared.root.digest}"
            assert note.startswith(f"{target.host}/copy:shared: not removed: {needed}, and this registry deletes only ")
            assert "3 removed, 1 not removed" in summary_line(report)
        else:
            assert (report.status, gone, left) == ("failed", set(), {tag for tag, _ in loaded})
            assert len(error_lines(report)) == 3  # the tag `shared` fails before its deletion
            assert all("the registry does not delete manifests" in error for error in error_lines(report))
            assert "4 not removed" in summary_line(report)


def test_nothing_is_removed_if_the_source_cannot_be_listed(
    mirrors: Mirrors, entry: dict[str, Any], target: FakeRegistry, source: FakeRegistry
) -> None:
    mirrors.run(entry)
    mirrors.take_requests(target)
    source.__exit__()
    report = mirrors.run(entry)
    assert (report.status, plan_of(report).orphans) == ("failed", ())
    assert list_deletions(mirrors, target) == []
    assert mirrors.read_lock().keys() == {f"{target.host}/copy:{tag}" for tag in BUILT}


def test_records_that_another_run_writes_during_the_run_are_kept(
    mirrors: Mirrors, entry: dict[str, Any], source: FakeRegistry, target: FakeRegistry, tmp_path: Path
) -> None:
    unpruned = {**entry, "prune": None}
    mirrors.run(unpruned)
    images.load(source, "app", images.image(990, layers=1), "late")
    v2, v3, late = (f"{target.host}/copy:{tag}" for tag in ("v2", "v3", "late"))
    theirs = "2026-02-03T04:05:06Z"
    script = tmp_path / "other.py"
    script.write_text(f"""\
import json, pathlib, sys
lock = pathlib.Path({str(mirrors.lock)!r})
written = json.loads(lock.read_text())
for name in {[v2, late]!r}:
    written["images"][name]["mirrored"] = {theirs!r}
lock.write_text(json.dumps(written))
sys.exit("mirrored by another run")
""")
    gate = {"command": [sys.executable, str(script)]}

    report = mirrors.run(deny(unpruned, "v2", "v3", gate=gate))

    assert results(report)["copy:late"] == "vetoed"
    assert {str(orphan.target) for orphan in plan_of(report).orphans} == {v2, v3}
    locked = mirrors.read_lock()
    assert [(locked[name]["mirrored"][:19], locked[name]["unwanted"]) for name in (v2, late)] == [(theirs[:19], None)] * 2
    assert locked[v3]["unwanted"]


@pytest.mark.parametrize("outcome", ["failed at the source", "failed at the target", "vetoed"])
def test_a_tag_that_is_selected_again_gets_a_new_grace_period_even_if_it_is_not_mirrored(
    mirrors: Mirrors, entry: dict[str, Any], source: FakeRegistry, target: FakeRegistry, outcome: str
) -> None:
    patient, name = {**entry, "prune": {"after": "1d"}}, f"{target.host}/copy:v2"
    mirrors.run(patient)
    mirrors.run(deny(patient, "v2"))
    set_orphaned_since(mirrors, name)
    if outcome == "failed at the source":
        for method in ("HEAD", "GET"):
            source.inject(Fault(method=method, path=".*/manifests/v2", action=Answer(403)))
    else:
        images.load(source, "app", images.image(963, layers=1), "v2")
    if outcome == "failed at the target":
        target.inject(Fault(method="PUT", path=".*/manifests/v2", action=Answer(403)))
    gate = {"command": ["false"]} if outcome == "vetoed" else None

    report = mirrors.run({**patient, "gate": gate})

    assert results(report)["copy:v2"] == outcome.partition(" ")[0]
    assert mirrors.read_lock()[name]["unwanted"] is None
    assert mirrors.read_lock()[name]["digest"] == BUILT["v2"].root.digest
    mirrors.take_requests(target)
    report = mirrors.run(deny(patient, "v2"))
    assert [orphan.is_due for orphan in plan_of(report).orphans] == [False]
    assert list_deletions(mirrors, target) == []


def test_a_tag_that_is_selected_again_is_recorded_before_the_first_publication(
    mirrors: Mirrors, entry: dict[str, Any], source: FakeRegistry, target: FakeRegistry
) -> None:
    patient, name = {**entry, "prune": {"after": "1d"}}, f"{target.host}/copy:v2"
    mirrors.run(patient)
    mirrors.run(deny(patient, "v2"))
    images.load(source, "app", images.image(964, layers=1), "late")
    seen = []

    class LockReading:
        def apply(self, response: Response) -> Response:
            seen.append(mirrors.read_lock()[name]["unwanted"])
            return response

    target.inject(Fault(method="PUT", path=".*/manifests/late", action=LockReading()))
    mirrors.run(patient)
    assert seen == [None]


def test_the_limit_applies_to_all_entries_of_a_run_together(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    entries = []
    for number in range(3):
        for tag in ("kept", "unwanted"):
            images.load(source, f"app{number}", images.image(7300 + number, layers=1), tag)
        where = {"source": f"{source.host}/app{number}", "target": f"{target.host}/copy{number}"}
        entries.append({"type": "repository", **where, "prune": {"after": "0s", "most": 1}})
    mirrors.run(*entries)
    mirrors.take_requests(target)
    denied = [{**entry, "tags": {"deny": ["unwanted"]}} for entry in entries]

    dry = mirrors.run(*denied, dry_run=True)

    first, *others = [f"{target.host}/copy{number}:unwanted" for number in range(3)]
    assert [(one["target"], one["outcome"]) for one in document(dry)["orphaned"]] == [
        (first, "planned"),
        *((other, "held") for other in others),
    ]
    assert "3 orphaned, 1 to remove, 2 held back by prune.most; " in summary_line(dry)
    assert [str(row["note"]).partition("; ")[2] for row in table(dry).list_cells()] == [
        "stays if this registry deletes only whole manifests and another tag needs this one: decided at removal",
        *["held back in this run by prune.most (1)"] * 2,
    ]
    for number in range(3):
        report = mirrors.run(*denied)
        assert [one.path for one in mirrors.take_requests(target) if one.method == "DELETE"] == [
            f"/v2/copy{number}/manifests/unwanted"
        ]
        left = 2 - number
        assert f"{left} orphaned ({left} held back by prune.most)" in summary_line(report) or not left


def test_shared_tags_do_not_count_against_the_limit(mirrors: Mirrors, source: FakeRegistry) -> None:
    one, two = images.image(7310, layers=1), images.image(7311, layers=1)
    loaded = (("a1", one), ("a2", two), ("b", images.image(7312, layers=1)), ("c", images.image(7313, layers=1)))
    for tag, built in (*loaded, ("index", images.index([one, two]))):
        images.load(source, "app", built, tag)
    with FakeRegistry(deletes="manifests") as target:
        entry = repository(source, target, prune={"after": "0s", "most": 1})
        mirrors.run(entry, retries=3)
        for kept in ({"a1", "a2", "c"}, {"a1", "a2"}):
            report = mirrors.run(deny(entry, "a.", "b", "c"))
            assert report.status == "complete", error_lines(report)
            assert {name.rpartition(":")[2] for name in mirrors.read_lock()} == kept | {"index"}
        assert not find_missing(target, "copy", images.index([one, two]), "index")


def test_the_limit_includes_all_tags_of_a_deleted_manifest(mirrors: Mirrors, source: FakeRegistry) -> None:
    for tag, seed in (("a", 7320), ("b", 7320), ("kept", 7321)):
        images.load(source, "app", images.image(seed, layers=1), tag)
    with FakeRegistry(deletes="manifests") as target:
        entry = repository(source, target, prune={"after": "0s", "most": 1})
        mirrors.run(entry)
        mirrors.take_requests(target)
        report = mirrors.run(deny(entry, "a", "b"))
        assert [one.outcome for one in removals(report)] == ["shared", "shared"]
        assert not [name for name in list_deletions(mirrors, target) if ":" in name]
        report = mirrors.run(deny(entry, "a", "b", prune={"after": "0s", "most": 2}))
        assert [one.outcome for one in removals(report)] == ["removed", "removed"]


@pytest.mark.parametrize("deletes", ["all", "manifests"])
def test_a_tag_that_a_killed_run_was_about_to_change_is_still_removed(
    mirrors: Mirrors, source: FakeRegistry, tmp_path: Path, deletes: Literal["all", "manifests"]
) -> None:
    for tag, seed in (("v1", 7330), ("kept", 7331)):
        images.load(source, "app", images.image(seed, layers=1), tag)
    with FakeRegistry(deletes=deletes) as target:
        entry = repository(source, target, prune=AT_ONCE)
        mirrors.run(entry)
        before = target.manifest("copy", "v1")
        images.load(source, "app", images.image(7332, layers=1), "v1")
        at_the_kill = tmp_path / "lock.json"
        gate = {"command": ["sh", "-c", f"cp {mirrors.lock} {at_the_kill}; exit 1"]}
        mirrors.run({**entry, "gate": gate})
        assert target.manifest("copy", "v1") == before
        at_the_kill.replace(mirrors.lock)
        mirrors.take_requests(target)

        report = mirrors.run(deny(entry, "v1"))

        assert [one.outcome for one in removals(report)] == ["removed"]
        assert len(list_deletions(mirrors, target)) >= 1
        assert target.manifest("copy", "v1") is None
        assert target.manifest("copy", "kept") is not None
        assert {name.rpartition(":")[2] for name in mirrors.read_lock()} == {"kept"}


@pytest.mark.parametrize(("by_tag", "by_digest"), [(202, 202), (404, 404), (405, 202)])
def test_a_tag_that_still_exists_after_its_deletion_is_a_failure_and_the_next_run_retries(
    mirrors: Mirrors, entry: dict[str, Any], target: FakeRegistry, by_tag: int, by_digest: int
) -> None:
    mirrors.run(entry)
    name, digest = f"{target.host}/copy:v1", BUILT["v1"].root.digest
    target.inject(Fault(method="DELETE", path=".*/manifests/v.*", action=Refuse(by_tag)))
    target.inject(Fault(method="DELETE", path=".*/manifests/sha256:.*", action=Refuse(by_digest)))
    mirrors.take_requests(target)

    report = mirrors.run(deny(entry, "v1"))

    failure = f"orphaned tag {name}: still resolves to {digest} after the target accepted the deletion"
    assert (report.status, error_lines(report)) == ("failed", [failure])
    assert [one.outcome for one in removals(report)] == ["failed"]
    assert list_deletions(mirrors, target) == (["v1"] if by_tag == 202 else ["v1", digest])
    assert mirrors.read_lock()[name]["digest"] == digest

    again = mirrors.run(deny(entry, "v1"))

    assert [one.outcome for one in removals(again)] == ["removed"]
    assert target.manifest("copy", "v1") is None
    assert name not in mirrors.read_lock()


def test_a_tag_that_a_registry_deletes_with_a_delay_is_removed(
    mirrors: Mirrors, entry: dict[str, Any], target: FakeRegistry
) -> None:
    mirrors.run(entry)
    root = BUILT["v1"].root
    headers = (("Content-Type", root.media_type), ("Docker-Content-Digest", root.digest), ("Content-Length", str(root.size)))
    # The first HEAD is before the DELETE, and the second one directly after it.
    target.inject(Fault(method="HEAD", path=".*/manifests/v1", nth=2, action=Answer(200, headers)))
    mirrors.take_requests(target)

    report = mirrors.run(deny(entry, "v1"), retries=1)

    assert [(one.outcome, one.note) for one in removals(report)] == [("removed", None)]
    assert report.status == "complete"
    assert list_deletions(mirrors, target) == ["v1"]
    assert f"{target.host}/copy:v1" not in mirrors.read_lock()
