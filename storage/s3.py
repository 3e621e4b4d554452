"""Uploads in parts to S3, through s3fs's own client.

A file of s3fs that is opened with `autocommit=False` would do this, too, but not go on after an error: what a write that failed
took is sent twice or not at all (docs/adr/0005). Here bytes are taken first and sent afterwards, as often as that takes.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from storage.objects import MIN_PART_BYTES, Upload
from storage.presence import is_there

# S3's limit for one object.
_MAX_PARTS = 10_000
# S3's limit for one request to delete objects.
_MAX_DELETED = 1_000
# Where the size is not known before: room for 640 GB.
_PART_BYTES_UNKNOWN = 64 * 1024 * 1024


def options() -> dict[str, Any]:
    """s3fs's options. Made anew each time: botocore writes into them."""
    return {
        # A few quick attempts, Prefect does the rest.
        "config_kwargs": {"retries": {"mode": "standard", "total_max_attempts": 4}, "connect_timeout": 10, "read_timeout": 60},
        # What is read whole is small. In several pieces s3fs would ask for its size first, a second request for each.
        "max_concurrency": 1,
    }


def connected(fs: Any) -> Any:
    """The file system, its client made, so that wrong options are refused now; the network is not asked for that.

    It has one layer of retries, botocore's, instead of three that multiply to half an hour.
    """
    fs.connect()
    fs.retries = 1
    return fs


def part_bytes(size: int | None) -> int:
    """How big the parts are of an object of `size` bytes, None if that is not known, so that they are not too many."""
    return _PART_BYTES_UNKNOWN if size is None else max(MIN_PART_BYTES, -(-size // _MAX_PARTS))


class S3Api:
    """What S3 can do; see `storage.objects.ObjectApi`."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def upload(self, path: str, size: int | None) -> Upload:
        """Begin an upload; S3 is told with its first part."""
        return _Multipart(self._fs, path, part_bytes(size))

    def unfinished(self, prefix: str, before: datetime) -> Iterator[tuple[str, str]]:
        """The uploads below `prefix` that began before a time and did not end: path and id."""
        bucket, _, key = prefix.partition("/")
        asked = {"Bucket": bucket, "Prefix": f"{key}/" if key else ""}
        while True:
            answer = self._fs.call_s3("list_multipart_uploads", **asked)
            for upload in answer.get("Uploads", ()):
                if upload["Initiated"] < before:
                    yield f"{bucket}/{upload['Key']}", upload["UploadId"]
            if not answer.get("NextKeyMarker"):
                return
            asked |= {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer.get("NextUploadIdMarker", "")}

    def abort(self, path: str, upload: str) -> None:
        """Give up an upload, whoever began it."""
        bucket, _, key = path.partition("/")
        self._fs.abort_mpu(bucket, key, upload)

    def remove(self, paths: Sequence[str]) -> None:
        """Remove objects of one bucket, a thousand per request; those that are not there are skipped.

        Raises:
            PermissionError, OSError: S3 refused to remove some; others are gone.
        """
        for start in range(0, len(paths), _MAX_DELETED):
            some = paths[start : start + _MAX_DELETED]
            bucket = some[0].partition("/")[0]
            doomed = {"Objects": [{"Key": path.partition("/")[2]} for path in some], "Quiet": True}
            answer = self._fs.call_s3("delete_objects", Bucket=bucket, Delete=doomed)
            for error in answer.get("Errors", ()):
                if error.get("Code") != "NoSuchKey":
                    kind = PermissionError if error.get("Code") == "AccessDenied" else OSError
                    raise kind(f"{error.get('Key')}: {error.get('Message') or error.get('Code')}")


class _Multipart:
    def __init__(self, fs: Any, path: str, part: int) -> None:
        self._fs, self._path, self._part = fs, path, part
        bucket, _, key = path.partition("/")
        self._to: dict[str, Any] = {"Bucket": bucket, "Key": key}
        self._buffer = bytearray()
        self._sent: list[dict[str, Any]] = []

    def take(self, data: bytes | bytearray | memoryview) -> None:
        self._buffer += data

    def send(self) -> None:
        while len(self._buffer) >= self._part:
            self._send_part()

    def commit(self) -> None:
        if not self._sent:
            self._fs.pipe_file(self._path, bytes(self._buffer))
            self.discard()
            return
        self.send()
        if self._buffer:
            self._send_part()
        try:
            self._fs.call_s3("complete_multipart_upload", **self._to, MultipartUpload={"Parts": self._sent})
        except FileNotFoundError:  # completed by an earlier attempt, whose answer was lost
            if not is_there(self._fs, self._path):
                raise

    def discard(self) -> None:
        self._buffer.clear()
        self._sent.clear()
        if upload := self._to.get("UploadId"):
            self._fs.abort_mpu(self._to["Bucket"], self._to["Key"], upload)
            del self._to["UploadId"]

    def _send_part(self) -> None:
        if "UploadId" not in self._to:
            self._to["UploadId"] = self._fs.call_s3("create_multipart_upload", **self._to)["UploadId"]
        with memoryview(self._buffer) as view:
            part, number = bytes(view[: self._part]), len(self._sent) + 1
        answer = self._fs.call_s3("upload_part", **self._to, PartNumber=number, Body=part)
        self._sent.append({"PartNumber": number, "ETag": answer["ETag"]})
        del self._buffer[: len(part)]
