"""Fetches, gc and people who delete names, all at once on one store: no fetch fails and nothing that is named is lost.

The fetches run as Prefect's tasks do, without Prefect; gc and the deletions are other processes, with no grace at all.
"""

import logging
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from flows.progress import LogListener
from ocispec import Reference
from ocispec.handlers import dispatch
from storage import completeness, open_store
from storage.verify import verify
from tasks.session import Session, SessionSpec, open_session
from tasks.transfer import Receipt
from tests import images
from tests.fakes.registry import FakeRegistry

REPOSITORY = Path(__file__).parents[2]
ROUNDS = 25
FETCHERS = 3
# They share layers two and two, and are small: it is the order of steps that matters.
IMAGES = [images.index([images.image(seed, layers=2), images.image(seed + 1, layers=2)]) for seed in (700, 701, 702)]

COLLECT = """
import sys
from datetime import timedelta
from storage import gc, open_store
removed = 0
store = open_store(sys.argv[1])
print("ready", flush=True)
while not sys.stdin.closed and not __import__("select").select([sys.stdin], [], [], 0)[0]:
    removed += len(gc.collect(store, grace=timedelta(seconds=-60), dry_run=False).blobs)
print(removed)
"""

FORGET = """
import select, sys
from ocispec.errors import NotFound
from storage import open_store
deleted = 0
store = open_store(sys.argv[1])
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
def going_on(script: str, store: Path) -> Iterator[list[int]]:
    """A loop in a process of its own for the length of the block; afterwards, what it counted."""
    counted: list[int] = []
    with subprocess.Popen(
        [sys.executable, "-c", script, str(store)], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield counted
        finally:
            out, _ = process.communicate("stop\n", timeout=60)
        counted.append(int(out))
    assert process.returncode == 0


def fetch(session: Session, reference: Reference) -> None:
    root = session.resolve(reference)
    if not session.keeper.look(reference, root).whole:
        receipts = list[Receipt]()
        dispatch(session.fetching(reference, receipts), root, workers=2)
        session.keeper.record(reference, root)


def test_no_fetch_fails_and_nothing_that_is_named_is_lost(tmp_path: Path) -> None:
    spec = SessionSpec(store=str(tmp_path))
    with FakeRegistry() as registry:
        for number, image in enumerate(IMAGES):
            images.load(registry, f"app{number}", image, "v1")
        references = [Reference.parse(f"{registry.host}/app{number}:v1") for number in range(len(IMAGES))]

        def fetch_often(first: int) -> None:
            for turn in range(ROUNDS):
                with open_session(spec, observer=LogListener(logging.getLogger("test"))) as session:
                    fetch(session, references[(first + turn) % len(references)])

        with going_on(COLLECT, tmp_path) as removed, going_on(FORGET, tmp_path) as deleted, ThreadPoolExecutor(3) as executor:
            for fetching in [executor.submit(fetch_often, number) for number in range(FETCHERS)]:
                fetching.result()
        with open_session(spec, observer=LogListener(logging.getLogger("test"))) as session:
            fetch(session, references[0])

    store = open_store(str(tmp_path))
    assert removed[0] > 0
    assert deleted[0] > 0
    assert verify(store, store.walk()).corrupt == ()
    assert [completeness.of_name(store, name).whole for name in store.names] == [True] * len(list(store.names))
    assert list(store.names)
    assert not list(store.leases.roots())
