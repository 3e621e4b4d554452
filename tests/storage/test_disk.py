"""Behaviour that only a real disk shows: other processes, crashes, the order of writes, and failing disks."""

import contextlib
import errno
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.ocispec.errors import Busy, Corrupt, Denied, DistError, InvalidInput, NotFound, Unavailable
from prefect_dist.storage import ContentStore, StoreFull, open_store
from prefect_dist.storage.disk import Disk
from prefect_dist.storage.files import FileWriter
from tests.storage.conformance import Place, assert_resumes, blob_path, ingest, ingest_path, noise
from tests.storage.steps import Steps

REPOSITORY = Path(__file__).parents[2]
DATA = noise(100_000)
DIGEST = Digest.of(DATA)
BIG = noise(1_100_000)  # larger than 1 MiB, so that the ingest is recorded when it begins
DESCRIPTOR = Descriptor(media_type="application/vnd.oci.image.manifest.v1+json", digest=DIGEST, size=len(DATA))
BLOB, INGEST, RECORD = blob_path(DIGEST), ingest_path("ref"), ingest_path("ref") + ".json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> ContentStore:
    return open_store(str(root))


def disk_of(store: ContentStore) -> Disk:
    assert isinstance(store._backend, Disk)
    return store._backend


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Start Python code in a separate process. The code gets `arguments` as sys.argv[1:]."""
    argv = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(argv, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def blobs(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in (root / "blobs").rglob("*") if path.is_file()}


@pytest.mark.parametrize("percent", [0, 10, 50, 90, 100])
def test_a_large_ingest_is_resumed_where_another_store_stopped(root: Path, percent: int) -> None:
    assert_resumes(Place(url=str(root)), (open_store(str(root)), open_store(str(root))), 20_000_000, percent=percent)


# Two processes

HOLD = """
import sys
from prefect_dist.storage import open_store
with open_store(sys.argv[1]).writer("ref", total=int(sys.argv[2])) as writer:
    writer.write(b"x" * 60_000)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("total", "how_far"),
    [(100_000, " is active; wait until it ends"), (2_000_000, r" has been active since .* UTC and is at byte 60000")],
)
def test_a_ref_is_locked_against_other_processes_until_its_holder_ends(
    root: Path, store: ContentStore, total: int, how_far: str
) -> None:
    with start(HOLD, root, total) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=f"^ref: another writer{how_far}$"):
            store.writer("ref", total=total)
        holder.communicate()
    with store.writer("ref", total=total) as writer:
        assert writer.offset == 60_000


@pytest.mark.parametrize(("total", "kept"), [(100_000, 0), (2_000_000, 60_000)])
def test_the_ingest_of_a_killed_writer_is_resumed_unless_it_is_small(
    root: Path, store: ContentStore, total: int, kept: int
) -> None:
    with start(HOLD, root, total) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.kill()
        assert holder.wait() == -signal.SIGKILL
    assert (root / INGEST).stat().st_size == 60_000
    assert len(list(store.active())) == (kept > 0)
    with store.writer("ref", total=total) as writer:
        assert writer.offset == kept
        writer.write(b"y" * (total - kept))
        digest = writer.commit()
    assert (root / blob_path(digest)).read_bytes() == b"x" * kept + b"y" * (total - kept)
    assert not list((root / "ingest").iterdir())


@pytest.mark.parametrize("next_total", [7, 100_001, 2_000_000, None])
def test_the_data_of_a_killed_small_ingest_is_not_mixed_with_another_ingest(
    root: Path, store: ContentStore, next_total: int | None
) -> None:
    with start(HOLD, root, 100_000) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.kill()
    with store.writer("ref", total=next_total) as writer:
        assert writer.offset == 0
        writer.write(b"next")
        assert writer.commit(size=4) == Digest.of(b"next")
    assert not list((root / "ingest").iterdir())


