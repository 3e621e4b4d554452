"""The lock file of a mirror: the messages if the user may not read or write it."""

import os
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from prefect_dist.mirror.lock import Lock, Locked
from prefect_dist.ocispec import Digest, Platform, Reference
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


def test_a_lock_returns_its_own_records_without_parsing_and_reads_the_changes_of_others(tmp_path: Path) -> None:
    lock, other = (Lock(str(tmp_path / "lock.json"), run="mirror all") for _ in range(2))
    digests, now = [Digest.of(text) for text in (b"1", b"2", b"3")], datetime.now(UTC)
    plain, full = (Reference.parse(f"target.example/app:v{number}") for number in (2, 1))
    records = {
        plain: Locked(source="source.example/app:v2", digest=digests[0], mirrored=None, own=False),
        full: Locked(
            source="source.example/app:v1",
            digest=digests[0],
            mirrored=now,
            own=True,
            platforms=(Platform.parse("linux/arm64/v8"),),
            rewritten=True,
            single=Platform.parse("linux/amd64"),
            referrers={digests[1]: "sha256-1.sig", digests[2]: None},
            unwanted=now,
            replaces=digests[2],
            related=("referrers",),
        ),
    }

    lock.update(lambda _: records, lambda _: {full: now})

    assert lock.read() is records
    assert other.read() == records
    other.update(lambda found: {plain: found[plain]}, lambda pending: {**pending, plain: now})
    assert lock.read() == {plain: records[plain]}
    assert lock.read() == other.read()
