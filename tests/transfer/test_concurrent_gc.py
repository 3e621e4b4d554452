"""Fetches and imports run on a store while other processes run gc and delete names. No run fails, and no named content is lost.

The fetches use the functions of the Prefect tasks, without Prefect. gc has no grace period.
"""

import io
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from prefect_dist.ocispec import Reference
from prefect_dist.storage import presence
from prefect_dist.storage.archive import import_images
from prefect_dist.storage.verify import verify
from prefect_dist.transfer.session import Session, SessionSpec, open_session
from tests import images
from tests.fakes.registry import FakeRegistry
from tests.peers.processes import PATIENCE_S
from tests.storage.archives import export_to_bytes, memory_store, put
from tests.storage.conformance import Place
from tests.transfer.content import fetch_tree

REPOSITORY = Path(__file__).parents[2]
ROUNDS = {"disk": 25, "s3": 2}
FETCHERS = 3
# The images are small, and neighbours share layers: the tests depend on the order of steps only.
IMAGES = [images.index([images.image(seed, layers=2), images.image(seed + 1, layers=2)]) for seed in (700, 701, 702)]

GC_LOOP = """
import json, sys
from datetime import timedelta
from prefect_dist.storage import gc, open_store
removed = 0
store = open_store(sys.argv[1], options=json.loads(sys.argv[2]))
print("ready", flush=True)
while not sys.stdin.closed and not __import__("select").select([sys.stdin], [], [], 0)[0]:
    swept = gc.collect(store, grace=timedelta(seconds=-60), dry_run=False)
    assert not swept.lost, swept.lost
    removed += len(swept.blobs)
print(removed)
"""

DELETE_LOOP = """
import json, select, sys
from prefect_dist.ocispec.errors import NotFound
from prefect_dist.storage import open_store
deleted = 0
store = open_store(sys.argv[1], options=json.loads(sys.argv[2]))
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0.01)[0]:
    for name in list(store.names):
        try:
            store.names.delete(name.name)
            deleted += 1
        except NotFound:
            pass
print(deleted)
"""


@contextmanager
def run_loop(script: str, place: Place) -> Iterator[list[int]]:
    """Run a loop in another process during the block. After the block, the yielded list has the count of the loop."""
    counted: list[int] = []
    argv = [sys.executable, "-c", script, place.url, json.dumps(place.options)]
    with subprocess.Popen(argv, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield counted
        finally:
            out, _ = process.communicate("stop\n", timeout=PATIENCE_S)
        counted.append(int(out))
    assert process.returncode == 0


def fetch(session: Session, reference: Reference) -> None:
    root = session.open_source(reference).resolve(reference)
    if not session.recorder.check_and_name(reference, root).is_complete:
        fetch_tree(session, reference, root, workers=2)
        session.recorder.record(reference, root)


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "disk":
        return Place(url=str(tmp_path / "store"))
    server = request.getfixturevalue("s3")
    return Place(url=f"{server.url}/{uuid.uuid4().hex}", options=server.storage_options)


def rounds(place: Place) -> int:
    return ROUNDS["s3" if place.options else "disk"]


def assert_nothing_is_lost(place: Place, removed: list[int]) -> None:
    store = place.open()
    assert removed[0] > 0
    assert verify(store, store.walk()).corrupt == ()
    assert [presence.check_name(store, name).is_complete for name in store.names] == [True] * len(list(store.names))
    assert list(store.names)
    assert not list(store.leases.roots())


def test_no_fetch_fails_during_gc_and_no_named_content_is_lost(place: Place) -> None:
    spec = SessionSpec(store=place.url, store_options=place.options)
    place.open().prepare()
    with FakeRegistry() as registry:
        for number, image in enumerate(IMAGES):
            images.load(registry, f"app{number}", image, "v1")
        references = [Reference.parse(f"{registry.host}/app{number}:v1") for number in range(len(IMAGES))]

        def fetch_often(first: int) -> None:
            for turn in range(rounds(place)):
                with open_session(spec) as session:
                    fetch(session, references[(first + turn) % len(references)])

        with run_loop(GC_LOOP, place) as removed, run_loop(DELETE_LOOP, place) as deleted, ThreadPoolExecutor(3) as executor:
            for fetching in [executor.submit(fetch_often, number) for number in range(FETCHERS)]:
                fetching.result()
        with open_session(spec) as session:
            fetch(session, references[0])

    assert deleted[0] > 0
    assert_nothing_is_lost(place, removed)


def test_no_import_fails_during_gc_and_no_named_content_is_lost(place: Place) -> None:
    source = memory_store()
    for number, image in enumerate(IMAGES):
        put(source, image, f"registry.example/app{number}:v1")
    archive = export_to_bytes(source, *(f"registry.example/app{number}:v1" for number in range(len(IMAGES))))
    store = place.open()
    store.prepare()

    with run_loop(GC_LOOP, place) as removed, run_loop(DELETE_LOOP, place) as deleted:
        for _ in range(rounds(place)):
            outcomes = import_images(store, io.BytesIO(archive), source="test")
            assert [outcome.error for outcome in outcomes] == [None] * len(IMAGES)
    import_images(store, io.BytesIO(archive), source="test")

    assert deleted[0] > 0
    assert_nothing_is_lost(place, removed)
