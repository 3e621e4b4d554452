"""The state file of the local Prefect server, the lock for starts, and the proof of identity: without a Prefect server."""

import json
import os
import threading
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from prefect_dist.cli import local_client, local_process, local_state
from prefect_dist.cli.local_state import State
from prefect_dist.ocispec.errors import Busy, Unavailable


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": 1}', "\0" * 100])
def test_a_damaged_state_file_counts_as_none(text: str, tmp_path: Path) -> None:
    local_state.write_state(tmp_path, example_state())
    local_state.state_path(tmp_path).write_text(text)

    assert local_state.read_state(tmp_path) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": -1},
        {"pid": "1"},
        {"port": 70000},
        {"secret": None},
        {"build": []},
        {"build": {}},
        {"started_at": "yesterday"},
        {"started_at": "2026-01-01T00:00:00"},
        {"idle_s": float("nan")},
        {"more": 1},
    ],
)
def test_a_state_file_with_other_values_counts_as_none(changes: dict[str, object], tmp_path: Path) -> None:
    local_state.write_state(tmp_path, example_state())
    assert local_state.read_state(tmp_path) == example_state()
    local_state.state_path(tmp_path).write_text(json.dumps(asdict(example_state()) | changes))

    assert local_state.read_state(tmp_path) is None


def test_a_directory_in_place_of_the_state_file_counts_as_none_and_is_named_by_the_next_start(tmp_path: Path) -> None:
    path = local_state.state_path(tmp_path)
    path.mkdir()

    assert local_state.read_state(tmp_path) is None
    with pytest.raises(Unavailable, match=f"^{path}: Is a directory; the local Prefect server needs"):
        local_state.write_state(tmp_path, example_state())
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def example_state() -> State:
    return State(os.getpid(), "now", 4321, "dist:x", {"prefect": "3"}, "2026-01-01T00:00:00+00:00", 600.0, is_ready=True)


def test_a_state_file_that_others_can_read_or_choose_counts_as_none(tmp_path: Path) -> None:
    local_state.write_state(tmp_path, example_state())
    path = local_state.state_path(tmp_path)

    path.chmod(0o640)
    assert local_state.read_state(tmp_path) is None
    path.chmod(0o600)
    assert local_state.read_state(tmp_path) is not None
    path.rename(tmp_path / "other")
    path.symlink_to(tmp_path / "other")
    assert local_state.read_state(tmp_path) is None
    local_state.write_state(tmp_path, example_state())
    assert not path.is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
def test_a_state_file_of_another_user_counts_as_none(tmp_path: Path) -> None:
    local_state.write_state(tmp_path, example_state())
    os.chown(local_state.state_path(tmp_path), 12345, 12345)

    assert local_state.read_state(tmp_path) is None
    assert local_state.is_private(tmp_path)
    os.chown(tmp_path, 12345, 12345)
    assert not local_state.is_private(tmp_path)


def test_the_pages_of_invalid_codes_are_removed(tmp_path: Path) -> None:
    used, valid = (local_state.write_page(tmp_path, code, "text") for code in ("used", "valid"))
    (tmp_path / "other.html").touch()

    local_state.remove_pages(tmp_path, valid=["valid"])

    assert valid.stat().st_mode & 0o777 == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {valid.name, "other.html"}
    assert used != valid


class _Recorder(BaseHTTPRequestHandler):
    """A foreign server that answers every request and remembers its headers."""

    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(f"{self.requestline}\n{self.headers}")
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"proof": "0"}')

    do_POST = do_GET  # noqa: N815 - the name that http.server calls

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def test_a_foreign_server_on_the_port_learns_no_secret() -> None:
    _Recorder.seen = []
    with HTTPServer(("127.0.0.1", 0), _Recorder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        state = replace(example_state(), port=server.server_port, secret="dist:very-secret")

        with pytest.raises(local_client.NotOurs, match="another program"):
            local_client.open_connection(state, timeout_s=10)
        server.shutdown()

    assert len(_Recorder.seen) == 1
    assert "Authorization" not in _Recorder.seen[0]
    assert "very-secret" not in _Recorder.seen[0]


def test_a_lock_that_is_never_released_is_reported(tmp_path: Path) -> None:
    with (
        local_state.hold_lock(tmp_path, timeout_s=0),
        pytest.raises(Busy, match="another dist command holds this lock"),
        local_state.hold_lock(tmp_path, timeout_s=0.1),
    ):
        pass


@pytest.mark.parametrize(
    ("variable", "file"),
    [("PREFECT_API_URL", None), ("prefect_api_url", None), ("PREFECT_PROFILE", None), (None, "prefect.toml"), (None, ".env")],
)
def test_the_home_is_not_guessed_if_prefect_has_settings(
    variable: str | None, file: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.chdir(tmp_path)
    assert local_process.guess_home() == tmp_path / "prefect"

    if variable is not None:
        monkeypatch.setenv(variable, "x")
    if file is not None:
        (tmp_path / file).touch()

    assert local_process.guess_home() is None


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize("value", ["", "~unknown-user/prefect", None])
def test_the_home_is_not_guessed_if_prefect_finds_another_one(
    value: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    if value is None:
        monkeypatch.delenv("PREFECT_HOME", raising=False)
    else:
        monkeypatch.setenv("PREFECT_HOME", value)

    assert local_process.guess_home() is None
