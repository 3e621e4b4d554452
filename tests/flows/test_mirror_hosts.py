"""Mirrors from several registries: a rate-limited registry does not delay the images of others."""

import threading
from collections.abc import Callable, Iterator

import pytest

from prefect_dist.flows import mirror_parts as parts
from prefect_dist.mirror.progress import notify_also
from prefect_dist.mirror.render import summary_line
from prefect_dist.transfer.cancellation import CancelToken, use_token
from prefect_dist.transfer.events import Event, Notify, StepDone, Throttled
from tests import images
from tests.fakes.faults import Answer, Fault, Stall, WithHeaders
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import Mirrors, find_missing, image, repository, results
from tests.flows.reports import document, error_lines, plan_of
from tests.peers.prefect import PrefectServer

MANY = images.image(1042, layers=12)
ONE, TWO = images.image(1040, layers=1), images.image(1041, layers=1)
LONG_S = 75


@pytest.fixture
def source() -> Iterator[FakeRegistry]:
    with FakeRegistry() as source:
        images.load(source, "app", ONE, "v1")
        images.load(source, "app", TWO, "v2")
        yield source


@pytest.fixture
def busy() -> Iterator[FakeRegistry]:
    with FakeRegistry() as busy:
        images.load(busy, "more", TWO, "v1")
        yield busy


def publication_listener(then: Callable[[str], None], throttled: Callable[[], None] = lambda: None) -> Notify:
    """Return a listener that calls `then` for each published image, and `throttled` when requests to a registry pause."""

    def notify(event: Event) -> None:
        match event:
            case Throttled():
                throttled()
            case StepDone(name, text) if text.startswith("published"):
                then(name)

    return notify


@pytest.mark.parametrize(
    ("throttled", "concurrency"),
    [(("GET", ".*/manifests/v.*"), 1), (("GET", ".*/tags/list"), 4)],
    ids=["survey", "list of tags"],
)
def test_images_are_published_while_another_registry_is_rate_limited(  # noqa: PLR0917 - fixtures
    mirrors: Mirrors,
    source: FakeRegistry,
    busy: FakeRegistry,
    target: FakeRegistry,
    throttled: tuple[str, str],
    concurrency: int,
) -> None:
    method, path = throttled
    busy.inject(Fault(method=method, path=path, nth=None, action=Answer(429, (("Retry-After", str(LONG_S)),), b"")))
    first = {**repository(busy, target), "source": f"{busy.host}/more", "targets": [f"{target.host}/more"]}
    cancel = CancelToken()
    published = list[str]()

    def stop(name: str) -> None:
        published.append(name)
        if len(published) == 2:
            cancel.request("all others are published")

    with use_token(cancel), notify_also(publication_listener(stop)):
        report = mirrors.run(first, repository(source, target), concurrency=concurrency)

    assert report.status == "stopped"
    assert sorted(published) == [f"{source.host}/app:v1", f"{source.host}/app:v2"]
    assert not find_missing(target, "copy", ONE, "v1")
    assert not find_missing(target, "copy", TWO, "v2")
    assert mirrors.read_lock()[f"{target.host}/copy:v1"]["mirrored"]
    assert report.seconds < LONG_S
    assert [one.status for one in busy.find_requests(method, path)] == [429]


@pytest.mark.parametrize("is_target", [False, True], ids=["source", "target"])
def test_blobs_that_wait_for_one_registry_do_not_delay_images_of_another(
    mirrors: Mirrors, source: FakeRegistry, busy: FakeRegistry, other: FakeRegistry, target: FakeRegistry, *, is_target: bool
) -> None:
    images.load(other if is_target else busy, "many", MANY, "v1")
    first = image(other, busy, "many:v1") if is_target else image(busy, target, "many:v1")
    method, path = ("POST" if is_target else "GET"), ".*/blobs/.*"
    busy.inject(Fault(method=method, path=path, times=4, action=Answer(429, (("Retry-After", str(30)),), b"")))
    waiting, cancel, published = threading.Event(), CancelToken(), list[str]()
    source.inject(Fault(method="GET", path=".*/tags/list", action=Stall(0, waiting)))

    def stop(name: str) -> None:
        published.append(name)
        if len(published) == 2:
            cancel.request("all others are published")

    with use_token(cancel), notify_also(publication_listener(stop, waiting.set)):
        report = mirrors.run(first, repository(source, target), concurrency=4)

    assert sorted(published) == [f"{source.host}/app:v1", f"{source.host}/app:v2"]
    assert report.status == "stopped"
    assert not find_missing(target, "copy", ONE, "v1")
    assert {one.status for one in busy.find_requests(method, path)} == {429}