UPDATE = """
import sys
from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.storage import open_store
store, sender = open_store(sys.argv[1]), sys.argv[2]
descriptor = Descriptor(media_type="application/vnd.oci.image.manifest.v1+json", digest=Digest.of(b"data"), size=4)
print("ready", flush=True)
sys.stdin.read()
for number in range(5):
    with store.writer(f"{sender}-{number}") as writer:
        writer.write(b"data")
        writer.commit()
    store.names.put(f"{sender}-{number}", descriptor, source="x")
    store.update_index()
"""


def test_many_processes_update_one_new_index(root: Path) -> None:
    senders = [start(UPDATE, root, sender) for sender in range(5)]
    for sender in senders:
        assert sender.stdout is not None
        assert sender.stdin is not None
        assert sender.stdout.readline() == "ready\n"
        sender.stdin.close()  # go
    index = root / "index.json"
    while any(sender.poll() is None for sender in senders):
        if index.exists():
            assert json.loads(index.read_bytes())["schemaVersion"] == 2
    for sender in senders:
        assert sender.stdout is not None
        sender.stdout.close()
    assert [sender.returncode for sender in senders] == [0] * 5
    names = [entry["annotations"]["org.opencontainers.image.ref.name"] for entry in json.loads(index.read_bytes())["manifests"]]
    assert names == sorted(f"{sender}-{number}" for sender in range(5) for number in range(5))
    assert not list((root / "ingest").iterdir())


# One writer after another on one ref


@pytest.mark.parametrize("total", [len(DATA), None])
@pytest.mark.parametrize("next_total", [len(DATA), 7, None])
@pytest.mark.parametrize("closed", [False, True])
def test_a_writer_that_starts_right_after_a_commit_keeps_its_ingest(
    root: Path, store: ContentStore, total: int | None, next_total: int | None, monkeypatch: pytest.MonkeyPatch, *, closed: bool
) -> None:
    """A commit renames the locked file, so the next writer can start before the first writer has removed its record."""
    disk = disk_of(store)
    publish, followers = disk.publish, []

    def publish_and_follow(*args: Any) -> None:
        publish(*args)
        follower = open_store(str(root)).writer("ref", total=next_total)
        follower.write(b"next")
        followers.append(follower)
        if closed:
            follower.close()

    monkeypatch.setattr(disk, "publish", publish_and_follow)
    with store.writer("ref", total=total) as writer:
        writer.write(DATA)
        assert writer.commit() == DIGEST
    if total is None or next_total is None:  # the only record is that of the following writer
        assert store.status("ref").total == next_total
    followers[0].close()
    assert store.status("ref").total == next_total
    with store.writer("ref", total=next_total) as resumed:
        assert resumed.offset == 4


