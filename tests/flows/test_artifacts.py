"""Artifacts of runs: plan, progress, summary, and failures with the next steps."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from prefect_dist.mirror.progress import ProgressCounter, notify_also
from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.errors import Unavailable
from prefect_dist.storage import open_store
from prefect_dist.transfer.cancellation import CancelToken, use_token
from prefect_dist.transfer.content import Receipt
from prefect_dist.transfer.events import (
    ContentAdvanced,
    ContentFailed,
    ContentFinished,
    ContentFound,
    Event,
    ImageEnded,
    ImageResolving,
    Planned,
)
from prefect_dist.transfer.image_report import Failure, ImageReport
from tests import images
from tests.fakes.faults import Fault, Refuse, Stall
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import Mirrors, image, repository
from tests.flows.reports import error_lines, fetch_report, images_of
from tests.peers.prefect import PrefectServer
from tests.peers.processes import poll_until
from tests.storage.conformance import Place, blob_path

ONE, TWIN = images.image(3400, layers=2), images.image(3400, layers=2, platform="linux/s390x")
SMALL = images.image(3401)


@pytest.fixture(autouse=True)
def _api(prefect: PrefectServer) -> Iterator[None]:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect.url}):
        yield


@pytest.fixture
def artifacts(prefect: PrefectServer) -> Callable[[Any], dict[str, dict[str, Any]]]:
    """Returns the artifacts of a run by key. The argument is the state or the id of the run."""

    def of(run: Any) -> dict[str, dict[str, Any]]:
        flow_run = run if isinstance(run, str) else str(run.state_details.flow_run_id)
        found = prefect.post("/artifacts/filter", {"flow_runs": {"id": {"any_": [flow_run]}}})
        assert len(found) == len({one["key"] for one in found})
        return {one["key"]: one for one in found}

    return of


def facts(artifact: dict[str, Any]) -> dict[str, str]:
    """Return the rows of a summary, without times."""
    rows = [line.strip("| ").split(" | ") for line in artifact["data"].splitlines()[2:]]
    return {name: value for name, value in rows if name not in ("duration", "rate")}


def test_a_mirror_shows_its_plan_progress_and_mounted_bytes(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, artifacts: Callable[[Any], dict[str, dict[str, Any]]]
) -> None:
    images.load(source, "app", ONE, "v1")
    images.load(source, "app", TWIN, "v2")
    sync = [repository(source, target), {**image(source, target, "app:v1"), "target": f"{target.host}/also:v1"}]

    report = mirrors.run(*sync)

    shown = artifacts(mirrors.flow_run)
    assert shown.keys() == {"plan", "progress", "mirror", "summary"}
    assert shown["progress"]["data"] == 100
    assert shown["progress"]["description"].startswith("3 of 3 images compared, ")
    summary = facts(shown["summary"])
    assert (summary["added"], summary["fetched"]) == (
        "3",
        shown["summary"]["description"].partition("; ")[2].split(" fetched")[0],
    )
    assert (report.counts["mounted"], report.counts["mounted_bytes"]) == (3, sum(map(len, ONE.blobs.values())))
    assert summary["mounted from another repository"].startswith("3 (")

    again = mirrors.run(*sync)
    assert again.counts["fetched_bytes"] == 0
    shown = artifacts(mirrors.flow_run)
    assert facts(shown["summary"]) == {"unchanged": "3", "store": str(mirrors.store)}
    assert shown["progress"]["data"] == 100


def test_failures_are_a_list_with_the_next_steps(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, artifacts: Callable[[Any], dict[str, dict[str, Any]]]
) -> None:
    images.load(source, "app", ONE, "v1")
    target.inject(Fault(method="PUT", path="/v2/app/manifests/.*", nth=None, action=Refuse(403)))

    report = mirrors.run(image(source, target, "app:v1"), image(source, target, "app:none"))

    shown = artifacts(mirrors.flow_run)
    assert shown.keys() == {"plan", "progress", "mirror", "summary", "failures"}
    assert shown["failures"]["description"].startswith("2 failures. Fix the failures below, then run again.")
    lines = [f"{number}. {error}" for number, error in enumerate(error_lines(report), 1)]
    assert shown["failures"]["data"].splitlines() == lines
    assert "log in with" in lines[0]
    assert shown["progress"]["data"] < 100
    progress = "2 of 2 images compared, 1 unresolved, 0 of 1 image finished, 1 failed, 4 of 4 descriptors, "
    assert shown["progress"]["description"].startswith(progress)
    assert shown["summary"]["data"].startswith("| mirror | failed |\n|---|---|\n")


@pytest.mark.parametrize("dry_run", [False, True])
def test_unresolved_images_do_not_count_as_done(
    mirrors: Mirrors,
    source: FakeRegistry,
    target: FakeRegistry,
    artifacts: Callable[[Any], dict[str, dict[str, Any]]],
    *,
    dry_run: bool,
) -> None:
    """The run has an unreachable target, a missing repository, and one image without a problem."""
    with FakeRegistry() as gone:
        pass
    for tag in ("v1", "v2", "v3"):
        images.load(source, "app", ONE, tag)
    lost = {**repository(source, target), "source": f"{source.host}/none"}
    sync = [image(source, target, "app:v1"), *(image(source, gone, f"app:{tag}") for tag in ("v2", "v3")), lost]

    report = mirrors.run(*sync, dry_run=dry_run)

    assert len(error_lines(report)) == 3
    shown = artifacts(mirrors.flow_run)["progress"]
    assert shown["description"].startswith("3 of 3 images compared, 3 unresolved")
    assert ("1 of 1 image finished, 4 of 4 descriptors" in shown["description"]) == (not dry_run)
    assert shown["data"] == 25  # one of three images and a repository


def test_the_progress_of_a_run_with_a_failed_removal_or_index_json_is_below_100(
    mirrors: Mirrors, source: FakeRegistry, artifacts: Callable[[Any], dict[str, dict[str, Any]]]
) -> None:
    images.load(source, "app", ONE, "v1")
    images.load(source, "app", TWIN, "v2")
    with FakeRegistry(deletes="nothing") as target:
        entry = repository(source, target, prune={"after": "0s", "most": 20})
        mirrors.run(entry)
        kept = mirrors.run({**entry, "tags": {"deny": ["v2"]}})
        assert "the registry does not delete manifests" in "".join(error_lines(kept))
        assert artifacts(mirrors.flow_run)["progress"]["data"] < 100

        index = mirrors.store / "index.json"
        index.unlink()
        index.mkdir()
        unlisted = mirrors.run(entry)
        assert "index.json" in "".join(error_lines(unlisted))
        assert artifacts(mirrors.flow_run)["progress"]["data"] < 100


def test_the_progress_of_a_check_with_unresolved_targets_is_below_100(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, artifacts: Callable[[Any], dict[str, dict[str, Any]]]
) -> None:
    for tag, built in (("v1", ONE), ("v2", TWIN)):
        images.load(source, "app", built, tag)
    mirrors.run(image(source, target, "app:v1"), image(source, target, "app:v2"))
    root = TWIN.root.digest
    for method in ("GET", "HEAD"):
        target.inject(Fault(method=method, path=f"/v2/app/manifests/(v2|{root})", nth=None, action=Refuse(403)))
    assert mirrors.check().counts["unresolved"] == 1
    shown = artifacts(mirrors.flow_run)["progress"]
    assert (shown["data"], shown["description"]) == (50, "2 of 2 images compared, 1 unresolved")


def test_a_stopped_run_shows_its_progress_and_recommends_another_run(
    tmp_path: Path, artifacts: Callable[[Any], dict[str, dict[str, Any]]]
) -> None:
    from prefect_dist.flows.fetch import fetch

    config, *_, layer = ONE.blobs
    size = len(ONE.blobs[layer])
    cancel = CancelToken()

    def stop_at_layer(event: Event) -> None:
        if isinstance(event, ContentAdvanced) and str(event.descriptor.digest) == layer:
            cancel.request("asked to end")

    with FakeRegistry() as registry, use_token(cancel), notify_also(stop_at_layer):
        images.load(registry, "app", ONE, "v1")
        images.load(registry, "small", SMALL, "v1")
        registry.inject(Fault(path=f"/v2/app/blobs/{layer}", nth=None, action=Stall(size // 2)))
        names = [f"{registry.host}/{name}:v1" for name in ("small", "app")]
        shown = artifacts(fetch(names, str(tmp_path / "store"), concurrency=1, return_state=True))

    assert shown["progress"]["data"] < 100
    assert "1 of 2 images finished, 1 failed, " in shown["progress"]["description"]
    assert ", 1 failed, " in shown["progress"]["description"].partition("descriptors")[2]
    assert shown["failures"]["description"].startswith("1 failure. The run stopped before it finished. Run it again to resume.")
    assert config not in shown["failures"]["data"]


def test_the_progress_of_a_run_with_nothing_to_do_is_100(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, artifacts: Callable[[Any], dict[str, dict[str, Any]]]
) -> None:
    images.load(source, "app", ONE, "v1")
    assert mirrors.run(repository(source, target, tags={"semverRange": [">=9"]})).status == "complete"
    shown = artifacts(mirrors.flow_run)["progress"]
    assert (shown["data"], shown["description"]) == (100, "nothing to do")


@pytest.fixture
def filled(tmp_path: Path) -> Place:
    """A store with one image."""
    from prefect_dist.flows.fetch import fetch

    place = Place(url=str(tmp_path / "store"))
    with FakeRegistry() as registry:
        images.load(registry, "app", ONE, "v1")
        fetch([f"{registry.host}/app:v1"], place.url)
    return place


def test_blobs_that_cannot_be_verified_do_not_count_as_done(
    filled: Place, artifacts: Callable[[Any], dict[str, dict[str, Any]]]
) -> None:
    """One blob is corrupt, and the quarantine is no directory."""
    from prefect_dist.flows.verify import verify

    filled.plant(blob_path(Digest.parse(list(ONE.blobs)[-1])), b"wrong")
    filled.plant("quarantine", b"")
    shown = artifacts(verify(filled.url, return_state=True))["progress"]
    assert shown["data"] == 0
    assert shown["description"].startswith("0 of 4 blobs hashed, 4 failed, 0 B of ")


def test_the_progress_of_a_run_that_was_stopped_at_its_start_is_0(
    filled: Place, artifacts: Callable[[Any], dict[str, dict[str, Any]]]
) -> None:
    from prefect_dist.flows.verify import verify

    cancel = CancelToken()
    cancel.set("asked to end")
    with use_token(cancel):
        shown = artifacts(verify(filled.url, return_state=True))["progress"]
    assert shown["description"].startswith("0 of 4 blobs hashed, 0 B of ")
    assert shown["data"] == 0


def test_a_check_shows_damage_and_recommends_repair(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, artifacts: Callable[[Any], dict[str, dict[str, Any]]]
) -> None:
    from prefect_dist.flows.check import check

    images.load(source, "app", ONE, "v1")
    mirrors.run(image(source, target, "app:v1"))
    layer = list(ONE.blobs)[-1]
    target.inject(Fault(method="HEAD", path=f"/v2/app/blobs/{layer}", nth=1, action=Refuse(404)))
    config = str(mirrors.directory / "mirror.yaml")

    shown = artifacts(check(config, str(mirrors.store), return_state=True))

    assert shown.keys() == {"progress", "check", "summary", "failures"}
    assert (shown["progress"]["data"], shown["progress"]["description"]) == (100, "1 of 1 image compared")
    assert facts(shown["summary"])["damaged"] == "1"
    assert "run check with `repair`" in shown["failures"]["description"]
    assert layer in shown["failures"]["data"]
    shown = artifacts(check(config, str(mirrors.store), repair=True, return_state=True))
    assert shown.keys() == {"progress", "check", "summary"}
    assert facts(shown["summary"])["ok"] == "1"  # the fault was only in the response of the registry


def test_fetch_push_verify_and_gc_show_progress_and_summary(
    tmp_path: Path, artifacts: Callable[[Any], dict[str, dict[str, Any]]]
) -> None:
    from prefect_dist.flows.fetch import fetch
    from prefect_dist.flows.gc import gc
    from prefect_dist.flows.push import push
    from prefect_dist.flows.verify import verify

    place = Place(url=str(tmp_path / "store"))
    with FakeRegistry() as registry, FakeRegistry() as target:
        images.load(registry, "app", ONE, "v1")
        name = f"{registry.host}/app:v1"
        total = sum(map(len, ONE.blobs.values())) + len(ONE.manifests[-1].raw)

        first = fetch([name], place.url, return_state=True)
        shown = artifacts(first)
        assert shown.keys() == {"progress", "fetch", "summary"}
        assert shown["progress"]["data"] == 100
        assert facts(shown["summary"])["images"] == "1"
        assert facts(shown["summary"])["fetched"].startswith("4 (")
        again: Any = fetch([name], place.url, return_state=True)
        (report,) = images_of(again.result())
        assert (report.existed_bytes, report.fetched_bytes) == (total, 0)
        assert facts(artifacts(again)["summary"])["existed before the run"].startswith("4 (")

        pushed = push(name, f"{target.host}/app:v1", place.url, return_state=True)
        shown = artifacts(pushed)
        assert shown.keys() == {"progress", "plan", "push", "summary"}
        assert facts(shown["summary"])["added"] == "1"

    layer = Digest.parse(list(ONE.blobs)[-1])
    place.plant(blob_path(layer), b"wrong")
    shown = artifacts(verify(place.url, return_state=True))
    assert shown.keys() == {"progress", "verify", "summary", "failures"}
    assert shown["progress"]["description"].startswith("4 of 4 blobs hashed, ")
    assert facts(shown["summary"])["corrupt"] == "1"
    assert "run verify with `repair`" in shown["failures"]["description"]

    open_store(place.url).names.delete(name)
    shown = artifacts(gc(place.url, "0", return_state=True))
    assert shown.keys() == {"gc", "summary"}
    assert facts(shown["summary"])["removed"].startswith("3 (")


def test_the_progress_artifact_is_updated_during_the_run(prefect: PrefectServer) -> None:
    """The artifact shows each quarter of the work while the flow still runs."""
    from prefect_dist.flows._flow import flow_of
    from prefect_dist.flows.progress_artifact import publish_progress
    from prefect_dist.mirror.report import RunReport

    layers = [Descriptor(media_type=images.OCI_LAYER, digest=Digest.of(bytes([n])), size=1024**2) for n in range(4)]
    seen, runs = list[float](), list[str]()

    def progress() -> list[dict[str, Any]]:
        run = {"flow_runs": {"id": {"any_": runs}}, "artifacts": {"key": {"any_": ["progress"]}}}
        return list(prefect.post("/artifacts/filter", run))

    def stands_at(percent: int) -> bool:
        found = progress()
        return bool(found) and found[0]["data"] == percent

    @flow_of("report-progress", run_name=lambda: "report-progress")
    def report_progress() -> RunReport:
        from prefect.runtime import flow_run

        counter = ProgressCounter()
        runs.append(str(flow_run.id))
        with publish_progress(counter):
            for layer in layers:
                counter(ContentFound(layer))
            for number, layer in enumerate(layers[:3], 1):
                counter(ContentAdvanced(layer, 1024**2 // 2, 1024**2 // 2))
                counter(ContentFinished(layer, Receipt("fetched", layer.size)))
                assert poll_until(partial(stands_at, 25 * number))
                seen.append(progress()[0]["data"])
        return fetch_report([])

    report_progress()

    assert seen == [25, 50, 75]
    assert progress()[0]["data"] == 100


def test_the_fraction_of_a_progress_counter_grows_with_each_event() -> None:
    counter = ProgressCounter(planning=0.5)
    mib = 1024**2
    root = Descriptor(media_type=images.OCI_MANIFEST, digest=Digest.of(b"1"), size=0)
    layer = Descriptor(media_type=images.OCI_LAYER, digest=Digest.of(b"2"), size=2 * mib)
    assert (counter.fraction(), counter.words()) == (0, "nothing to do")
    counter(Planned(1, 2))
    assert counter.fraction() == 0.25
    counter(Planned(2, 2))
    counter(ImageResolving(str(Reference.parse("a.example/app:v1"))))
    counter(ContentFound(root))
    counter(ContentFinished(root, Receipt("existed")))
    assert counter.fraction() == 0.5 + 0.5 / 2  # the image and its manifest count equally
    counter(ContentFound(layer))
    counter(ContentAdvanced(layer, mib, mib))
    assert counter.fraction() == 0.5 + 0.5 * 2 / 5
    assert counter.words() == "2 of 2 images compared, 0 of 1 image finished, 1 of 2 descriptors, 1.0 MiB of 2.0 MiB"
    counter(ContentFinished(layer, Receipt("fetched", layer.size)))
    counter(ContentAdvanced(layer, mib, mib))  # the upload of the layer does not reduce the fraction
    assert counter.fraction() == 0.5 + 0.5 * 4 / 5
    assert not counter.lacks()


def test_failed_content_does_not_count_as_done() -> None:
    counter, mib = ProgressCounter(), 1024**2
    one, other = (Descriptor(media_type=images.OCI_LAYER, digest=Digest.of(bytes([n])), size=2 * mib) for n in range(2))
    for layer in (one, other):
        counter(ContentFound(layer))
    for name in ("a.example/app:v1", "a.example/app:v2"):
        counter(ImageResolving(name))
    counter(ContentFinished(one, Receipt("fetched", one.size)))
    counter(ImageEnded(ImageReport(name="a.example/app:v1", root=one)))
    counter(ContentAdvanced(other, mib, mib))
    failure = Failure(descriptor=other, error=Unavailable("broken off"))
    counter(ContentFailed(other, failure.error))
    counter(ImageEnded(ImageReport(name="a.example/app:v2", root=other, failures=(failure,))))

    assert counter.lacks()
    assert counter.fraction() == 5 / 8
    summary = "1 of 2 images finished, 1 failed, 1 of 2 descriptors, 1 failed, 3.0 MiB of 4.0 MiB"
    assert counter.words() == summary
    counter(ContentFinished(other, Receipt("fetched", other.size)))  # another image fetched the layer from another repository
    assert counter.words() == "1 of 2 images finished, 1 failed, 2 of 2 descriptors, 4.0 MiB of 4.0 MiB"
