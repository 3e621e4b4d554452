"""Mirror runs: the plan, the transferred content, the requests of a run with nothing to do, and the tasks in Prefect."""

import json
from collections import Counter
from typing import Any

import pytest

from prefect_dist.flows import mirror_parts as parts
from prefect_dist.mirror.render import summary_line
from prefect_dist.storage import open_store
from tests import images
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import (
    Mirrors,
    bytes_of,
    count_reads,
    count_requests,
    count_uploads,
    find_missing,
    image,
    repository,
    results,
)
from tests.flows.reports import document, error_lines, plan_of
from tests.images import BuiltImage
from tests.peers.prefect import PrefectServer

ONE, OTHER = images.image(900, layers=2), images.image(901, layers=2, platform="linux/arm64/v8")
INDEX = images.index([ONE, OTHER])
# The same layers with another config.
TWIN = images.image(900, layers=2, platform="linux/s390x")


def test_an_image_is_published_as_soon_as_it_is_complete(mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry) -> None:
    several = {f"v{number}": images.image(920 + number, layers=2) for number in range(3)}
    for tag, built in several.items():
        images.load(source, "app", built, tag)

    mirrors.run(*(image(source, target, f"app:{tag}") for tag in several), concurrency=1)

    sent = [one.path.rpartition("/")[2] for one in mirrors.take_requests(target) if one.method == "PUT"]
    tags = [sent.index(tag) for tag in several]
    assert tags[0] < tags[1] < tags[2] == len(sent) - 1
    uploads = [tags[0], tags[1] - tags[0] - 1, tags[2] - tags[1] - 1]
    assert uploads == [3, 3, 3]