@pytest.mark.parametrize("data", [b"", DATA])
@pytest.mark.parametrize("next_total", [7, None])
def test_a_commit_that_fails_after_its_rename_does_not_affect_the_next_writer(
    root: Path, store: ContentStore, monkeypatch: pytest.MonkeyPatch, data: bytes, next_total: int | None
) -> None:
    """The rename releases the lock although the writer is still open."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with store.writer("ref", total=len(data)) as writer:
        writer.write(data)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fchmod", fail)
            with pytest.raises(Unavailable):
                writer.commit()
        follower = store.writer("ref", total=next_total)
        follower.write(b"next")
    assert (root / RECORD).exists() == (next_total is None)
    assert follower.commit(size=4) == Digest.of(b"next")
    assert not list((root / "ingest").iterdir())


def test_a_small_commit_that_fails_after_its_rename_leaves_no_record(
    root: Path, store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fchmod", fail)
    with pytest.raises(Unavailable):
        ingest(store, DATA)
    assert not list((root / "ingest").iterdir())


def test_a_file_that_replaced_the_data_of_an_ingest_is_not_published(root: Path, store: ContentStore) -> None:
    with store.writer("ref") as writer:
        writer.write(DATA)
        assert isinstance(writer, FileWriter)
        (root / INGEST).unlink()
        (root / INGEST).write_bytes(noise(len(DATA), seed=2))
        with pytest.raises(NotFound, match=f"ref: committing {DIGEST}: not found"):
            writer.commit()
    assert blobs(root) == set()


# The order of writes to the disk


def test_blobs_are_read_only(root: Path, store: ContentStore) -> None:
    ingest(store, DATA)
    assert stat.S_IMODE((root / BLOB).stat().st_mode) == 0o444


@pytest.mark.parametrize("total", [len(BIG), None])
def test_a_commit_is_durable_before_it_is_visible_and_removes_its_record_last(
    root: Path, store: ContentStore, monkeypatch: pytest.MonkeyPatch, total: int | None
) -> None:
    ingest(store, b"so that all directories are there")
    with store.writer("ref", total=total) as writer:
        writer.write(BIG)
        steps = Steps(root, monkeypatch.setattr)
        writer.commit()
    blob = blob_path(Digest.of(BIG))
    assert steps.seen == [
        ("fsync", INGEST),
        ("replace", INGEST, blob),
        ("fchmod", blob),
        ("fsync", "blobs/sha256"),
        ("remove", RECORD),
        ("remove", INGEST),
    ]


def test_a_small_commit_is_durable_before_it_is_visible_and_removes_nothing(
    root: Path, store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(store, b"so that all directories are there")
    steps = Steps(root, monkeypatch.setattr)
    with store.writer("ref", expected=DIGEST, total=len(DATA)) as writer:
        writer.write(DATA)
        assert [path.name for path in (root / "ingest").iterdir()] == [Path(INGEST).name]
        writer.commit()
    assert steps.seen == [("fsync", INGEST), ("replace", INGEST, BLOB), ("fchmod", BLOB), ("fsync", "blobs/sha256")]
    assert not list((root / "ingest").iterdir())


def test_new_directories_are_durable_before_they_contain_a_blob(
    root: Path, store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.writer("ref", total=len(DATA)) as writer:
        writer.write(DATA)
        steps = Steps(root, monkeypatch.setattr)
        writer.commit()
    rename = ("replace", INGEST, BLOB)
    made = [("mkdir", "blobs"), ("fsync", "."), ("mkdir", "blobs/sha256"), ("fsync", "blobs"), rename]
    assert [step for step in steps.seen if step in made] == [
        rename,
        *made,
    ]  # the first rename fails, since the directory is missing


def test_a_small_file_is_durable_before_it_replaces_the_old_one(
    root: Path, store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.names.put("name", DESCRIPTOR, source="x")
    steps = Steps(root, monkeypatch.setattr)
    store.names.put("name", DESCRIPTOR, source="y")
    (path,) = (str(path.relative_to(root)) for path in (root / "names").iterdir())
    ((_, new), *_) = steps.seen
    assert steps.seen == [("fsync", new), ("replace", new, path), ("fsync", "names")]


def test_an_abort_removes_the_record_while_it_holds_the_ref(
    root: Path, store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.writer("ref") as writer:
        steps = Steps(root, monkeypatch.setattr)
        writer.abort()
    assert steps.seen == [("remove", RECORD), ("remove", INGEST)]


def test_an_abort_of_a_small_ingest_drops_its_data(root: Path, store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.writer("ref", total=len(DATA)) as writer:
        writer.write(DATA)
        steps = Steps(root, monkeypatch.setattr)
        writer.abort()
    assert steps.seen == [("remove", RECORD), ("remove", INGEST)]  # only an attempt to remove the record, which does not exist
    assert not list((root / "ingest").iterdir())


# Crashes and interrupts

CRASH = """
import itertools, os, signal, sys
from pathlib import Path
from prefect_dist.storage import open_store
from tests.storage.conformance import noise
from tests.storage.steps import Steps

