"""Leases: every root that any thread of a run takes is protected while the run is alive."""

import json
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.storage import ContentStore, gc, open_store
from prefect_dist.storage.leases import Lease
from prefect_dist.storage.locked_file import shares_locks_by
from tests import images
from tests.peers.processes import PATIENCE_S
from tests.peers.seaweedfs import S3Server
from tests.storage.conformance import Place
from tests.storage.test_gc import put
from tests.storage.test_round_trips import RecordedRequests
from tests.storage.test_uploads import fail_nth_call

REPOSITORY = Path(__file__).parents[2]
THREADS = 16
NOW = timedelta(seconds=-60)

# A process that takes its first roots from several threads at once, prints the recorded roots, and ends on request.
HOLD = """
import sys, threading
from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.storage import open_store
store = open_store(sys.argv[1])
start = threading.Barrier(8)
def take(number):
    start.wait()
    lease.take(Descriptor(media_type="x", digest=Digest.of(b"%d" % number), size=1))
with store.leases.hold() as lease:
    threads = [threading.Thread(target=take, args=(number,), daemon=True) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a thread hangs"
    print(len(set(store.leases.roots())), flush=True)
    sys.stdin.readline()
"""


def root(number: int) -> Descriptor:
    return Descriptor(media_type="application/x", digest=Digest.of(b"%d" % number), size=1)


def take_at_once(lease: Lease, numbers: range) -> None:
    """Take roots from many threads that start together."""
    start = threading.Barrier(THREADS)

    def take(first: int) -> None:
        start.wait()
        for number in numbers[first::THREADS]:
            lease.take(root(number))

    threads = [threading.Thread(target=take, args=(number,), daemon=True) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_every_root_that_threads_take_concurrently_is_on_record(place: Place, store: ContentStore) -> None:
    with store.leases.hold() as lease:
        take_at_once(lease, range(160))
        assert {held.digest for held in place.open().leases.roots()} == {root(number).digest for number in range(160)}
    assert not list(store.leases.roots())
    assert not [path for path in place.files() if path.startswith("leases/")]


@pytest.mark.parametrize("attempt", range(5))
def test_threads_that_take_the_first_roots_concurrently_do_not_deadlock(tmp_path: Path, attempt: int) -> None:
    store = tmp_path / str(attempt)
    done = subprocess.run(
        [sys.executable, "-c", HOLD, str(store)],
        check=False,
        cwd=REPOSITORY,
        input="\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("8\n", "", 0)


def age(place: Path, by: timedelta) -> None:
    then = (datetime.now(UTC) - by).timestamp()
    for path in (place / "leases").iterdir():
        os.utime(path, (then, then))


def test_a_lease_of_a_living_run_does_not_expire_on_a_disk(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    image = images.image(71)
    descriptor = put(store, image)
    with store.leases.hold() as lease:
        lease.take(descriptor)
        age(tmp_path, timedelta(days=30))
        assert not gc.collect(store, grace=NOW, dry_run=False).blobs
        assert list(store.leases.roots()) == [descriptor]


def test_a_lease_of_a_killed_run_expires_at_once_on_a_disk(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "8\n"
        store = open_store(str(tmp_path))
        assert len(list(store.leases.roots())) == 8
        assert not gc.collect(store, grace=NOW, dry_run=False).leftovers
        process.kill()
        process.wait()
    assert not list(store.leases.roots())
    assert gc.collect(store, grace=NOW, dry_run=False).leftovers
    assert not list((tmp_path / "leases").iterdir())


def test_a_lease_can_grow_while_gc_runs(place: Place, store: ContentStore) -> None:
    first, second = images.image(72), images.image(73)
    with store.leases.hold() as lease:
        lease.take(put(store, first))
        gc.collect(store, grace=NOW, dry_run=False)
        lease.take(put(store, second))
        gc.collect(store, grace=NOW, dry_run=False)
        assert {str(info.digest) for info in place.open().walk()} == {*first.descriptors, *second.descriptors}


def test_on_s3_a_run_with_many_roots_costs_few_records_and_one_request_to_release(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"{s3.url}/many-roots", options=s3.storage_options)
    with store.leases.hold() as lease:
        take_at_once(lease, range(1100))
        records = store._backend.fs.ls(store._layout.leases, detail=False)
        assert len(list(store.leases.roots())) == 1100
        recorded, called = RecordedRequests(monkeypatch, store), fail_nth_call(monkeypatch, store, "none", nth=1)
    assert len(records) <= 4
    assert (recorded.methods, [method for method, _ in called]) == ([], ["delete_objects"])
    assert not list(store.leases.roots())


def test_taking_a_leased_root_again_writes_nothing(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"{s3.url}/held-already", options=s3.storage_options)
    with store.leases.hold() as lease:
        lease.take(root(1))
        recorded = RecordedRequests(monkeypatch, store)
        lease.take(root(1))
        assert recorded.methods == []


def test_a_record_that_cannot_be_written_is_an_error_and_the_root_can_be_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with store.leases.hold() as lease:
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fail)
            with pytest.raises(Exception, match="No space left"):
                lease.take(root(1))
        assert not list(store.leases.roots())
        lease.take(root(1))
        assert [held.digest for held in store.leases.roots()] == [root(1).digest]


def test_a_damaged_record_of_a_living_run_stops_gc_with_a_remedy(place: Place, store: ContentStore) -> None:
    put(store, images.image(74))
    with store.leases.hold() as lease:
        lease.take(root(1))
        (record,) = (path for path in place.files() if path.startswith("leases/") and path.endswith(".json"))
        place.plant(record, b"{")
        with pytest.raises(
            InvalidInput, match=rf"^lease: damaged record .*{record} .*; .*remove this file when no run is in progress$"
        ):
            gc.collect(store, grace=NOW, dry_run=False)
        assert list(store.walk())


def test_a_damaged_record_of_a_dead_run_is_removed_on_a_disk(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.prepare()
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases" / "dead.0.json").write_bytes(json.dumps({"roots": "none"}).encode())
    assert gc.collect(store, grace=NOW, dry_run=False).leftovers == (str(tmp_path / "leases" / "dead.0.json"),)
    assert not list((tmp_path / "leases").iterdir())


MOUNTS = """\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 0:40 / /srv/shared rw,relatime shared:1 - nfs4 server:/x rw,vers=4.2,local_lock=none,addr=192.0.2.1
31 22 0:41 / /srv/one\\040machine rw,relatime - nfs server:/y rw,vers=3,nolock,local_lock=all,addr=192.0.2.1
32 31 0:42 / /srv/one\\040machine/disk rw,relatime - xfs /dev/sdb1 rw
"""


@pytest.mark.parametrize(
    ("path", "are_shared"),
    [
        ("/home/store", True),
        ("/srv/shared/store", True),
        ("/srv/one machine", False),
        ("/srv/one machine/store", False),
        ("/srv/one machines", True),
        ("/srv/one machine/disk/store", True),
    ],
)
def test_an_nfs_mount_with_local_locks_does_not_share_locks(path: str, *, are_shared: bool) -> None:
    assert shares_locks_by(MOUNTS, path) == are_shared
