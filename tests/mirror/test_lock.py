"""The lock file of a mirror: the messages if the user may not read or write it."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_dist.mirror.lock import Lock
from prefect_dist.ocispec.errors import Denied
from tests.fakes.faults import Answer, Fault
from tests.fakes.registry import FakeRegistry
from tests.storage.layered import as_nobody

REMEDY = "allow the user of the run to write the file and its directory, or set `lock` to another file"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that a process without privileges can enter; those of pytest are for their owner only."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        yield Path(place)


def test_a_lock_file_in_a_read_only_directory_is_named_with_the_remedy(place: Path) -> None:
    place.chmod(0o555)
    with pytest.raises(Denied) as refused:
        as_nobody(lambda: Lock(str(place / "lock.json")).update(lambda records: records))
    assert str(refused.value) == f"lock file {place}/lock.json: Permission denied; {REMEDY}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make the file of another user")
def test_a_lock_file_of_another_user_is_named_with_the_remedy(place: Path) -> None:
    Lock(str(place / "lock.json")).update(lambda records: records)
    (place / "lock.json").chmod(0o600)
    with pytest.raises(Denied) as refused:
        as_nobody(lambda: Lock(str(place / "lock.json")).read())
    assert str(refused.value) == f"lock file {place}/lock.json: Permission denied; {REMEDY}"


def test_a_path_with_a_semicolon_keeps_the_remedy(place: Path) -> None:
    folder = place / "a; b"
    folder.mkdir()
    folder.chmod(0o555)
    with pytest.raises(Denied) as refused:
        as_nobody(lambda: Lock(str(folder / "lock.json")).update(lambda records: records))
    assert str(refused.value) == f"lock file {folder}/lock.json: Permission denied; {REMEDY}"


def test_a_lock_file_that_an_object_store_refuses_has_the_remedy_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeRegistry() as refusing:
        refusing.inject(Fault(nth=None, action=Answer(403)))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{refusing.host}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        with pytest.raises(Denied) as refused:
            Lock("s3://bucket/lock.json").read()
        assert refusing.requests
    assert str(refused.value) == "lock file s3://bucket/lock.json: Forbidden; check the credentials and their permissions"
