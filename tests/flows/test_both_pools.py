"""push, pull, verify and gc have the same results on the thread pool and as flows."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from prefect_dist.mirror.direct import WholeFetch
from prefect_dist.mirror.gc import run_gc
from prefect_dist.mirror.progress import ProgressCounter, notify_also
from prefect_dist.mirror.pull import run_pull
from prefect_dist.mirror.report import BlobRow, RunReport, UnpackRow
from prefect_dist.mirror.verify import run_verify
from prefect_dist.ocispec import Digest, Platform, Reference
from prefect_dist.ocispec.errors import InvalidInput, NotFound
from prefect_dist.storage import open_store
from prefect_dist.transfer.cancellation import CancelToken, use_token
from prefect_dist.transfer.events import ContentFinished, CorruptContent, Event, ImageEnded, combine_listeners, ignore_event
from prefect_dist.transfer.session import SessionSpec, open_session
from prefect_dist.transfer.threads import ThreadPool
from tests import images
from tests.fakes.faults import Answer, Fault
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import count_requests, fetch_directly, push_directly
from tests.flows.reports import document, error_lines, images_of, result_of
from tests.peers.prefect import PrefectServer
from tests.storage.conformance import Place, blob_path

ARM = images.image(8100, layers=2, platform="linux/arm64")
INDEX = images.index([images.image(8101, layers=2), ARM])
LAYER = list(ARM.blobs)[-1]
Run = Callable[..., Any]


@pytest.fixture
def run(prefect: PrefectServer) -> Run:
    """Runs a flow and returns its report. The final state must agree with the report."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    def call(flow: Run, *arguments: Any, **parameters: Any) -> Any:
        with temporary_settings({PREFECT_API_URL: prefect.url}):
            state = flow(*arguments, return_state=True, **parameters)
        report = result_of(state)
        assert state.type.value == {"complete": "COMPLETED", "failed": "FAILED"}[report.status]
        return report

    return call


@contextmanager
def open_threads(store: Path) -> Iterator[ThreadPool]:
    with open_session(SessionSpec(store=str(store))) as session, ThreadPool(session, window=4, retries=1) as pool:
        yield pool


def outcome(report: RunReport, registry: FakeRegistry, store: Path) -> tuple[object, ...]:
    """Return the content of a report, without durations, hosts and paths."""
    stated = document(report)
    for part in (stated, *stated.get("images", ())):
        part.pop("seconds", None)
    text = json.dumps([error_lines(report), stated]).replace(registry.host, "REGISTRY").replace(str(store), "STORE")
    return report.status, report.tasks, dict(report.counts), text


def load(registry: FakeRegistry) -> str:
    images.load(registry, "app", INDEX, "v1")
    return f"{registry.host}/app:v1"


def fetch_to(store: Path, registry: FakeRegistry) -> str:
    name = load(registry)
    assert fetch_directly(str(store), [name]).status == "complete"
    return name


@pytest.mark.parametrize("is_refused", [False, True])
def test_push_has_the_same_result_on_both_pools(run: Run, source: FakeRegistry, tmp_path: Path, *, is_refused: bool) -> None:
    from prefect_dist.flows.push import push

    store, name = tmp_path / "store", fetch_to(tmp_path / "store", source)

    def with_target(push_to: Callable[[str], RunReport]) -> tuple[object, ...]:
        with FakeRegistry() as target:
            if is_refused:
                path = f"/v2/app/manifests/{ARM.root.digest}"
                target.inject(Fault(method="PUT", path=path, nth=None, action=Answer(400)))
            report = push_to(f"{target.host}/app:v1")
            assert (target.manifest("app", "v1") is None) == is_refused
            return outcome(report, target, store), count_requests(target.requests)

    def run_directly(to: str) -> RunReport:
        events = list[Event]()
        with notify_also(events.append):
            report = push_directly(str(store), name, to, retries=1)
        (ended,) = [event.report for event in events if isinstance(event, ImageEnded)]
        assert (ended.name, bool(ended.failures)) == (f"store:{name}", is_refused)
        sent = [event.descriptor for event in events if isinstance(event, ContentFinished) and event.receipt.status == "pushed"]
        assert {str(one.digest) for one in sent} == INDEX.blobs.keys()
        return report

    assert with_target(run_directly) == with_target(lambda to: run(push, name, to, str(store)))


