"""Runs and gc at the same time: a name that is recorded while gc removes content is complete, or is not recorded."""

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from prefect_dist.ocispec.errors import DistError
from prefect_dist.ocispec.reference import Reference
from prefect_dist.storage import ContentStore, gc, open_store, presence
from prefect_dist.transfer.recorder import ImageRecorder
from tests import images
from tests.peers.seaweedfs import S3Server
from tests.storage.archives import descriptor
from tests.storage.conformance import Place, ingest, noise
from tests.storage.test_gc import NOW, blobs, put
from tests.storage.test_round_trips import RecordedRequests

IMAGE = images.image(81, layers=3)
REFERENCE = Reference.parse("registry.example/app:v1")
OBJECT_STORES = ["memory", "s3"]


def record_name(place: Place, *, when: threading.Event, outcome: list[str]) -> None:
    """Record a name like a run that finds the content of an image in the store."""
    when.wait(60)
    store = place.open()
    with store.leases.hold() as lease:
        try:
            is_whole = ImageRecorder(store, lease).check_and_name(REFERENCE, descriptor(IMAGE)).is_complete
        except DistError as exc:
            outcome.append(str(exc))
        else:
            outcome.append("recorded" if is_whole else "missing")


def call_before_first_removal(patch: pytest.MonkeyPatch, store: ContentStore, act: Callable[[], None]) -> None:
    """Call a function just before gc removes its first blob."""
    remove, done = store._backend.remove, threading.Event()

    def run(paths: Sequence[str]) -> None:
        if any("/blobs/" in path for path in paths) and not done.is_set():
            done.set()
            act()
        remove(paths)

    patch.setattr(store._backend, "remove", run)


