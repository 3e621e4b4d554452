"""One store on a disk for several users of a group: each can write and collect garbage if the umask permits it."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from prefect_dist.ocispec.errors import Denied
from prefect_dist.storage import gc, open_store
from tests import images
from tests.storage.test_gc import put

GROUP, FIRST, SECOND = 4000, 4001, 4002
NOW = timedelta(seconds=-60)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")


def run_as(user: int, work: Callable[[], object], *, umask: int = 0o002) -> str:
    """Run `work` in a process of another user of the group, and return its error as text."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.setgroups([])
        os.setgid(GROUP)
        os.setuid(user)
        os.umask(umask)
        try:
            work()
        except BaseException as exc:  # noqa: BLE001 - the test reports it
            os.write(writer, f"{type(exc).__name__}: {exc}".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return text


@pytest.fixture
def shared(open_place: Path) -> Path:
    directory = open_place / "store"
    directory.mkdir()
    os.chown(directory, FIRST, GROUP)
    directory.chmod(0o2775)
    return directory


def use(directory: Path, seed: int) -> None:
    """Take a lease, write an image, record its name, list it, and collect garbage."""
    store = open_store(str(directory))
    with store.leases.hold() as lease:
        root = put(store, images.image(seed))
        lease.take(root)
        with store.exclude_gc():
            store.names.put(f"name-{seed}", root, source="x")
        store.update_index()
        gc.collect(store, grace=NOW, dry_run=False)


def test_a_second_user_of_the_group_can_use_a_store(shared: Path) -> None:
    assert run_as(FIRST, lambda: use(shared, 1)) == ""
    assert run_as(SECOND, lambda: use(shared, 2)) == ""
    assert run_as(FIRST, lambda: use(shared, 3)) == ""
    assert sorted(name.name for name in open_store(str(shared)).names) == ["name-1", "name-2", "name-3"]


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_files_follow_the_umask(shared: Path, umask: int) -> None:
    assert run_as(FIRST, lambda: use(shared, 1), umask=umask) == ""
    modes = {path.relative_to(shared): path.stat().st_mode & 0o777 for path in shared.rglob("*") if path.is_file()}
    assert modes
    for path, mode in modes.items():
        assert mode == (0o444 if path.parts[0] == "blobs" else 0o666) & ~umask, path


def test_read_access_to_a_lock_file_is_enough(shared: Path) -> None:
    assert run_as(FIRST, lambda: use(shared, 1)) == ""
    (shared / "sweep.lock").chmod(0o644)
    assert run_as(SECOND, lambda: use(shared, 2)) == ""


def test_the_error_of_an_inaccessible_lock_file_has_a_remedy(shared: Path) -> None:
    assert run_as(FIRST, lambda: use(shared, 1)) == ""
    (shared / "sweep.lock").chmod(0o600)
    says = run_as(SECOND, lambda: use(shared, 2))
    assert says.startswith(f"{Denied.__name__}: store {shared}: cannot open {shared}/sweep.lock (Permission denied)")
    assert says.endswith(f"; let all users of the store read and write it: chmod g+rw {shared}/sweep.lock")
