"""Links in place of directories of a store: gc and the end of a run remove nothing outside of the store."""

import os
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import Denied
from prefect_dist.storage import ContentStore, gc, open_store
from tests.storage.conformance import blob_path, ingest, ingest_path

DIGEST = Digest.of(b"layer")
DAY = timedelta(days=1)
CLAIM = f"sha256-{DIGEST.hex}"
UNIQUE = f"{uuid.uuid4().hex}.new"
# The names of files of a store, whose removal gc would accept in a directory of the store.
STORE_FILES = (
    "shard-0.json",
    "result-0.json",
    "alive-0.json",
    "alive.json",
    CLAIM,
    f"{CLAIM}.lock",
    f"{CLAIM}.{UNIQUE}",
    DIGEST.hex,
    f"{DIGEST.hex}.json",
    f"{DIGEST.hex}.lock",
    f"x.{UNIQUE}",
    "x.gc",
)
FOREIGN_FILES = ("notes.txt", "shard.json", "results-1.json", "sha256-1234", "alive-1.json.bak", ".bashrc")


def make_older(path: Path) -> None:
    then = path.lstat().st_mtime - 3 * DAY.total_seconds()
    os.utime(path, (then, then), follow_symlinks=False)


def fill(directory: Path, names: tuple[str, ...] = STORE_FILES + FOREIGN_FILES) -> None:
    """Make a directory with old files."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).write_text(name)
        make_older(directory / name)
    make_older(directory)


def list_files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A directory outside of the store with files and with directories."""
    directory = tmp_path / "victim"
    fill(directory)
    for name in ("documents", "empty"):
        fill(directory / name, STORE_FILES + FOREIGN_FILES if name == "documents" else ())
    make_older(directory)
    return directory


@pytest.fixture
def store(root: Path) -> Iterator[ContentStore]:
    with open_store(str(root)) as store:
        store.prepare()
        yield store


def collect(store: ContentStore, *, dry_run: bool) -> tuple[str, ...]:
    return gc.collect(store, grace=DAY, dry_run=dry_run).leftovers


@pytest.mark.parametrize("linked", ["runs", "claims", "leases", "ingest", "sweeps", "names", "runs/run-1", "claims/x.example"])
def test_gc_removes_nothing_behind_a_link_in_place_of_a_directory(
    store: ContentStore, root: Path, victim: Path, linked: str
) -> None:
    for path in victim.glob("*.json"):
        if linked == "names":  # gc refuses damaged names
            path.unlink()
        elif linked == "leases":
            path.write_text('{"roots": []}')
            os.utime(path, (0, 0))
    before = list_files(victim)
    link = root / linked
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(victim)

    assert collect(store, dry_run=True) == ()
    assert collect(store, dry_run=False) == ()
    assert list_files(victim) == before


def test_gc_removes_no_ingest_behind_a_link_that_replaces_the_directory_meanwhile(
    store: ContentStore, root: Path, victim: Path
) -> None:
    refs = ("first", "second")
    for ref in refs:
        with store.writer(ref) as writer:
            writer.write(b"some")
    for path in list((root / "ingest").iterdir()):
        make_older(path)
        fill(victim, (path.name,))
    before = list_files(victim)
    now = store.clock()

    swept = store.sweep_leftovers(now, now - DAY, dry_run=False)
    assert next(swept).removeprefix(f"{root}/") in map(ingest_path, refs)
    (root / "ingest").rename(root / "moved")
    (root / "ingest").symlink_to(victim)
    with pytest.raises(Denied, match="ingest is a symbolic link, and nothing is removed through it; use a directory instead"):
        list(swept)

    assert list_files(victim) == before


@pytest.mark.parametrize("linked", ["runs", "runs/run-1"])
def test_the_end_of_a_run_removes_nothing_behind_a_link(store: ContentStore, root: Path, tmp_path: Path, linked: str) -> None:
    run = store.open_run("run-1")
    run.write("shard-0.json", b"{}")
    outside = tmp_path / "outside"
    fill(outside / "run-1")
    before = list_files(outside)
    (root / linked).rename(root / "moved")
    (root / linked).symlink_to(outside if linked == "runs" else outside / "run-1")
    with pytest.raises(Denied, match=f"{linked} is a symbolic link"):
        run.remove()
    assert list_files(outside) == before


def test_gc_and_the_end_of_a_run_remove_only_files_with_names_of_the_store(store: ContentStore, root: Path) -> None:
    for directory in ("runs/old", "runs/ended", "claims/x.example"):
        fill(root / directory)
    store.open_run("ended").remove()
    run_files = {name for name in STORE_FILES if name.startswith(("shard", "result", "alive"))}
    everything = {*STORE_FILES, *FOREIGN_FILES}
    assert list_files(root / "runs/ended") == everything - run_files

    collect(store, dry_run=False)
    assert list_files(root / "runs/old") == everything - run_files
    assert list_files(root / "claims/x.example") == {name for name in everything if not name.startswith(CLAIM)}


def link_root(tmp_path: Path, root: Path) -> None:
    (tmp_path / "data").mkdir()
    root.symlink_to(tmp_path / "data")


def link_parent(tmp_path: Path, root: Path) -> None:
    (tmp_path / "data").mkdir()
    root.parent.symlink_to(tmp_path / "data")
    root.mkdir()


def link_blobs(tmp_path: Path, root: Path) -> None:
    (tmp_path / "data").mkdir()
    root.mkdir()
    (root / "blobs").symlink_to(tmp_path / "data")


@pytest.mark.parametrize("link", [link_root, link_parent, link_blobs])
def test_a_store_below_a_link_works(tmp_path: Path, link: Callable[[Path, Path], None]) -> None:
    root = tmp_path / "srv" / "store" if link is link_parent else tmp_path / "store"
    link(tmp_path, root)
    with open_store(str(root)) as store:
        unneeded = ingest(store, b"unneeded")
        with store.writer("ref") as writer:
            writer.write(b"some")
        run, old = store.open_run("run-1"), store.open_run("run-2")
        for one in (run, old):
            one.write("shard-0.json", b"{}")
        run.remove()
        with store.claims.hold("x.example", DIGEST, pause=lambda _: None) as claim:
            claim.note = "app"
        for path in (
            blob_path(unneeded),
            ingest_path("ref"),
            f"{ingest_path('ref')}.json",
            "runs/run-2/shard-0.json",
            "runs/run-2",
        ):
            make_older(root / path)
        for claim_file in (root / "claims/x.example").iterdir():
            make_older(claim_file)

        swept = gc.collect(store, grace=DAY, dry_run=False)

    assert [info.digest for info in swept.blobs] == [unneeded]
    assert {path.removeprefix(f"{root}/") for path in swept.leftovers} == {
        ingest_path("ref"),
        "runs/run-2/shard-0.json",
        f"claims/x.example/{CLAIM}",
        f"claims/x.example/{CLAIM}.lock",
    }
    assert list((root / "runs").iterdir()) == list((root / "ingest").iterdir()) == []


def test_the_end_of_a_run_reports_a_link_in_place_of_its_directory_even_if_nothing_is_to_be_removed(
    store: ContentStore, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    (root / "runs").mkdir()
    (root / "runs/run-1").symlink_to(tmp_path / "outside")
    with pytest.raises(Denied, match="run-1 is a symbolic link, and nothing is removed through it; use a directory instead"):
        store.open_run("run-1").remove()
