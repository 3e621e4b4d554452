"""A small file that several processes change: nothing of what one wrote is lost by another."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ocispec.errors import Denied
from storage.statefile import StateFile
from tests.storage.layered import NOBODY


@pytest.mark.parametrize("place", ["{tmp}", "memory://state"])
def test_it_is_read_and_replaced(tmp_path: Path, place: str) -> None:
    file = StateFile(f"{place.format(tmp=tmp_path)}/sub/lock.json")
    assert file.read() is None
    file.change(lambda raw: b"1" if raw is None else b"wrong")
    file.change(lambda raw: (raw or b"") + b"2")
    assert file.read() == b"12"


@pytest.mark.parametrize("place", ["{tmp}", "memory://written"])
def test_who_is_alone_with_it_writes_it_and_leaves_nothing_else(tmp_path: Path, place: str) -> None:
    file = StateFile(f"{place.format(tmp=tmp_path)}/sub/list.txt")
    for content in (b"much before", b"after"):
        file.write(content)
        assert file.read() == content
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {"list.txt"}


def test_no_change_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    path.write_bytes(b"")

    def change(number: int) -> None:
        StateFile(str(path)).change(lambda raw: (raw or b"") + bytes([number]))

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(change, range(64)))
    assert sorted(path.read_bytes()) == list(range(64))


def test_what_fails_leaves_it_as_it_was(tmp_path: Path) -> None:
    file = StateFile(str(tmp_path / "lock.json"))
    file.change(lambda _: b"before")

    def broken(_raw: bytes | None) -> bytes:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        file.change(broken)
    assert file.read() == b"before"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up its rights")
def test_a_place_that_nobody_may_write_to(open_place: Path) -> None:
    shut = open_place / "shut"
    shut.mkdir(mode=0o555)
    pid = os.fork()
    if pid == 0:
        os.setuid(NOBODY)
        try:
            StateFile(str(shut / "lock.json")).change(lambda _: b"")
        except Denied as exc:
            os._exit(0 if "lock.json" in str(exc) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