@pytest.mark.parametrize("is_full", [False, True])
def test_pull_has_the_same_result_on_both_pools(run: Run, tmp_path: Path, *, is_full: bool) -> None:
    from prefect_dist.flows.pull import pull

    def into(kind: str, pull_to: Callable[[str, Path, Path], RunReport]) -> tuple[object, ...]:
        directory, store = tmp_path / kind / "root", tmp_path / kind / "store"
        if is_full:
            directory.mkdir(parents=True)
            (directory / "file").touch()
        with FakeRegistry() as registry:
            report = pull_to(load(registry), directory, store)
            files = sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))
            assert report.status == ("failed" if is_full else "complete")
            return outcome(report, registry, tmp_path / kind), files, count_requests(registry.requests)

    def run_directly(name: str, directory: Path, store: Path) -> RunReport:
        arm, reference = Platform.parse("linux/arm64"), Reference.parse(name)
        with open_threads(store) as pool:
            return run_pull(reference, str(directory), pool, WholeFetch(), ignore_event, platform=arm, referrers=False)

    assert into("threads", run_directly) == into(
        "prefect", lambda name, directory, store: run(pull, name, str(directory), str(store), "linux/arm64")
    )


def test_a_stopped_pull_does_not_unpack(source: FakeRegistry, tmp_path: Path) -> None:
    cancel, directory = CancelToken(), tmp_path / "root"

    def stop(event: Event) -> None:
        if isinstance(event, ImageEnded):
            cancel.set("Ctrl-C")

    with use_token(cancel), open_threads(tmp_path / "store") as pool:
        name = Reference.parse(load(source))
        arm = Platform.parse("linux/arm64")
        report = run_pull(name, str(directory), pool, WholeFetch(), stop, platform=arm, referrers=False)

    assert ([row.outcome for row in images_of(report)], report.status, report.select(UnpackRow)) == (["fetched"], "stopped", [])
    assert not directory.exists()


@pytest.mark.parametrize("repair", [[], "all"], ids=["found", "repaired"])
def test_verify_has_the_same_result_on_both_pools(run: Run, tmp_path: Path, repair: Any) -> None:
    from prefect_dist.flows.verify import verify

    def with_store(kind: str, verify_store: Callable[[Path], RunReport]) -> tuple[object, ...]:
        store = tmp_path / kind
        with FakeRegistry() as registry:
            fetch_to(store, registry)
            Place(url=str(store)).plant(blob_path(Digest.parse(LAYER)), b"wrong")
            before = len(registry.requests)
            report = verify_store(store)
            assert report.counts["corrupt"] == 1
            return outcome(report, registry, store), count_requests(registry.requests[before:])

    def run_directly(store: Path) -> RunReport:
        events, counter = list[Event](), ProgressCounter()
        with open_threads(store) as pool:
            report = run_verify(pool, WholeFetch(), combine_listeners(events.append, counter), repair=repair)
        assert [str(event.digest) for event in events if isinstance(event, CorruptContent)] == [LAYER]
        assert (counter.fraction(), counter.lacks()) == (1, False)
        return report

    assert with_store("threads", run_directly) == with_store("prefect", lambda store: run(verify, str(store), repair))


def test_gc_has_the_same_result_on_both_pools(run: Run, source: FakeRegistry, tmp_path: Path) -> None:
    from prefect_dist.flows.gc import gc

    kinds = tmp_path / "threads", tmp_path / "prefect"
    for store in kinds:
        open_store(str(store)).names.delete(fetch_to(store, source))

    for is_dry in (True, False):
        with open_threads(kinds[0]) as pool:
            direct = run_gc(pool, grace=timedelta(0), dry_run=is_dry)
        shown = run(gc, str(kinds[1]), "0", dry_run=is_dry)
        assert direct.counts["planned" if is_dry else "removed"] == len(INDEX.descriptors)
        assert (direct.status, direct.tasks, direct.counts) == (shown.status, shown.tasks, shown.counts)
        assert {row.digest for row in direct.select(BlobRow)} == {row.digest for row in shown.select(BlobRow)}

    assert [list(open_store(str(store)).walk()) for store in kinds] == [[], []]


def test_gc_raises_the_error_of_its_unit(source: FakeRegistry, tmp_path: Path) -> None:
    fetch_to(tmp_path, source)
    name = next((tmp_path / "names").iterdir())
    name.write_text("no name")
    with open_threads(tmp_path) as pool, pytest.raises(InvalidInput, match=name.stem):
        run_gc(pool, grace=timedelta(0), dry_run=False)
    with open_threads(tmp_path / "missing") as pool, pytest.raises(NotFound, match="no store found"):
        run_gc(pool, grace=timedelta(0), dry_run=False)
