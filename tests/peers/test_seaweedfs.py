"""The S3 server behaves as the content store expects, tested through the file system that the store uses."""

import os
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.peers.seaweedfs import S3Server, seaweedfs

PART = 5 * 1024 * 1024


def file_system(server: S3Server, **options: Any) -> Any:
    """A new file system for each test: fsspec would share the instance and its caches."""
    return fsspec.filesystem("s3", skip_instance_cache=True, **{**server.storage_options, **options})


@pytest.fixture
def fs(s3: S3Server) -> Any:
    return file_system(s3)


@pytest.fixture
def prefix(s3: S3Server) -> str:
    return f"{s3.bucket}/{uuid.uuid4().hex}"


def unfinished(fs: Any, server: S3Server) -> list[str]:
    return [upload["Key"] for upload in fs.call_s3("list_multipart_uploads", Bucket=server.bucket).get("Uploads", [])]


def test_the_bucket_is_there_and_takes_objects(fs: Any, prefix: str) -> None:
    fs.pipe_file(f"{prefix}/a b+c%2Fd-ü", b"content")
    assert fs.find(prefix) == [f"{prefix}/a b+c%2Fd-ü"]
    assert fs.cat_file(f"{prefix}/a b+c%2Fd-ü") == b"content"


@pytest.mark.parametrize("wrong", [{"secret": "wrong"}, {"key": "NOBODYNOBODYNOBODY01"}, {"anon": True}])
def test_only_the_key_is_let_in(s3: S3Server, fs: Any, prefix: str, wrong: dict[str, Any]) -> None:
    fs.pipe_file(f"{prefix}/x", b"content")
    stranger = file_system(s3, **wrong)
    for ask in (stranger.info, stranger.ls, stranger.cat_file):
        with pytest.raises(PermissionError):
            ask(f"{prefix}/x")
    with pytest.raises(PermissionError):
        stranger.pipe_file(f"{prefix}/y", b"content")


def test_another_bucket_is_not_made_by_writing_to_it(fs: Any) -> None:
    with pytest.raises(FileNotFoundError):
        fs.pipe_file("no-such-bucket/x", b"content")


def test_a_range_is_what_was_asked_for_and_none_is_past_the_end(fs: Any, prefix: str) -> None:
    fs.pipe_file(f"{prefix}/x", b"0123456789")
    assert fs.cat_file(f"{prefix}/x", start=3, end=6) == b"345"
    assert fs.cat_file(f"{prefix}/x", start=8, end=99) == b"89"
    with pytest.raises(OSError, match="range is not satisfiable"):
        fs.cat_file(f"{prefix}/x", start=10, end=11)


def test_a_multipart_upload_is_seen_when_it_is_committed_and_not_before(s3: S3Server, fs: Any, prefix: str) -> None:
    data = bytes(range(256)) * (PART // 256) * 2 + b"end"
    file = fs.open(f"{prefix}/x", "wb", block_size=PART, autocommit=False)
    file.write(data)
    file.close()
    assert not fs.exists(f"{prefix}/x")
    assert f"{prefix}/x".removeprefix(f"{s3.bucket}/") in unfinished(fs, s3)
    file.commit()
    assert fs.info(f"{prefix}/x")["size"] == len(data)
    assert fs.cat_file(f"{prefix}/x") == data


def test_a_discarded_upload_leaves_nothing(s3: S3Server, fs: Any, prefix: str) -> None:
    file = fs.open(f"{prefix}/x", "wb", block_size=PART, autocommit=False)
    file.write(bytes(2 * PART))
    file.close()
    file.discard()
    assert fs.find(prefix) == []
    assert f"{prefix}/x".removeprefix(f"{s3.bucket}/") not in unfinished(fs, s3)


def test_if_none_match_lets_only_the_first_one_create(s3: S3Server, fs: Any, prefix: str) -> None:
    key = f"{prefix}/lock".removeprefix(f"{s3.bucket}/")
    fs.call_s3("put_object", Bucket=s3.bucket, Key=key, Body=b"first", IfNoneMatch="*")
    with pytest.raises(OSError, match="pre-conditions"):
        fs.call_s3("put_object", Bucket=s3.bucket, Key=key, Body=b"second", IfNoneMatch="*")
    assert fs.cat_file(f"{prefix}/lock") == b"first"


def test_a_server_is_gone_with_its_sockets_and_another_one_serves_what_it_had(tmp_path: Path) -> None:
    with seaweedfs(tmp_path) as first:
        opened = find_sockets(first.pid)
        assert opened
        file_system(first).pipe_file(f"{first.bucket}/x", b"content")
    with pytest.raises(ProcessLookupError):
        os.kill(first.pid, 0)
    with seaweedfs(tmp_path) as second:
        assert file_system(second).cat_file(f"{second.bucket}/x") == b"content"
    assert [path for path in opened if path.exists()] == []


def find_sockets(pid: int) -> list[Path]:
    """Return the sockets of a server, below /tmp by its own choice. Other servers may run at the same time."""
    inodes = {str(one.readlink()) for one in Path(f"/proc/{pid}/fd").iterdir() if one.is_symlink()}
    lines = (line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    return [Path(fields[7]) for fields in lines if len(fields) > 7 and f"socket:[{fields[6]}]" in inodes]
