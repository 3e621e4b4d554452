"""Multipart uploads, conditional writes and other operations of S3, through the client of s3fs.

A file of s3fs with `autocommit=False` would also upload parts, but could not continue after an error: the data of a failed
write would be sent twice or not at all (docs/dev/adr/0005-ingests-are-files-or-uploads.md). An upload of this module first
buffers data and then sends complete parts, repeatedly if necessary.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from fsspec.asyn import sync

from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.storage.file_info import is_there
from prefect_dist.storage.objects import (
    MIN_PART_BYTES,
    NoConditionsError,
    UnfinishedUpload,
    Upload,
    UploadAbortedError,
    warn_of_lost_changes,
)

# S3's limit for one object.
_MAX_PARTS = 10_000
# S3's limit for one request to delete objects.
_MAX_DELETED = 1_000
# The error codes of a write whose condition failed, and of services without conditional writes.
_CHANGED = {"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"}
_UNSUPPORTED = {"NotImplemented"}
# The part size for content of unknown size: 10,000 parts have room for 640 GB.
_PART_BYTES_UNKNOWN = 64 * 1024 * 1024
# Alternative names of s3fs and its client for keys. The client would sign with these keys instead of a role's credentials.
_OTHER_KEYS = ("username", "password", "aws_access_key_id", "aws_secret_access_key", "aws_session_token")


def default_options() -> dict[str, Any]:
    """Return the default options of s3fs. Each call returns a new dictionary, since botocore changes it."""
    return {
        "config_kwargs": _client_config(),
        # Objects that are read whole are small. With concurrent ranges, s3fs would request the size of each object first.
        "max_concurrency": 1,
    }


def apply_role(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of s3fs, with a session for the role if `assume_role` is set.

    As in prefect-aws, the STS client uses the region of the S3 client, but none of the S3 client's other options, such as
    `endpoint_url`.

    Raises:
        InvalidInput: the role cannot be assumed with these options.
    """
    rest = dict(options)
    role = rest.pop("assume_role", None)
    if role is None:
        return rest
    if not isinstance(role, Mapping):
        raise InvalidInput("store option assume_role: expected nested options as assume_role.NAME=VALUE, got a single value")
    client = rest.get("client_kwargs", {})
    if other := [name for name in _OTHER_KEYS if rest.get(name) or client.get(name)]:
        raise InvalidInput(f"store option {other[0]}: to assume a role, give the credentials as key, secret and token")
    from prefect_dist.storage.roles import assuming_session  # noqa: PLC0415 - aiobotocore is installed only with the extra s3

    login = {name: rest.pop(name, None) for name in ("key", "secret", "token", "profile")}
    session = assuming_session(role, **login, region=client.get("region_name"), config=_client_config())
    return rest | {"session": session}


def _client_config() -> dict[str, Any]:
    """Return the botocore configuration of a client: a few quick attempts. Prefect makes further attempts."""
    return {"retries": {"mode": "standard", "total_max_attempts": 4}, "connect_timeout": 10, "read_timeout": 60}


def connect(fs: Any) -> Any:
    """Return the file system with a connected client, so that wrong options fail here. No request is sent.

    Only botocore retries: with three layers of retries, an attempt could take half an hour.

    Raises:
        TypeError: unknown options.
    """
    if fs.session:
        fs.session.__class__(**fs.kwargs)  # s3fs ignores unknown options if it is given a session
    fs.connect()
    fs.retries = 1
    return fs


