"""The files of divided runs: gc removes those of an abandoned run as a whole, and a run removes its own."""

import os
import uuid
from datetime import timedelta
from pathlib import Path

import pytest

from prefect_dist.storage import ContentStore, open_store

DAY = timedelta(days=1)


@pytest.fixture(params=["disk", "objects"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ContentStore:
    return open_store(str(tmp_path / "store") if request.param == "disk" else f"memory://{uuid.uuid4().hex}")


def age(store: ContentStore, path: str, by: timedelta) -> None:
    """Change the modification time of a file or directory of a store to an earlier time."""
    if store.has_locks:
        then = Path(path).stat().st_mtime - by.total_seconds()
        os.utime(path, (then, then))
    else:
        store._backend.fs.store[path].created -= by


def sweep(store: ContentStore, *, dry_run: bool = False) -> set[str]:
    """Return the paths that gc removes, below the directory of runs."""
    now = store.clock()
    runs = store._layout.runs
    return {path.removeprefix(f"{runs}/") for path in store.sweep_leftovers(now, now - DAY, dry_run=dry_run)}


def test_gc_keeps_the_old_inputs_of_waiting_shards_while_a_shard_of_the_run_is_alive(store: ContentStore) -> None:
    run = store.open_run("run-1")
    for name in ("shard-0.json", "shard-1.json", "alive-0.json"):
        run.write(name, b"{}")
    for name in ("shard-0.json", "shard-1.json"):
        age(store, f"{store._layout.run('run-1')}/{name}", 2 * DAY)

    assert sweep(store) == set()
    assert run.read("shard-1.json") == b"{}"


def test_gc_removes_the_files_of_an_abandoned_run_and_its_directory(store: ContentStore) -> None:
    directory = store._layout.run("run-1")
    old, new = store.open_run("run-1"), store.open_run("run-2")
    for run in (old, new):
        for name in ("shard-0.json", "alive-0.json"):
            run.write(name, b"{}")
    for name in ("shard-0.json", "alive-0.json"):
        age(store, f"{directory}/{name}", 2 * DAY)
    if store.has_locks:
        age(store, directory, 2 * DAY)

    expected = {"run-1/shard-0.json", "run-1/alive-0.json"}
    assert sweep(store, dry_run=True) == expected
    assert old.read("shard-0.json") == b"{}"
    assert sweep(store) == expected
    assert [path.rpartition("/")[2] for path in store._backend.fs.ls(store._layout.runs, detail=False)] == ["run-2"]


def test_a_run_removes_its_files_and_its_directory(store: ContentStore) -> None:
    run = store.open_run("run-1")
    run.write("shard-0.json", b"{}")

    run.remove()
    run.remove()

    assert store._backend.fs.ls(store._layout.runs, detail=False) == [] if store.has_locks else run.read("shard-0.json") is None


def test_gc_keeps_the_new_empty_directory_of_a_run_and_removes_an_old_one(tmp_path: Path) -> None:
    store, new, old = open_store(str(tmp_path)), tmp_path / "runs/new", tmp_path / "runs/old"
    for directory in (new, old):
        directory.mkdir(parents=True)
    age(store, str(old), 2 * DAY)

    assert sweep(store) == set()
    assert list((tmp_path / "runs").iterdir()) == [new]