def test_the_plan_contains_the_images_of_all_registries_in_order(
    mirrors: Mirrors, source: FakeRegistry, busy: FakeRegistry, target: FakeRegistry, prefect: PrefectServer
) -> None:
    entries = image(busy, target, "more:v1"), repository(source, target), image(busy, target, "more:none")
    dry = mirrors.run(*entries, dry_run=True)
    assert [str(action.item.source).partition("/")[2] for action in plan_of(dry).actions] == [
        "more:v1",
        "app:v1",
        "app:v2",
        "more:none",
    ]
    assert target.find_requests("PUT", ".*") == []
    report = mirrors.run(*entries)
    assert results(report) == {"more:v1": "added", "copy:v1": "added", "copy:v2": "added", "more:none": "failed"}
    again = mirrors.run(*entries[:2])
    assert (again.status, again.tasks) == ("complete", 1 + 2)  # a list of tags, and a survey for each registry
    prefect.task_runs(mirrors.flow_run, at_least=3)


def test_two_registries_with_one_target_fail_before_its_publication(
    mirrors: Mirrors, source: FakeRegistry, busy: FakeRegistry, target: FakeRegistry
) -> None:
    claim = {**image(busy, target, "more:v1"), "target": f"{target.host}/copy:v1"}
    report = mirrors.run(claim, repository(source, target))
    assert results(report) == {"copy:v1": "failed", "copy:v2": "added"}
    assert target.manifest("copy", "v1") is None
    assert len(error_lines(report)) == 2


def test_a_slow_blob_of_one_part_does_not_delay_the_next_part(
    mirrors: Mirrors,
    source: FakeRegistry,
    target: FakeRegistry,
    prefect: PrefectServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parts, "MOST_TASKS", 3)
    release, layer = threading.Event(), list(ONE.blobs)[-1]
    source.inject(Fault(path=f".*/blobs/{layer}", action=Stall(10, release)))
    published = list[str]()

    def note(name: str) -> None:
        published.append(name)
        release.set()

    with notify_also(publication_listener(note)):
        report = mirrors.run(repository(source, target), concurrency=2)

    assert report.status == "complete", error_lines(report)
    assert published == [f"{source.host}/app:v2", f"{source.host}/app:v1"]
    found = prefect.post(
        "/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [mirrors.flow_run]}}, "sort": "START_TIME_DESC"}
    )
    assert sorted((run["name"], run["state_type"]) for run in found) == [
        ("mirror mirror, part 1", "COMPLETED"),
        ("mirror mirror, part 2", "COMPLETED"),
    ]
    for run in found:
        names = {task["name"].split()[0] for task in prefect.task_runs(run["id"], at_least=4)}
        assert names == {"mirror", "publish"}


def test_the_plan_counts_the_pulls_against_the_quota_of_a_registry(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    index = images.index([images.image(1045, layers=1), images.image(1046, layers=1)])
    images.load(source, "app", index, "v3")
    settings = (("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "42;w=21600"))
    for method in ("HEAD", "GET"):
        source.inject(Fault(method=method, path=".*/manifests/.*", nth=None, action=WithHeaders(settings)))
    pulls = 2 + sum(manifest.media_type != index.root.media_type for manifest in index.manifests)

    dry = mirrors.run(repository(source, target), dry_run=True)

    assert f"; {source.host}: {pulls} of 42 pulls left" in summary_line(dry)
    assert document(dry)["plan"]["quotas"] == {source.host: {"needed": pulls, "remaining": 42, "limit": 100}}
    report = mirrors.run(repository(source, target))
    assert summary_line(report).endswith(f"; {source.host}: 42 of 100 pulls left")
    assert document(report)["quotas"] == {source.host: {"limit": 100, "remaining": 42, "window_s": 21600}}
