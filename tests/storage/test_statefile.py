"""Small files that several processes change without losing a change."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from prefect_dist.ocispec.errors import Denied, InvalidInput
from prefect_dist.storage.statefile import StateFile
from tests.peers.seaweedfs import S3Server
from tests.storage.conformance import Place
from tests.storage.layered import NOBODY


@pytest.mark.parametrize("place", ["{tmp}", "memory://state"])
def test_a_file_is_read_and_replaced(tmp_path: Path, place: str) -> None:
    file = StateFile(f"{place.format(tmp=tmp_path)}/sub/lock.json")
    assert file.read() is None
    file.change(lambda raw: b"1" if raw is None else b"wrong")
    file.change(lambda raw: (raw or b"") + b"2")
    assert file.read() == b"12"


def test_the_error_for_a_directory_in_place_of_a_file_names_the_file_once(tmp_path: Path) -> None:
    (tmp_path / "lock.json").mkdir()
    with pytest.raises(InvalidInput) as caught:
        StateFile(str(tmp_path / "lock.json")).read()
    assert str(caught.value) == f"{tmp_path}/lock.json: Is a directory"


@pytest.mark.parametrize("place", ["{tmp}", "memory://written"])
def test_a_single_writer_leaves_only_the_file(tmp_path: Path, place: str) -> None:
    file = StateFile(f"{place.format(tmp=tmp_path)}/sub/list.txt")
    for content in (b"much before", b"after"):
        file.write(content)
        assert file.read() == content
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {"list.txt"}


def test_concurrent_changes_are_not_lost(place: Place) -> None:
    url = f"{place.url.rstrip('/')}/new/lock.json"

    def change(number: int) -> None:
        StateFile(url, options=place.options).change(lambda raw: (raw or b"") + bytes([number]))

    count = place.count_writes(64)
    with ThreadPoolExecutor(8) as executor:
        list(executor.map(change, range(count)))
    assert sorted(StateFile(url, options=place.options).read() or b"") == list(range(count))


def test_an_unchanged_content_is_not_written(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    file = StateFile(f"{s3.url}/unchanged/lock.json", options=s3.storage_options)
    file.change(lambda _: b"content")
    called = record_calls(monkeypatch, file._backend.fs)
    file.change(lambda raw: raw or b"")
    assert called == []
    file.change(lambda _: b"other")
    assert [(method, "IfMatch" in arguments) for method, arguments in called] == [("put_object", True)]


def test_the_first_change_checks_that_the_service_enforces_conditions(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = StateFile(f"{s3.url}/honoured/lock.json", options=s3.storage_options)
    called = record_calls(monkeypatch, file._backend.fs)
    for content in (b"1", b"2", b"3"):
        file.change(lambda _, new=content: new)  # type: ignore[misc]
    assert [sorted({"IfMatch", "IfNoneMatch"} & arguments.keys()) for _, arguments in called] == [
        ["IfNoneMatch"],
        ["IfNoneMatch"],  # the service refuses the second write
        ["IfMatch"],
        ["IfMatch"],
    ]
    assert file.read() == b"3"
    assert not caplog.records


@pytest.mark.parametrize("answer", ["ignored", "NotImplemented"])
def test_a_service_without_conditional_writes_causes_one_warning(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, answer: str
) -> None:
    file = StateFile(f"{s3.url}/{answer}/lock.json", options=s3.storage_options)
    record_calls(monkeypatch, file._backend.fs, conditions=answer)
    for content in (b"1", b"2", b"3"):
        file.change(lambda _, new=content: new)  # type: ignore[misc]
        assert file.read() == content
    (message,) = caplog.messages
    assert message.startswith(
        f"{s3.url}/{answer}: the object store has no conditional writes: if two runs change the same file at once,"
    )


def test_a_write_whose_response_was_lost_counts_as_written(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    file = StateFile(f"{s3.url}/lost-answer/lock.json", options=s3.storage_options)
    file.change(lambda _: b"first")
    record_calls(monkeypatch, file._backend.fs, twice=True)  # the same request again, as botocore retries without a response
    seen = list[bytes | None]()

    def change(raw: bytes | None) -> bytes:
        seen.append(raw)
        return b"second"

    file.change(change)
    assert (seen, file.read()) == ([b"first"], b"second")


def record_calls(
    patch: pytest.MonkeyPatch, fs: Any, *, conditions: str = "honoured", twice: bool = False
) -> list[tuple[str, dict[str, Any]]]:
    """Record S3 calls. The service may ignore or refuse conditions; with `twice`, the second response of each call counts."""
    call, called = fs.call_s3, list[tuple[str, dict[str, Any]]]()

    def record_call(method: str, **arguments: Any) -> Any:
        called.append((method, arguments))
        plain = {name: value for name, value in arguments.items() if name not in ("IfMatch", "IfNoneMatch")}
        if conditions == "NotImplemented" and plain != arguments:
            error = OSError("A header you provided implies functionality that is not implemented")
            error.__cause__ = ClientError({"Error": {"Code": "NotImplemented"}}, method)
            raise error
        if twice:
            call(method, **arguments)
        return call(method, **(plain if conditions == "ignored" else arguments))

    patch.setattr(fs, "call_s3", record_call)
    return called


def test_a_failing_change_leaves_the_file_unchanged(tmp_path: Path) -> None:
    file = StateFile(str(tmp_path / "lock.json"))
    file.change(lambda _: b"before")

    def broken(_raw: bytes | None) -> bytes:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        file.change(broken)
    assert file.read() == b"before"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up its rights")
def test_a_file_in_a_read_only_directory_is_denied(open_place: Path) -> None:
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