def part_bytes(size: int | None) -> int:
    """Return the part size for an object of `size` bytes, None if unknown. The number of parts stays within S3's limit."""
    return _PART_BYTES_UNKNOWN if size is None else max(MIN_PART_BYTES, -(-size // _MAX_PARTS))


class S3Api:
    """The `ObjectApi` of S3."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def upload(self, path: str, size: int | None) -> Upload:
        """Begin an upload. The first request is sent with the first part."""
        return _MultipartUpload(self._fs, path, part_bytes(size))

    def list_unfinished(self, prefix: str, *, before: datetime | None = None) -> Iterator[UnfinishedUpload]:
        """Yield the unfinished uploads below `prefix`. With `before`, yield only uploads without new data since then."""
        for path, upload, started in self._uploads(prefix):
            if before is not None and started >= before:
                continue
            try:
                size, updated = self._upload_progress(path, upload, started)
            except FileNotFoundError:
                continue  # the upload ended meanwhile
            if before is None or updated < before:
                yield UnfinishedUpload(path=path, upload=upload, size=size, started=started, updated=updated)

    def abort(self, path: str, upload: str) -> None:
        """Abort an upload of any process."""
        bucket, _, key = path.partition("/")
        with suppress(FileNotFoundError):
            self._fs.abort_mpu(bucket, key, upload)

    def _uploads(self, prefix: str) -> Iterator[tuple[str, str, datetime]]:
        """Yield the path, the upload ID and the start time of each unfinished upload below `prefix`."""
        bucket, _, key = prefix.partition("/")
        asked = {"Bucket": bucket, "Prefix": f"{key}/" if key else ""}
        while True:
            answer = self._fs.call_s3("list_multipart_uploads", **asked)
            for upload in answer.get("Uploads", ()):
                yield f"{bucket}/{upload['Key']}", upload["UploadId"], upload["Initiated"]
            if not answer.get("NextKeyMarker"):
                return
            asked |= {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer.get("NextUploadIdMarker", "")}

    def _upload_progress(self, path: str, upload: str, started: datetime) -> tuple[int, datetime]:
        """Return the number of received bytes of an upload, and the time of the last part."""
        bucket, _, key = path.partition("/")
        asked: dict[str, Any] = {"Bucket": bucket, "Key": key, "UploadId": upload}
        size, updated = 0, started
        while True:
            answer = self._fs.call_s3("list_parts", **asked)
            for part in answer.get("Parts", ()):
                size, updated = size + part["Size"], max(updated, part["LastModified"])
            if not answer.get("IsTruncated"):
                return size, updated
            asked["PartNumberMarker"] = answer["NextPartNumberMarker"]

    def remove(self, paths: Sequence[str]) -> None:
        """Remove objects of one bucket, a thousand per request. Missing objects are skipped.

        Raises:
            PermissionError, OSError: S3 refused to remove some objects; other objects are removed.
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


class S3ConditionalWrites:
    """Conditional writes by If-Match and If-None-Match; see `storage.objects.ConditionalWrites`."""

    def __init__(self, fs: Any, url: str) -> None:
        self._fs, self._url = fs, url
        self._is_checked = False

    def read(self, path: str) -> tuple[bytes, str]:
        """Return the content of an object and its ETag."""
        bucket, _, key = path.partition("/")
        content: tuple[bytes, str] = sync(self._fs.loop, _get, self._fs, bucket, key)
        return content

    def write(self, path: str, data: bytes, version: str | None) -> bool:
        """Write an object whose ETag is still `version`, or create it if `version` is None. Return False after a conflict.

        Some services accept the condition and ignore it. Therefore the first write is sent twice: the second write must fail.
        """
        if not self._put(path, data, version):
            return False
        if not self._is_checked:
            self._is_checked = True
            if self._put(path, data, version):
                warn_of_lost_changes(self._url)
        return True

    def _put(self, path: str, data: bytes, version: str | None) -> bool:
        bucket, _, key = path.partition("/")
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        try:
            self._fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
        except OSError as exc:
            code = _code(exc)
            if code in _UNSUPPORTED:
                raise NoConditionsError(str(exc)) from exc
            if code not in _CHANGED:
                raise
            return False
        return True


async def _get(fs: Any, bucket: str, key: str) -> tuple[bytes, str]:
    answer = await fs._call_s3("get_object", Bucket=bucket, Key=key)  # noqa: SLF001 - the only way to content with its ETag
    try:
        return await answer["Body"].read(), answer["ETag"]
    finally:
        answer["Body"].close()


def _code(exc: OSError) -> str | None:
    """Return the S3 error code of an error that s3fs has converted to OSError."""
    cause = exc.__cause__ or exc.__context__
    response = getattr(cause, "response", None) or {}
    code: str | None = response.get("Error", {}).get("Code")
    return code


class _MultipartUpload:
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
        except FileNotFoundError as exc:  # aborted, or completed by an earlier attempt whose response was lost
            if is_there(self._fs, self._path):
                return
            if _code(exc) != "NoSuchUpload":
                raise
            raise self._abort_error() from exc

    def discard(self) -> None:
        self._buffer.clear()
        self._sent.clear()
        if upload := self._to.get("UploadId"):
            with suppress(FileNotFoundError):  # another process was faster
                self._fs.abort_mpu(self._to["Bucket"], self._to["Key"], upload)
            del self._to["UploadId"]

    def _abort_error(self) -> UploadAbortedError:
        """Drop the state of an upload that another process aborted, and return the error to raise."""
        self._to.pop("UploadId", None)
        self.discard()
        return UploadAbortedError("another process aborted the upload")

    def _send_part(self) -> None:
        if "UploadId" not in self._to:
            self._to["UploadId"] = self._fs.call_s3("create_multipart_upload", **self._to)["UploadId"]
        with memoryview(self._buffer) as view:
            part, number = bytes(view[: self._part]), len(self._sent) + 1
        try:
            answer = self._fs.call_s3("upload_part", **self._to, PartNumber=number, Body=part)
        except FileNotFoundError as exc:
            if _code(exc) != "NoSuchUpload":
                raise
            raise self._abort_error() from exc
        self._sent.append({"PartNumber": number, "ETag": answer["ETag"]})
        del self._buffer[: len(part)]
