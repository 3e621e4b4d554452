"""Referrers at registries without a referrers API, where another client overwrites the index under the fallback tag."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefect_dist.mirror.progress import notify_also
from prefect_dist.mirror.report import RunReport
from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.referrers import fallback_tag
from prefect_dist.transfer.cancellation import CancelToken, use_token
from prefect_dist.transfer.events import Event, StepDone
from tests import images
from tests.fakes.faults import Call, Fault
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import Mirrors, image, results
from tests.flows.reports import error_lines
from tests.peers.prefect import PrefectServer

IMAGE = images.image(8300, layers=1)
OURS, THEIRS = images.artifact(8301, subject=IMAGE), images.artifact(8302, subject=IMAGE)
FALLBACK = fallback_tag(Digest.parse(IMAGE.root.digest))


def load(registry: FakeRegistry) -> None:
    images.load(registry, "app", IMAGE, "v1")
    images.load(registry, "app", OURS)


def make_overwrite(registry: FakeRegistry, repository: str) -> Callable[[], None]:
    """Return a function that overwrites the index, as a client does that read an older index."""

    def overwrite() -> None:
        images.load(registry, repository, THEIRS)
        images.load(registry, repository, images.index([THEIRS]), FALLBACK)

    return overwrite


def listed_referrers(registry: FakeRegistry, repository: str) -> set[str]:
    found = registry.manifest(repository, FALLBACK)
    assert found is not None
    return {one["digest"] for one in json.loads(found[1])["manifests"]}


def test_a_mirror_lists_a_referrer_again_that_another_client_overwrote(mirrors: Mirrors, source: FakeRegistry) -> None:
    load(source)
    with FakeRegistry(referrers=False) as target:
        target.inject(Fault(method="PUT", path=".*/manifests/v1", action=Call(make_overwrite(target, "app"))))

        report = mirrors.run(image(source, target, "app:v1", referrers=True))

        assert report.status == "complete", error_lines(report)
        assert listed_referrers(target, "app") == {OURS.root.digest, THEIRS.root.digest}
        assert list(mirrors.read_lock()[f"{target.host}/app:v1"]["referrers"]) == [OURS.root.digest]


def test_a_repair_lists_a_referrer_again_that_another_client_overwrote(mirrors: Mirrors, source: FakeRegistry) -> None:
    load(source)
    with FakeRegistry(referrers=False) as target:
        mirrors.run(image(source, target, "app:v1", referrers=True))
        target.untag("app", FALLBACK)
        target.inject(Fault(method="PUT", path=".*/manifests/v1", action=Call(make_overwrite(target, "app"))))

        report = mirrors.check(repair=True)

        assert report.status == "complete", error_lines(report)
        assert listed_referrers(target, "app") == {OURS.root.digest, THEIRS.root.digest}


def test_the_next_run_lists_a_referrer_that_a_stopped_run_did_not_check(mirrors: Mirrors, source: FakeRegistry) -> None:
    load(source)
    cancel = CancelToken()
    with FakeRegistry(referrers=False) as target:
        target.inject(Fault(method="PUT", path=".*/manifests/v1", action=Call(make_overwrite(target, "app"))))
        entry = image(source, target, "app:v1", referrers=True)

        def stop_after_publication(event: Event) -> None:
            if isinstance(event, StepDone):
                cancel.request("asked to end")

        with use_token(cancel), notify_also(stop_after_publication):
            stopped = mirrors.run(entry)

        assert (stopped.status, results(stopped)) == ("stopped", {"app:v1": "added"})
        assert listed_referrers(target, "app") == {THEIRS.root.digest}
        assert mirrors.read_lock()[f"{target.host}/app:v1"]["referrers"] == {}

        assert results(mirrors.run(entry)) == {"app:v1": "changed"}
        assert listed_referrers(target, "app") == {OURS.root.digest, THEIRS.root.digest}


def test_a_mirror_reports_a_referrer_that_others_overwrite_each_time_and_the_next_run_lists_it(
    mirrors: Mirrors, source: FakeRegistry
) -> None:
    load(source)
    with FakeRegistry(referrers=False) as target:
        overwrite, is_published = make_overwrite(target, "app"), [False]

        def overwrite_first() -> None:
            is_published[0] = True
            overwrite()

        target.inject(Fault(method="PUT", path=".*/manifests/v1", action=Call(overwrite_first)))
        each_time = Call(lambda: overwrite() if is_published[0] else None)
        target.inject(Fault(method="PUT", path=f".*/manifests/{FALLBACK}", nth=None, action=each_time))
        entry = image(source, target, "app:v1", referrers=True)
        mirrors.take_requests(target)

        report = mirrors.run(entry)

        assert (report.status, results(report)) == ("failed", {"app:v1": "failed"})
        (error,) = error_lines(report)
        lost = f"{target.host}/app:{FALLBACK}: other clients overwrote the entry for manifest {OURS.root.digest} 5 times"
        assert error == f"{source.host}/app:v1 to {target.host}/app:v1: {lost}; try again"
        writes = [one for one in mirrors.take_requests(target) if one.method == "PUT" and one.path.endswith(FALLBACK)]
        assert len(writes) == 1 + 5
        record = mirrors.read_lock()[f"{target.host}/app:v1"]
        assert (record["own"], record["digest"], record["referrers"]) == (True, IMAGE.root.digest, {})

        is_published[0] = False
        report = mirrors.run(entry)

        assert results(report) == {"app:v1": "changed"}
        assert listed_referrers(target, "app") == {OURS.root.digest, THEIRS.root.digest}


def test_a_push_lists_a_referrer_again_that_another_client_overwrote(
    prefect: PrefectServer, source: FakeRegistry, tmp_path: Path
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from prefect_dist.flows.fetch import fetch
    from prefect_dist.flows.push import push

    load(source)
    store, name = str(tmp_path / "store"), f"{source.host}/app:v1"
    with FakeRegistry(referrers=False) as target, temporary_settings({PREFECT_API_URL: prefect.url}):
        target.inject(Fault(method="PUT", path=".*/manifests/v1", action=Call(make_overwrite(target, "copy"))))
        fetch([name], store, referrers=True)
        report: Any = push(name, f"{target.host}/copy:v1", store, referrers=True, return_state=True).result()
        assert isinstance(report, RunReport)
        assert report.status == "complete", error_lines(report)
        assert listed_referrers(target, "copy") == {OURS.root.digest, THEIRS.root.digest}


@pytest.mark.parametrize("has_api", [True, False])
def test_the_final_check_of_referrers_sends_one_request_per_subject_and_none_with_a_referrers_api(
    mirrors: Mirrors, source: FakeRegistry, *, has_api: bool
) -> None:
    load(source)
    others = [images.artifact(8303 + number, subject=IMAGE) for number in range(3)]
    for one in others:
        images.load(source, "app", one)
    with FakeRegistry(referrers=has_api) as target:
        report = mirrors.run(image(source, target, "app:v1", referrers=True))

        assert report.status == "complete", error_lines(report)
        paths = [f"{one.method} {one.path.rpartition('/')[2]}" for one in mirrors.take_requests(target)]
        last = paths[paths.index("PUT v1") + 1 :]
        assert last == ([] if has_api else [f"GET {FALLBACK}"])