@pytest.mark.parametrize("others", [0, 1200])
def test_a_name_recorded_while_gc_removes_content_never_lacks_content(
    place: Place, store: ContentStore, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    if others and not place.url.startswith("memory"):
        pytest.skip("many blobs take long to write there")
    for number in range(others):
        ingest(store, noise(10, seed=number))
    put(store, IMAGE)
    when, outcome = threading.Event(), list[str]()
    recorder = threading.Thread(target=record_name, args=(place,), kwargs={"when": when, "outcome": outcome}, daemon=True)
    recorder.start()

    def let_it_go_on() -> None:
        when.set()
        recorder.join(3)  # the run ends, or waits for gc

    call_before_first_removal(monkeypatch, store, let_it_go_on)
    swept = gc.collect(store, grace=NOW, dry_run=False)
    recorder.join(60)

    names = list(place.open().names)
    assert outcome == (["recorded"] if names else ["missing"])
    assert all(presence.check_name(store, name).is_complete for name in names)
    assert swept.blobs
    assert swept.lost == ()


def test_a_name_that_is_recorded_before_a_later_batch_keeps_its_content(
    store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gc, "_BATCH", 1)
    root = put(store, IMAGE)
    listed = sorted(IMAGE.descriptors)
    first = store.walk
    monkeypatch.setattr(store, "walk", lambda: sorted(first(), key=lambda info: str(info.digest) == listed[0], reverse=True))
    done: list[bool] = []

    def record() -> None:
        if not done:
            done.append(True)
            store.names.put("late", root, source="x")

    with monkeypatch.context() as patch:
        call_before_first_removal(patch, store, record)
        swept = gc.collect(store, grace=NOW, dry_run=False)

    assert [str(info.digest) for info in swept.blobs] == [listed[0]]
    assert blobs(store) == set(listed[1:])
    ((name, error),) = swept.lost  # a writer without leases: gc reports the lost content
    assert name == "late"
    assert str(error).startswith("recorded while gc ran, 1 descriptor missing in the store (")
    assert str(error).endswith("; fetch the image again")


def test_a_run_waits_only_for_the_batch_that_is_being_removed(
    request: pytest.FixtureRequest, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(url=f"{s3.url}/{request.node.name}", outlives=False, options=s3.storage_options)
    store, other = place.open(), place.open()
    listed, looked = threading.Event(), threading.Event()
    ls = other._backend.fs.ls

    def list_and_tell(*args: Any, **kwargs: Any) -> Any:
        entries = ls(*args, **kwargs)
        listed.set()
        return entries

    monkeypatch.setattr(other._backend.fs, "ls", list_and_tell)

    def look() -> None:
        with other.exclude_gc():
            looked.set()

    with store.begin_sweep():
        threading.Thread(target=look, daemon=True).start()
        assert listed.wait(60)
        later = store.begin_sweep()
        later.__enter__()
        assert not looked.is_set()
    assert looked.wait(60)
    later.__exit__(None, None, None)
    assert not [path for path in place.files() if path.endswith(".gc")]


def test_a_run_lists_once_and_does_not_wait_when_no_batch_is_being_removed(
    request: pytest.FixtureRequest, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"{s3.url}/{request.node.name}", options=s3.storage_options)
    with store.begin_sweep():
        pass
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("it waits"))
    recorded = RecordedRequests(monkeypatch, store)
    with store.exclude_gc():
        assert recorded.methods == ["list_objects_v2"]


@pytest.mark.parametrize("place", OBJECT_STORES, indirect=True)
def test_the_marker_of_a_dead_gc_expires_and_is_removed(
    place: Place, store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.plant("sweeps/dead.gc", b"gc\n")
    monkeypatch.setattr("prefect_dist.storage.sweeps._LIFE", timedelta(seconds=2))
    with store.exclude_gc():
        pass
    assert "sweeps/dead.gc" in place.files()
    later = store.clock() + timedelta(hours=2)
    assert [path.rpartition("/")[2] for path in store.sweep_leftovers(later, later, dry_run=False)] == ["dead.gc"]
    assert "sweeps/dead.gc" not in place.files()


@pytest.mark.parametrize("place", OBJECT_STORES, indirect=True)
def test_gc_removes_nothing_based_on_outdated_names(place: Place, store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, IMAGE)
    monkeypatch.setattr("prefect_dist.storage.sweeps._BATCH_S", -1.0)
    with pytest.raises(DistError, match="reading names and leases takes too long"):
        gc.collect(store, grace=NOW, dry_run=False)
    assert blobs(store) == set(IMAGE.descriptors)
    assert not [path for path in place.files() if path.startswith("sweeps/")]


def test_gc_on_a_machine_with_a_wrong_clock_keeps_recent_content(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(days=400)

    put(store, IMAGE)
    with store.leases.hold() as lease:
        lease.take(put(store, images.image(82)))
        for module in ("prefect_dist.storage.gc", "prefect_dist.storage.leases"):
            monkeypatch.setattr(f"{module}.datetime", Ahead)
        assert not gc.collect(store, grace=timedelta(hours=1), dry_run=False).blobs
        swept = gc.collect(store, grace=NOW, dry_run=False)
    assert {str(info.digest) for info in swept.blobs} == set(IMAGE.descriptors) - set(images.image(82).descriptors)


def test_reading_the_clock_of_a_store_leaves_no_files(place: Place, store: ContentStore) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)
    assert before < store.clock() < datetime.now(UTC) + timedelta(seconds=2)
    assert not place.files()


def test_many_blobs_are_removed_by_few_requests(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(url=f"{s3.url}/few-requests", outlives=False, options=s3.storage_options)
    store = place.open()
    for number in range(30):
        ingest(store, noise(10, seed=number))
    fs, called = store._backend.fs, list[str]()
    call = fs.call_s3

    def record_call(method: str, **arguments: Any) -> Any:
        called.extend(["delete_objects blobs"] if method == "delete_objects" and "/blobs/" in str(arguments) else [])
        return call(method, **arguments)

    monkeypatch.setattr(fs, "call_s3", record_call)
    assert len(gc.collect(store, grace=NOW, dry_run=False).blobs) == 30
    assert called == ["delete_objects blobs"]
