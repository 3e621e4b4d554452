"""Seeds: target names, offline runs, unchanged images, and the list of failed images for the next run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_dist.mirror.config import make_seed_mirror
from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.ocispec.referrers import cosign_tags, fallback_tag
from tests import images
from tests.fakes.faults import Answer, Fault
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import Mirrors, count_reads, count_requests, count_uploads, find_missing, results
from tests.flows.reports import error_lines

ONE, OTHER, LAST = images.image(1190, layers=2), images.image(1191, platform="linux/arm64/v8"), images.image(1192)
INDEX = images.index([ONE, OTHER])
BILL, SIGNATURE = images.artifact(1193, subject=ONE), images.artifact(1194)
SIGNATURE_TAG = cosign_tags(Digest.parse(INDEX.root.digest))[0]
BUILT = {"team/index:v1": INDEX, "one:v1": ONE, "one:v2": LAST}


@pytest.fixture
def source() -> Iterator[FakeRegistry]:
    with FakeRegistry() as source:
        for name, built in BUILT.items():
            repository, _, tag = name.partition(":")
            images.load(source, repository, built, tag)
        images.load(source, "team/index", BILL)
        images.load(source, "team/index", SIGNATURE, SIGNATURE_TAG)
        yield source


def names(source: FakeRegistry) -> list[str]:
    return [f"{source.host}/{name}" for name in BUILT]


def find_lost(target: FakeRegistry, prefix: str = "") -> list[str]:
    parts = ((name.partition(":"), built) for name, built in BUILT.items())
    return [digest for (repository, _, tag), built in parts for digest in find_missing(target, prefix + repository, built, tag)]


def test_each_image_is_published_at_each_target_under_its_own_name(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, other: FakeRegistry
) -> None:
    report = mirrors.seed(*names(source), to=[target, other])

    assert report.status == "complete", error_lines(report)
    assert find_lost(target) + find_lost(other) == []
    content = {digest for built in BUILT.values() for digest in built.descriptors}
    requests = mirrors.take_requests(source)
    assert count_reads(requests) == dict.fromkeys(content, 1)
    assert not [one for one in requests if "/referrers/" in one.path or ".sig" in one.path]
    blobs = dict.fromkeys({digest for built in BUILT.values() for digest in built.blobs}, 1)
    assert count_uploads(mirrors.take_requests(target)) == count_uploads(mirrors.take_requests(other)) == blobs
    assert list(mirrors.directory.glob("*.lock.json")) == []


def test_an_offline_seed_publishes_images_of_the_store_without_a_request_to_the_source(
    mirrors: Mirrors, target: FakeRegistry
) -> None:
    with FakeRegistry() as first, FakeRegistry() as source:
        for name, built in BUILT.items():
            images.load(source, name.partition(":")[0], built, name.partition(":")[2])
        images.load(source, "team/index", BILL)
        images.load(source, "team/index", SIGNATURE, SIGNATURE_TAG)
        mirrors.seed(*names(source), to=[first], referrers=True)

        mirrors.take_requests(source)
        report = mirrors.seed(*names(source), to=[target], offline=True, referrers=True)
        assert mirrors.take_requests(source) == []

    assert report.status == "complete", error_lines(report)
    assert find_lost(target) == []
    assert find_missing(target, "team/index", BILL) + find_missing(target, "team/index", SIGNATURE, SIGNATURE_TAG) == []


def test_images_that_the_store_lacks_fail_offline_and_do_not_affect_others(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, other: FakeRegistry
) -> None:
    mirrors.seed(names(source)[0], to=[other])
    mirrors.take_requests(source)

    report = mirrors.seed(*names(source), to=[target], offline=True)

    assert report.status == "failed"
    assert results(report) == {"team/index:v1": "added", "one:v1": "failed", "one:v2": "failed"}
    assert find_missing(target, "team/index", INDEX, "v1") == []
    assert mirrors.take_requests(source) == []
    wanted = [f"{name} to {target.host}/{name.partition('/')[2]}: " for name in names(source)[1:]]
    assert [error[: len(start)] for error, start in zip(error_lines(report), wanted, strict=True)] == wanted


@pytest.mark.usefixtures("prefect")
def test_failed_images_are_written_to_a_list_and_the_next_run_seeds_only_them(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, other: FakeRegistry, tmp_path: Path
) -> None:
    failed = tmp_path / "failed.txt"
    other.inject(Fault(method="PUT", path=".*/one/manifests/v2", action=Answer(403)))
    lost_source = f"{source.host}/none:v1"

    report = mirrors.seed(*names(source), lost_source, to=[target, other], failed=str(failed))

    assert report.status == "failed"
    assert failed.read_text().splitlines() == [f"{source.host}/one:v2", lost_source]
    assert find_lost(target) == []
    images.load(source, "none", ONE, "v1")
    mirrors.take_requests(source, target, other)

    again = mirrors.seed(file=str(failed), to=[target, other], failed=str(failed))

    assert again.status == "complete", error_lines(again)
    assert failed.read_text() == ""
    assert not failed.with_name("failed.txt.lock").exists()
    assert find_lost(other) + find_missing(other, "none", ONE, "v1") == []
    assert not [one for one in mirrors.take_requests(source) if "/team/" in one.path or one.path.endswith("/one/manifests/v1")]
    for place in (target, other):
        assert not [one for one in mirrors.take_requests(place) if one.method in ("POST", "PATCH") and "/none/" not in one.path]


def test_unchanged_images_are_only_requested_by_head(mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry) -> None:
    mirrors.seed(*names(source), to=[target])
    mirrors.take_requests(source, target)

    report = mirrors.seed(*names(source), to=[target])

    assert (report.status, report.counts["unchanged"]) == ("complete", 3)
    assert count_requests(mirrors.take_requests(source)) == {"HEAD manifests": 3}
    # Without a lock file, the run also asks for the two manifests of the index.
    assert count_requests(mirrors.take_requests(target)) == {"HEAD manifests": 3 + 2}


@pytest.mark.parametrize("rewrite", [False, True])
def test_the_selected_platforms_are_published_in_a_sparse_or_rewritten_index(
    mirrors: Mirrors, source: FakeRegistry, *, rewrite: bool
) -> None:
    with FakeRegistry(sparse=not rewrite) as target:
        report = mirrors.seed(names(source)[0], to=[target], platforms=["linux/arm64"], rewrite_index=rewrite)

        assert report.status == "complete", error_lines(report)
        published = target.manifest("team/index", "v1")
        assert published is not None
        assert (published[1] == INDEX.manifests[-1].raw) is not rewrite
        assert OTHER.root.digest.encode() in published[1]
        assert (ONE.root.digest.encode() in published[1]) is not rewrite
        assert find_missing(target, "team/index", OTHER) == []
        assert target.manifest("team/index", ONE.root.digest) is None


def test_the_error_of_a_registry_that_refuses_sparse_indexes_recommends_rewrite_index(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    report = mirrors.seed(names(source)[0], to=[target], platforms=["linux/arm64"])
    assert report.status == "failed"
    (error,) = error_lines(report)
    assert "rewriteIndex" in error


def test_referrers_are_published_at_a_registry_without_a_referrers_api(mirrors: Mirrors, source: FakeRegistry) -> None:
    with FakeRegistry(referrers=False) as target:
        report = mirrors.seed(names(source)[0], to=[target], referrers=True)

        assert report.status == "complete", error_lines(report)
        assert find_missing(target, "team/index", BILL) + find_missing(target, "team/index", SIGNATURE, SIGNATURE_TAG) == []
        listed = target.manifest("team/index", fallback_tag(Digest.parse(ONE.root.digest)))
        assert listed is not None
        assert BILL.root.digest.encode() in listed[1]


@pytest.mark.parametrize(
    ("to", "settings", "message"),
    [
        (["r.example"], {}, "seed: expected images, or a list of them"),
        ([], {"images": ["a"]}, "seed.to"),
        (["r.example"], {"images": ["UPPER:1"]}, "seed.images"),
        (["r.example:99999999"], {"images": ["a"]}, "seed.to"),
        (["r.example"], {"images": ["a"], "rewrite_index": True}, "platforms"),
        (["r.example"], {"images": ["a"], "platforms": ["none"]}, "seed.platforms"),
        (["r.example"], {"file": "/nowhere/list"}, "/nowhere/list: No such file or directory"),
    ],
)
def test_invalid_arguments_of_a_seed_are_refused(to: list[str], settings: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        make_seed_mirror(to, **settings)  # type: ignore[arg-type]


def test_the_error_for_a_line_of_a_list_has_the_file_and_the_line_number(tmp_path: Path) -> None:
    path = tmp_path / "images.txt"
    path.write_text("# ours\n\nredis:7  # the cache\nnginx:UPPER\nBAD NAME\n")
    with pytest.raises(InvalidInput, match=rf"^{path}:5: .*BAD NAME"):
        make_seed_mirror(["r.example"], file=str(path))


def test_short_names_expand_to_docker_hub(tmp_path: Path) -> None:
    path = tmp_path / "images.txt"
    path.write_text("redis\nteam/app:1 # ours\nghcr.io/a/b@sha256:" + "0" * 64 + "\n")
    found = make_seed_mirror(["r.example", "s.example:5000/mirror"], file=str(path)).seed
    assert [entry.source for entry in found] == [
        "docker.io/library/redis:latest",
        "docker.io/team/app:1",
        "ghcr.io/a/b@sha256:" + "0" * 64,
    ]