size = int(sys.argv[2])

def commit(root, stop_at):
    def before(step):
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGKILL)

    root.mkdir()
    Steps(root, setattr, before=before)
    with open_store(str(root)).writer("ref", total=size) as writer:
        writer.write(noise(size))
        writer.commit()

for step in itertools.count():
    if (child := os.fork()) == 0:  # cheaper than a new interpreter for each step
        commit(Path(sys.argv[1], str(step)), step)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        sys.exit(status)
"""


BOTH_KINDS = pytest.mark.parametrize("data", [DATA, BIG], ids=["small", "big"])


def assert_sound_and_resumable(root: Path, data: bytes) -> None:
    """Check that no wrong blob is visible, and that the ingest `ref` can be completed from any state."""
    store = open_store(str(root))
    for info in store.walk():
        assert b"".join(store.chunks(info.digest)) == data
    with store.writer("ref", total=len(data)) as writer:
        writer.write(data[writer.offset :])
        assert writer.commit() == Digest.of(data)
    assert (root / blob_path(Digest.of(data))).read_bytes() == data
    assert json.loads((root / "oci-layout").read_bytes())
    assert json.loads((root / "index.json").read_bytes())
    assert not list((root / "ingest").iterdir())


@BOTH_KINDS
def test_a_crash_at_any_system_call_leaves_no_wrong_blob_and_is_resumable(tmp_path: Path, data: bytes) -> None:
    with start(CRASH, tmp_path, len(data)) as writers:
        writers.communicate()
    assert writers.returncode == 0
    roots = list(tmp_path.iterdir())
    assert len(roots) > 15
    for root in roots:
        assert_sound_and_resumable(root, data)


def is_interrupted_at(step: int, error: BaseException, root: Path, data: bytes) -> bool:
    """Commit, and raise `error` before a step. Return False if the commit has fewer steps."""

    def stop(number: int) -> None:
        if number == step:
            raise error

    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        steps = Steps(root, patch.setattr, before=stop)
        try:
            ingest(open_store(str(root)), data)
        except (KeyboardInterrupt, DistError):
            return True
        return len(steps.seen) >= step


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))])
@BOTH_KINDS
def test_an_interrupt_at_any_system_call_leaves_no_wrong_blob_and_is_resumable(
    tmp_path: Path, error: BaseException, data: bytes
) -> None:
    step = 0
    while is_interrupted_at(step, error, tmp_path / str(step), data):
        ingests = list((tmp_path / str(step)).glob("ingest/*"))
        assert all(os.access(path, os.W_OK) and path.stat().st_mode & stat.S_IWUSR for path in ingests)
        assert_sound_and_resumable(tmp_path / str(step), data)
        step += 1
    assert step > 15


def test_a_record_that_cannot_be_removed_does_not_fail_a_commit(
    root: Path, store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    with store.writer("ref") as writer, monkeypatch.context() as patch:
        writer.write(DATA)
        patch.setattr(os, "remove", refuse)
        assert writer.commit() == DIGEST
    assert blobs(root) == {BLOB}
    with store.writer("ref") as writer:
        assert writer.offset == 0


def test_an_interrupted_put_leaves_the_old_content_and_no_temporary_file(
    root: Path, store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = store.names.put("name", DESCRIPTOR, source="old")

    def interrupt(source: str, target: str) -> None:
        assert source.startswith(target)
        assert source.endswith(".new")
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.names.put("name", DESCRIPTOR, source="new")
    assert store.names.get("name") == old
    assert len(list((root / "names").iterdir())) == 1


# Failing disks


@contextmanager
def mount_small_disk(directory: Path, size_bytes: int) -> Iterator[Path]:
    """Mount a small disk of its own, which needs root."""
    directory.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(directory)],
        check=False,
        capture_output=True,
        text=True,
    )
    if made.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {made.stderr.partition(chr(10))[0]}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mount_small_disk(tmp_path / "disk", 2_000_000) as disk:
        yield disk


def test_a_store_on_two_file_systems_is_refused_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with mount_small_disk(tmp_path / "store" / "blobs", 2_000_000) as blobs:
        ingests = tmp_path / "store" / "ingest"
        with pytest.raises(
            InvalidInput, match=rf": {ingests}/.* and {blobs}/.* are on different file systems; keep the whole store on one"
        ):
            ingest(open_store(str(tmp_path / "store")), b"data")


ROOM = "free some space and run again, the run resumes"


def use_up(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))


def fill(store: ContentStore, data: bytes, *, piece_bytes: int) -> None:
    with store.writer("ref", expected=Digest.of(data), total=len(data)) as writer:
        for start in range(writer.offset, len(data), piece_bytes):
            writer.write(data[start : start + piece_bytes])
        writer.commit()


@pytest.mark.parametrize("piece_bytes", [1_000, 300_000])
def test_on_a_full_disk_an_ingest_is_kept_and_resumed_later(small_disk: Path, piece_bytes: int) -> None:
    store, data = open_store(str(small_disk / "store")), noise(1_500_000)
    (small_disk / "filler").write_bytes(bytes(1_000_000))
    with pytest.raises(StoreFull) as caught:
        fill(store, data, piece_bytes=piece_bytes)
    assert str(caught.value) == f"ref: writing to {small_disk}/store/{INGEST}: No space left on device; {ROOM}"
    assert not caught.value.retryable
    assert blobs(small_disk / "store") == set()
    offset = store.status("ref").offset
    assert offset > 500_000
    (small_disk / "filler").unlink()
    with store.writer("ref", expected=Digest.of(data), total=len(data)) as writer:
        assert writer.offset == offset
        writer.write(data[offset:])
        digest = writer.commit()
    assert (small_disk / "store" / blob_path(digest)).read_bytes() == data


def test_a_writer_on_a_full_disk_commits_no_partial_content(small_disk: Path) -> None:
    store, data = open_store(str(small_disk / "store")), noise(3_000_000)
    with store.writer("ref") as writer:
        writer.write(data[:1_000_000])
        with pytest.raises(StoreFull):
            writer.write(data[1_000_000:])
        with pytest.raises(Corrupt, match=r"expected 1000000 bytes in .*; open the ingest again to resume it"):
            writer.commit()
    assert blobs(small_disk / "store") == set()


def test_an_ingest_can_be_aborted_on_a_full_disk(small_disk: Path) -> None:
    store = open_store(str(small_disk / "store"))
    with store.writer("ref") as writer:
        writer.write(b"still in the file object's buffer")
        use_up(small_disk)
        writer.abort()
    assert not list((small_disk / "store/ingest").iterdir())


def test_a_small_ingest_without_space_for_its_record_is_dropped(small_disk: Path) -> None:
    store = open_store(str(small_disk / "store"))
    writer = store.writer("ref", total=len(DATA))
    writer.write(DATA[:-1])
    use_up(small_disk)
    with pytest.raises(StoreFull, match=r"^ref: closing "):
        writer.close()
    assert not list((small_disk / "store/ingest").iterdir())
    assert ingest(store, DATA[:-1]) == Digest.of(DATA[:-1])  # in the space that it had before


def test_a_name_without_space_leaves_the_old_record_and_no_temporary_file(small_disk: Path) -> None:
    store = open_store(str(small_disk / "store"))
    old = store.names.put("name", DESCRIPTOR, source="old")
    use_up(small_disk)
    with pytest.raises(StoreFull, match=r"^name name: No space left on device; free some space"):
        store.names.put("name", DESCRIPTOR, source="new")
    assert store.names.get("name") == old
    assert len(list((small_disk / "store/names").iterdir())) == 1


LIMITED = """
import resource, sys
from prefect_dist.ocispec.errors import DistError
from prefect_dist.storage import open_store
from tests.storage.conformance import noise
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    with open_store(sys.argv[1]).writer("ref", total=100_000) as writer:
        for start in range(0, 100_000, int(sys.argv[2])):
            writer.write(noise(100_000)[start : start + int(sys.argv[2])])