def test_the_plan_of_a_dry_run_matches_the_run_and_changes_nothing(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    changed, old, same = (images.image(seed, layers=1) for seed in (902, 903, 904))
    for built, tag in ((INDEX, "new"), (changed, "changed"), (same, "unchanged")):
        images.load(source, "app", built, tag)
    for built, tag in ((old, "changed"), (same, "unchanged")):
        images.load(target, "app", built, tag)
    sync = [image(source, target, f"app:{tag}") for tag in ("new", "changed", "unchanged", "none")]

    dry = mirrors.run(*sync, dry_run=True)

    actions = {str(action.target).rpartition(":")[2]: action for action in plan_of(dry).actions}
    assert {tag: action.change for tag, action in actions.items()} == {
        "new": "add",
        "changed": "change",
        "unchanged": "unchanged",
        "none": "failed",
    }
    action = actions["changed"]
    assert (action.old and str(action.old.digest), action.new and str(action.new.digest)) == (
        old.root.digest,
        changed.root.digest,
    )
    (error,) = error_lines(dry)
    assert error.startswith(f"{source.host}/app:none to {target.host}/app:none: ")
    assert summary_line(dry).startswith("plan of mirror: 1 to add, 1 to change, 1 unchanged, ")  # the file is mirror.yaml
    planning = mirrors.take_requests(source, target)
    assert {one.method for one in planning} == {"HEAD", "GET"}
    assert not mirrors.lock.exists()
    assert not list(open_store(str(mirrors.store)).walk())
    assert target.manifest("app", "new") is None
    plan = document(dry)["plan"]
    assert plan["fetch"] == plan["send"] == {"descriptors": 9 + 3, "bytes": bytes_of(INDEX, changed)}

    done = mirrors.run(*sync)

    assert results(done) == {"app:new": "added", "app:changed": "changed", "app:unchanged": "unchanged", "app:none": "failed"}
    assert (done.counts["fetched_bytes"], done.counts["sent_bytes"]) == (bytes_of(INDEX, changed), bytes_of(INDEX, changed))
    heads = Counter(one.path for one in planning if one.method == "HEAD")
    carried = [one for one in mirrors.take_requests(source, target) if not (one.method == "HEAD" and heads.pop(one.path, 0))]
    assert plan["requests"] / 1.5 <= len(carried) <= plan["requests"] * 1.5


def test_each_blob_is_fetched_once_and_sent_once_to_each_registry(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, other: FakeRegistry
) -> None:
    for name, built in (("a", INDEX), ("b", TWIN), ("c", ONE)):
        images.load(source, name, built, "v1")
    registry = {"type": "registry", "source": source.host, "targets": [f"{target.host}/x", f"{other.host}/y"]}

    report = mirrors.run(registry)

    assert report.status == "complete", error_lines(report)
    everything = {*INDEX.descriptors, *TWIN.descriptors}
    roots = {built.root.digest for built in (INDEX, TWIN, ONE)}
    reads = count_reads(one for one in mirrors.take_requests(source) if "_catalog" not in one.path)
    assert reads == Counter(everything - roots) + Counter({"v1": 3})
    blobs = Counter({*INDEX.blobs, *TWIN.blobs})
    for place, prefix in ((target, "x"), (other, "y")):
        requests = mirrors.take_requests(place)
        assert count_uploads(requests) == blobs
        mounted = [one for one in requests if one.method == "POST" and one.status == 201]
        assert len(mounted) == len(TWIN.blobs) - 1 + len(ONE.blobs)
        for name, built in (("a", INDEX), ("b", TWIN), ("c", ONE)):
            assert not find_missing(place, f"{prefix}/{name}", built, "v1")
            writes = [one for one in requests if one.method in ("PUT", "POST") and f"/{prefix}/{name}/" in one.path]
            assert writes[-1].path == f"/v2/{prefix}/{name}/manifests/v1"
    counts = report.counts
    assert (counts["mounted"], counts["existed"]) == (2 * (len(TWIN.blobs) - 1 + len(ONE.blobs)), 0)
    manifests = [INDEX.manifests[0], INDEX.manifests[1], INDEX.manifests[-1], *TWIN.manifests, *ONE.manifests]
    sent = sum(map(len, {**INDEX.blobs, **TWIN.blobs}.values())) + sum(len(one.raw) for one in manifests)
    assert (report.counts["fetched_bytes"], counts["sent_bytes"]) == (bytes_of(INDEX, TWIN), 2 * sent)


def test_each_descriptor_and_each_publication_is_a_task(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, other: FakeRegistry, prefect: PrefectServer
) -> None:
    for tag, built in (("v1", ONE), ("v2", TWIN)):
        images.load(source, "app", built, tag)

    report = mirrors.run(repository(source, target, other))

    runs = prefect.task_runs(mirrors.flow_run, at_least=report.tasks)
    surveyed, listed = "survey 2 images", f"tags of {source.host}/app"
    layers = [f"mirror layer {layer[:19]}" for layer in list(ONE.blobs)[1:]]
    publish = {tag: [f"publish {place.host}/copy:{tag}" for place in (target, other)] for tag in ("v1", "v2")}
    edges, manifests = set(), {}
    for tag, built in (("v1", ONE), ("v2", TWIN)):
        manifests[tag] = f"mirror manifest {built.root.digest[:19]}"
        config = f"mirror config {next(iter(built.blobs))[:19]}"
        edges |= {(surveyed, manifests[tag]), (manifests[tag], config)}
        edges |= {(leaf, published) for leaf in (config, *layers) for published in publish[tag]}
    assert sorted(run["name"] for run in runs) == sorted({listed, *(name for edge in edges for name in edge)})
    found = prefect.edges(mirrors.flow_run)
    assert edges <= found
    # A shared layer is below the manifest that requested the layer first.
    assert {(manifests[tag], layer) for tag in manifests for layer in layers} >= found - edges
    assert {child for _, child in found - edges} == set(layers)
    assert report.tasks == len(runs)


def test_a_run_without_changes_sends_one_request_per_tag_to_source_and_targets(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, other: FakeRegistry
) -> None:
    for number in range(5):
        images.load(source, "app", images.index([images.image(910 + number, layers=1)]), f"v{number}")
    entry = repository(source, target, other)
    assert mirrors.run(entry).status == "complete"
    before = mirrors.read_lock()
    mirrors.take_requests(source, target, other)

    report = mirrors.run(entry)

    assert (report.status, report.counts["unchanged"], report.tasks) == ("complete", 10, 2)
    assert count_requests(mirrors.take_requests(source)) == {"GET tags": 1, "HEAD manifests": 5}
    for place in (target, other):
        assert count_requests(mirrors.take_requests(place)) == {"HEAD manifests": 5}
    assert (report.counts["fetched_bytes"], report.counts["sent_bytes"]) == (0, 0)
    assert mirrors.read_lock() == before


@pytest.mark.parametrize("dry_run", [True, False])
def test_an_entry_that_selects_no_image_is_a_note_and_no_failure(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, *, dry_run: bool
) -> None:
    images.load(source, "app", ONE, "v1")
    entries = [
        repository(source, target, tags={"allow": ["1.*"]}),
        {"type": "registry", "source": source.host, "target": target.host, "repos": {"allow": ["ap"]}},
        repository(source, target),
    ]
    report = mirrors.run(*entries, dry_run=dry_run)
    at = f"{mirrors.config}:1: sync"
    assert (report.status, report.counts["planned" if dry_run else "added"]) == ("complete", 1)
    assert list(report.notes) == [
        f"{at}[0]: no image of {source.host}/app is selected",
        f"{at}[1]: no image of {source.host} is selected",
    ]


def test_repositories_and_tags_are_selected_and_renamed(mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry) -> None:
    for name in ("team/app", "team/base", "other/app"):
        for built, tag in ((ONE, "1.0"), (OTHER, "2.0"), (TWIN, "latest")):
            images.load(source, name, built, tag)
    registry = {
        "type": "registry",
        "source": source.host,
        "target": f"{target.host}/mirror",
        "repos": {"allow": ["team/.*"], "deny": [".*/base"]},
        "tags": {"allow": [r"\d.*"], "deny": ["1.*"]},
        "rename": [{"match": "mirror/(.*)/app:(.*)", "to": "$1-app:v$2"}],
    }
    report = mirrors.run(registry)
    assert results(report) == {"team-app:v2.0": "added"}
    assert not find_missing(target, "team-app", OTHER, "v2.0")
    assert {one.path.split("/")[2] for one in mirrors.take_requests(target)} == {"team-app"}
    assert mirrors.read_lock()[f"{target.host}/team-app:v2.0"]["source"] == f"{source.host}/team/app:2.0"


@pytest.mark.parametrize("rewritten", [False, True], ids=["sparse index", "rewritten index"])
def test_only_the_selected_platforms_of_an_index_are_mirrored(
    mirrors: Mirrors, source: FakeRegistry, *, rewritten: bool
) -> None:
    images.load(source, "app", INDEX, "v1")
    with FakeRegistry(sparse=not rewritten) as target:
        entry = image(source, target, "app:v1", platforms=["linux/arm64"], rewriteIndex=rewritten)
        dry = document(mirrors.run(entry, dry_run=True))["plan"]
        mirrors.take_requests(source, target)
        report = mirrors.run(entry)
        assert report.status == "complete", error_lines(report)
        assert (dry["fetch"]["bytes"], dry["send"]["bytes"]) == (report.counts["fetched_bytes"], report.counts["sent_bytes"])
        assert count_reads(mirrors.take_requests(source)) == Counter({*OTHER.descriptors, "v1"})
        assert not find_missing(target, "app", OTHER)
        assert target.manifest("app", ONE.root.digest) is None
        is_unchanged = target.manifest("app", "v1") == (images.OCI_INDEX, INDEX.manifests[-1].raw)
        assert is_unchanged is not rewritten
        mirrors.take_requests(target)

        again = mirrors.run(entry)
        assert results(again) == {"app:v1": "unchanged"}
        assert count_requests(mirrors.take_requests(source, target)) == {"HEAD manifests": 2}
        locked = mirrors.read_lock()[f"{target.host}/app:v1"]
        assert (locked["platforms"], locked["digest"] == INDEX.root.digest) == (["linux/arm64"], not rewritten)


@pytest.mark.parametrize("immutable", [[], [".*"]], ids=["mutable tag", "immutable tag"])
def test_platforms_that_are_selected_later_are_mirrored_then(
    mirrors: Mirrors, source: FakeRegistry, immutable: list[str]
) -> None:
    images.load(source, "app", INDEX, "v1")
    with FakeRegistry(sparse=True) as target:
        entry = image(source, target, "app:v1", immutableTags=immutable)
        mirrors.run({**entry, "platforms": ["linux/arm64"]})
        assert target.manifest("app", ONE.root.digest) is None

        dry = mirrors.run(entry, dry_run=True)
        assert [(action.change, action.note) for action in plan_of(dry).actions] == [
            ("change", "for more platforms than before")
        ]
        assert document(dry)["plan"]["fetch"]["bytes"] == bytes_of(ONE)
        mirrors.take_requests(source)
        assert results(mirrors.run(entry)) == {"app:v1": "changed"}
        assert count_reads(mirrors.take_requests(source)) == Counter(ONE.descriptors)
        assert not find_missing(target, "app", INDEX, "v1")

        for narrower in (entry, {**entry, "platforms": ["linux/arm64"]}):
            assert set(results(mirrors.run(narrower)).values()) <= {"unchanged"}


def test_nested_indexes_docker_images_and_artifacts_are_mirrored_unchanged(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    forms: dict[str, BuiltImage] = {
        "nested": images.index([ONE, images.artifact(920)], nested=True),
        "docker": images.index([images.image(921, docker=True)], docker=True),
        "artifact": images.artifact(922),
        "bare": images.image(923, layers=0),
    }
    for tag, built in forms.items():
        images.load(source, "app", built, tag)
    report = mirrors.run(repository(source, target))
    assert report.status == "complete", error_lines(report)
    for tag, built in forms.items():
        assert not find_missing(target, "copy", built, tag)


def test_a_source_by_digest_is_published_under_the_target_tag(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    images.load(source, "app", INDEX, "v1")
    entry = {"type": "image", "source": f"{source.host}/app@{INDEX.root.digest}", "target": f"{target.host}/copy:pinned"}
    assert results(mirrors.run(entry)) == {"copy:pinned": "added"}
    assert not find_missing(target, "copy", INDEX, "pinned")
    images.load(source, "app", ONE, "v1")
    assert results(mirrors.run(entry)) == {"copy:pinned": "unchanged"}


def test_an_overwritten_image_gets_the_backup_tag_of_the_configuration(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    images.load(source, "app", ONE, "v1")
    images.load(source, "app", TWIN, "v2")
    images.load(target, "copy", OTHER, "v1")
    entry = repository(source, target, backup="old-{{.Ref.Tag}}")
    report = mirrors.run(entry)
    assert results(report) == {"copy:v1": "changed", "copy:v2": "added"}
    assert not find_missing(target, "copy", OTHER, "old-v1")
    assert not find_missing(target, "copy", ONE, "v1")
    assert target.manifest("copy", "old-v2") is None
    mirrors.take_requests(target)
    assert results(mirrors.run(entry)) == {"copy:v1": "unchanged", "copy:v2": "unchanged"}
    assert count_requests(mirrors.take_requests(target)) == {"HEAD manifests": 2}


def test_only_images_in_the_selected_period_are_mirrored(mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry) -> None:
    dates = {"old": "2024-12-31T23:59:59Z", "new": "2025-01-01T00:00:00Z", "unknown": None}
    for tag, created in dates.items():
        images.load(source, "app", image_created_at(created), tag)
    entry = repository(source, target, tags={"created": {"after": "2025-01-01"}})
    dry = mirrors.run(entry, dry_run=True)
    assert {action.target.tag for action in plan_of(dry).actions} == {"new", "unknown"}
    assert results(mirrors.run(entry)) == {"copy:new": "added", "copy:unknown": "added"}
    assert target.manifest("copy", "old") is None
    mirrors.take_requests(source, target)
    assert results(mirrors.run(entry)) == {"copy:new": "unchanged", "copy:unknown": "unchanged"}
    assert count_requests(mirrors.take_requests(source)) == {"GET tags": 1, "HEAD manifests": 3}  # dates are in the store


@pytest.mark.parametrize("settings", [{"concurrency": 1}, {"defaults": {"parallel": 1}}], ids=str)
def test_the_concurrency_of_the_configuration_is_respected(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, settings: dict[str, Any]
) -> None:
    for number in range(5):
        images.load(source, "app", images.image(940 + number), f"v{number}")
    assert mirrors.run(repository(source, target), **settings).status == "complete"
    assert (source.connections, target.connections) == (1, 1)  # one unit of work at a time needs one connection


def test_a_large_mirror_runs_in_subflows(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, prefect: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MOST_TASKS", 100)
    built = images.image(930, layers=1)
    images.load(source, "app", built)
    for number in range(101):
        source.put_manifest("app", built.manifests[-1].raw, built.root.media_type, tag=f"v{number:03}")
    entry = repository(source, target)

    report = mirrors.run(entry)

    assert report.status == "complete", error_lines(report)
    assert Counter(results(report).values()) == {"added": 101}
    tasks = Counter(run["name"].split()[0] for run in prefect.task_runs(mirrors.flow_run, at_least=5))
    assert tasks == {"tags": 1, "survey": 2, "mirror-part-0": 1, "mirror-part-1": 1}  # each part is a subflow run
    found = prefect.post("/flow_runs/filter", {"flow_runs": {"name": {"like_": "part"}}, "sort": "START_TIME_DESC", "limit": 2})
    assert {run["name"] for run in found} == {"mirror mirror, part 1", "mirror mirror, part 2"}
    assert {run["state_type"] for run in found} == {"COMPLETED"}
    assert count_uploads(mirrors.take_requests(target)) == Counter(built.blobs.keys())
    mirrors.take_requests(source)
    again = mirrors.run(entry)
    assert (again.tasks, again.counts["unchanged"]) == (1 + 2, 101)  # tags, and two surveys


def image_created_at(created: str | None) -> BuiltImage:
    """Return an image with a creation date in its config."""
    config = json.dumps({"os": "linux", "architecture": "amd64", "created": created, "rootfs": {"type": "layers"}}).encode()

    def set_date(document: dict[str, Any]) -> None:
        document["config"] |= {"digest": images.digest_of(config), "size": len(config)}

    return images.with_manifest(ONE, set_date, blobs={**ONE.blobs, images.digest_of(config): config})


def test_non_distributable_layers_are_not_uploaded(mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry) -> None:
    built, layer = images.foreign(930)
    images.load(source, "app", built, "v1")

    report = mirrors.run(image(source, target, "app:v1"))

    assert report.status == "complete", error_lines(report)
    assert not [one for one in target.requests if layer in one.path or layer in one.query]
    assert target.manifest("app", "v1") == (images.OCI_MANIFEST, built.manifests[-1].raw)
