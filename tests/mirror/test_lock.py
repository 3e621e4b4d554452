"""The lock file of a mirror: the messages if the user may not read or write it."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_dist.mirror.lock import Lock
from prefect_dist.ocispec.errors import Denied
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