except DistError as exc:
    print(type(exc).__name__, exc)
"""


@pytest.mark.parametrize("piece_bytes", [999, 30_000, 100_000])
def test_a_file_size_limit_is_reported_as_a_full_store(root: Path, store: ContentStore, piece_bytes: int) -> None:
    with start(LIMITED, root, piece_bytes) as writer:
        output, _ = writer.communicate()
    assert output == f"StoreFull ref: writing to {root}/{INGEST}: File too large; {ROOM}\n"
    with store.writer("ref", total=len(DATA)) as resumed:
        assert resumed.offset == 50_000
        resumed.write(DATA[50_000:])
        assert resumed.commit() == DIGEST


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Make a disk read-only, or without privileges its directories."""
    if os.geteuid() == 0:
        subprocess.run(["mount", "-o", "remount,ro", str(directory)], check=True)
        yield
        return
    directories = [directory, *(path for path in directory.rglob("*") if path.is_dir())]
    for path in directories:
        path.chmod(0o555)
    try:
        yield
    finally:
        for path in directories:
            path.chmod(0o755)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a directory that `read_only` can make read-only."""
    if os.geteuid() == 0:
        with mount_small_disk(tmp_path / "disk", 2_000_000) as directory:
            yield directory
    else:
        (tmp_path / "disk").mkdir()
        yield tmp_path / "disk"


def test_a_read_only_store_can_be_read_and_refuses_writes(disk: Path) -> None:
    store = open_store(str(disk / "store"))
    digest = ingest(store, DATA)
    store.names.put("name", DESCRIPTOR, source="x")
    with read_only(disk):
        store = open_store(str(disk / "store"))
        assert b"".join(store.chunks(digest)) == DATA
        assert [record.name for record in store.names] == ["name"]
        for what, change in (
            ("ref: opening", lambda: store.writer("ref")),
            (f"blob {digest}", lambda: store.delete(digest)),
            ("name name", lambda: store.names.put("name", DESCRIPTOR, source="y")),
            ("name name", lambda: store.names.delete("name")),
            (f"store {disk}/store: index.json", store.update_index),
        ):
            with pytest.raises(Denied, match=f"^{what}"):
                change()


def test_a_store_that_cannot_be_created_is_denied(disk: Path) -> None:
    with read_only(disk), pytest.raises(Denied, match=f"^store {disk}/deep/store: "):
        open_store(str(disk / "deep/store")).writer("ref")


def test_a_store_below_a_regular_file_is_invalid_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = open_store(str(tmp_path / "file/store"))
    for use in (
        lambda: store.writer("ref"),
        lambda: store.info(DIGEST),
        lambda: store.read(DIGEST),
        lambda: store.holds(DESCRIPTOR),
        lambda: store.delete(DIGEST),
        lambda: store.status("ref"),
        lambda: list(store.walk()),
        lambda: list(store.active()),
        lambda: list(store.names),
        lambda: store.names.get("name"),
        lambda: store.names.put("name", DESCRIPTOR, source="x"),
        store.update_index,
    ):
        with pytest.raises(InvalidInput, match=r"(Not a directory|File exists) \(.*/file\b.*\)"):
            use()


def test_a_failing_disk_is_unavailable(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with store.writer("ref") as writer:
        writer.write(DATA)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(Unavailable, match=f"ref: committing {DIGEST}: Input/output error"):
                writer.commit()
        assert list(store.walk()) == []
        with pytest.raises(Corrupt, match="open the ingest again"):  # Linux marks pages as clean even if writing them failed
            writer.commit()
    assert ingest(store, DATA) == DIGEST
