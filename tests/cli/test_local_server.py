"""The local Prefect server: shared by commands, private to its user, and handled in each state that a command can find."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from shutil import copy

import pytest

from prefect_dist.cli import local_client, local_process, local_server, local_state
from prefect_dist.cli.local_auth import encode_basic
from prefect_dist.cli.local_state import State
from prefect_dist.ocispec.errors import Unavailable
from prefect_dist.storage import open_store
from tests import images
from tests.cli.dist import command, dist
from tests.cli.terminal import at_terminal
from tests.fakes.faults import Fault, Stall
from tests.fakes.registry import FakeRegistry
from tests.peers.chromium import chromium
from tests.peers.processes import PATIENCE_S, poll_until
from tests.user_project import make_project

pytestmark = [
    pytest.mark.xdist_group("local_server"),  # the tests share one server
    pytest.mark.filterwarnings("ignore:subprocess [0-9]+ is still running:ResourceWarning"),  # a server outlives its starter
]

IMAGE = images.image(6400, layers=1)
# The script of `pip install`. Unlike `python -m`, the script does not add the current directory to the path of imports.
INSTALLED = Path(sys.executable).parent / "dist"


ANSWER_S = 60.0


@pytest.fixture(scope="module")
def database(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an ended server, with a migrated database."""
    home = tmp_path_factory.mktemp("database")
    copy(migrated, home / "prefect.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIST_SERVER_IDLE", "10m")
        start(home)
    assert local_server.stop_server(home, answer_s=ANSWER_S, force=False)
    return home


@pytest.fixture
def place(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A PREFECT_HOME with a migrated database, and the environment of commands that share a server there."""
    home = tmp_path / "prefect"
    home.mkdir()
    for name in ("prefect.db", "memo_store.toml"):
        copy(database / name, home / name)
    monkeypatch.setenv("DIST_SERVER_IDLE", "10m")
    monkeypatch.setenv("PREFECT_HOME", str(home))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    yield home
    local_server.stop_server(home, answer_s=1, force=True)


@pytest.fixture(scope="module")
def shared(database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A PREFECT_HOME with a running server, for tests that leave the server running."""
    home = tmp_path_factory.mktemp("shared")
    copy(database / "prefect.db", home / "prefect.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIST_SERVER_IDLE", "10m")
        patch.setenv("DIST_PASSWORD", "password-of-a-command")
        start(home)
    yield home
    local_server.stop_server(home, answer_s=ANSWER_S, force=True)


def start(home: Path) -> State:
    """Find or start a server, as a command does, and return its state."""
    with local_server.use_server(home, answer_s=ANSWER_S, notify=print) as server:
        server.wait_until_ready()
    return running(home)


def running(home: Path) -> State:
    state = local_state.read_state(home)
    assert state is not None
    return state


def ends(state: State) -> bool:
    return poll_until(lambda: not state.is_process_running())


def fetch(registry: FakeRegistry, store: Path) -> list[str]:
    """Return the command line of a fetch of `app:v1` with output for programs."""
    return command("--store", store, "--output", "json", "fetch", f"{registry.host}/app:v1")


def status_of(url: str, headers: dict[str, str]) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=ANSWER_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as exc:
        return exc.code


def task_states(home: Path, flow_run_id: str) -> list[str]:
    """Return the states of the task runs of a flow run in a database."""
    query = "SELECT state_type FROM task_run WHERE flow_run_id = ?"
    with closing(sqlite3.connect(home / "prefect.db")) as found:
        return [state for (state,) in found.execute(query, (flow_run_id,))]


def test_commands_that_start_at_once_share_a_server_that_records_their_runs(place: Path, tmp_path: Path) -> None:
    with FakeRegistry() as registry:
        images.load(registry, "app", IMAGE, "v1")
        both = [
            subprocess.Popen(fetch(registry, tmp_path / str(n)), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for n in range(2)
        ]
        done = [process.communicate(timeout=PATIENCE_S) for process in both]
    assert [(process.returncode, err) for process, (_, err) in zip(both, done, strict=True)] == [(0, b"")] * 2
    state = running(place)
    assert state.is_process_running()

    assert local_server.stop_server(place, answer_s=ANSWER_S, force=False)

    runs = [json.loads(out)["flow_run_id"] for out, _ in done]
    assert not local_state.state_path(place).exists()
    # Both runs were recorded by one server: the log of a second one would have replaced that of the first.
    assert [task_states(place, run) for run in runs] == [["COMPLETED"] * (len(IMAGE.descriptors) + 1)] * 2


def test_other_users_cannot_use_the_api(shared: Path) -> None:
    state = running(shared)
    secret = {"Authorization": f"Basic {encode_basic(state.secret)}"}
    url = f"{state.url}/api/admin/version"

    assert status_of(url, {}) == 401
    assert status_of(url, {"Authorization": f"Basic {encode_basic('dist:other')}"}) == 401
    assert status_of(url, secret) == 200
    assert status_of(url, {**secret, "Host": "evil.example"}) == 421
    assert local_state.state_path(shared).stat().st_mode & 0o777 == 0o600
    assert local_state.log_path(shared).stat().st_mode & 0o777 == 0o600


def test_the_process_has_neither_the_terminal_nor_the_secrets_of_the_command(shared: Path) -> None:
    state = running(shared)
    process = Path(f"/proc/{state.pid}")
    files = {number.name: str(number.readlink()) for number in (process / "fd").iterdir()}

    assert state.secret not in (process / "cmdline").read_text()
    assert b"password-of-a-command" not in (process / "environ").read_bytes()
    assert files["0"] == "/dev/null"
    assert files["1"] == files["2"] == str(local_state.log_path(shared))
    assert (process / "stat").read_text().rpartition(")")[2].split()[4] == "0"  # no terminal
    assert os.getsid(state.pid) == state.pid
    assert state.secret not in local_state.log_path(shared).read_text()


def test_signals_of_a_terminal_do_not_end_the_server(shared: Path) -> None:
    state = running(shared)

    os.kill(state.pid, signal.SIGINT)
    os.kill(state.pid, signal.SIGHUP)

    assert start(shared) == state


def test_stop_refuses_while_a_command_uses_the_server(shared: Path) -> None:
    with local_server.use_server(shared, answer_s=ANSWER_S, notify=print) as server:
        server.wait_until_ready()
        result = dist("server", "stop", PREFECT_HOME=str(shared), PREFECT_API_URL=None)
        status = dist("--output", "json", "server", "status", PREFECT_HOME=str(shared), PREFECT_API_URL=None)

    assert (result.code, result.line) == (
        1,
        "dist: local Prefect server: 1 command in use; wait for the end of the runs, or run 'dist server stop --force'",
    )
    assert status.json["running"] is True
    assert status.json["commands"] == 1
    assert status.json["url"] == running(shared).url


def test_a_command_that_cannot_log_in_a_browser_prints_no_code(shared: Path) -> None:
    text = dist("server", "open", PREFECT_HOME=str(shared), PREFECT_API_URL=None, DIST_SERVER_IDLE="10m")
    json_ = dist("--output", "json", "server", "open", PREFECT_HOME=str(shared), PREFECT_API_URL=None, DIST_SERVER_IDLE="10m")

    url = running(shared).url
    assert text.lines[0].startswith(f"{url}/open?code=")
    assert json_.json == {"url": f"{url}/"}
    assert running(shared).secret not in text.out.decode() + json_.out.decode()


def test_the_printed_address_opens_the_run_in_a_browser(place: Path, tmp_path: Path) -> None:
    with FakeRegistry() as registry:
        images.load(registry, "app", IMAGE, "v1")
        # The terminal closes at the end of the command although the server, which the command starts, goes on.
        result = at_terminal("", *fetch(registry, tmp_path / "store")[3:5], "fetch", f"{registry.host}/app:v1")
        reference = f"{registry.host}/app:v1"
    assert result.code == 0, result.shown
    state = running(place)
    found = re.search(rf"run: ({state.url}/open\?code=\S+&to=(/runs/flow-run/\S+))", result.shown)
    assert found, result.shown
    assert state.secret not in result.shown

    with chromium(tmp_path / "chromium") as browser:
        page = browser.page()
        page.open(found[1])
        page.wait_for("Task Runs")
        page.wait_for(f"fetch {reference}")
        page.wait_for("resolves to manifest")  # a line of the log, which the API gives only with the secret
        assert page.evaluate("location.href") == f"{state.url}{found[2]}"
        again = browser.page()
        again.open(found[1])
        again.wait_for("This address was used before")


def test_the_command_line_of_the_browser_has_no_code(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, browser = tmp_path / "started", tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$*" > {started}.new && mv {started}.new {started}\n')
    browser.chmod(0o755)
    for name, value in (("BROWSER", str(browser)), ("PREFECT_HOME", str(shared)), ("DIST_SERVER_IDLE", "10m")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    result = at_terminal("", "server", "open")
    assert result.code == 0, result.shown
    assert poll_until(started.exists)
    url = started.read_text()
    page = Path(url.removeprefix("file://"))

    address = re.search(r"http://\S+/open\?code=(\S+)&to=/", result.shown)
    assert address, result.shown
    assert url.startswith("file://")
    assert address[1] not in url
    assert page.stat().st_mode & 0o777 == 0o600
    with chromium(tmp_path / "chromium") as chrome:
        shown = chrome.page()
        shown.open(url)
        password = "location.protocol === 'http:' && localStorage.getItem('prefect-password')"
        assert poll_until(lambda: shown.evaluate(password) == encode_basic(running(shared).secret))
    assert status_of(address[0], {}) == 410  # the browser has used the code
    assert poll_until(lambda: not page.exists())


def test_a_command_whose_server_is_killed_names_the_api_and_the_next_command_starts_another(
    place: Path, tmp_path: Path
) -> None:
    release = threading.Event()
    with FakeRegistry() as registry:
        images.load(registry, "app", IMAGE, "v1")
        registry.inject(Fault(path="/v2/app/blobs/.*", action=Stall(0, release)))
        process = subprocess.Popen(fetch(registry, tmp_path / "store"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert poll_until(lambda: any("/blobs/" in one.path for one in registry.requests) or process.poll() is not None)
        state = running(place)
        os.kill(state.pid, signal.SIGKILL)
        release.set()
        out, err = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 1, err
    assert json.loads(out)["images"][0]["outcome"] == "fetched"  # the work is done
    assert err.decode().splitlines()[-1].startswith(f"dist: Prefect API {state.url}/api does not answer: ")
    second = start(place)
    assert second.pid != state.pid
    assert second.secret != state.secret


def test_a_recycled_process_id_is_not_the_server(place: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as other:
        stale = State(
            other.pid, "an earlier start", 1, "dist:x", {"prefect": "3"}, "2026-01-01T00:00:00+00:00", 600.0, is_ready=True
        )
        local_state.write_state(place, stale)
        assert not stale.is_process_running()
        assert not local_server.stop_server(place, answer_s=1, force=True)

        state = start(place)

        assert state.pid != other.pid
        assert other.poll() is None
        other.kill()


def test_a_server_of_another_version_ends_after_its_last_run_and_is_replaced(place: Path) -> None:
    old = start(place)
    with local_server.use_server(place, answer_s=ANSWER_S, notify=print) as used:
        used.wait_until_ready()
        local_state.write_state(place, replace(old, build={**old.build, "prefect": "3.0.0"}))
        command_ = subprocess.Popen(command("server", "start"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert command_.stderr is not None
        line = command_.stderr.readline().decode()  # the new command waits
        assert old.is_process_running()
    out, rest = command_.communicate(timeout=PATIENCE_S)

    assert rest.decode() == "dist: starting a local Prefect server\n"
    assert line == "dist: waiting for the end of 1 command on a local server with Prefect 3.0.0 and other settings\n"
    assert command_.returncode == 0
    assert not old.is_process_running()
    new = running(place)
    assert f"process {new.pid}," in out.decode()
    assert new.build == old.build


def test_a_command_that_waits_for_a_server_does_not_block_others(place: Path) -> None:
    old = start(place)
    with local_server.use_server(place, answer_s=ANSWER_S, notify=print) as used:
        used.wait_until_ready()
        other_settings = os.environ | {"PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100"}
        waiting = subprocess.Popen(command("server", "start"), env=other_settings, stderr=subprocess.PIPE)
        assert waiting.stderr is not None
        assert waiting.stderr.readline().startswith(b"dist: waiting for the end of 1 command on a local server with Prefect ")
        with local_state.hold_lock(place, timeout_s=10):  # the lock is free
            waiting.send_signal(signal.SIGINT)
            waiting.communicate(timeout=PATIENCE_S)
        same_settings = subprocess.Popen(command("server", "start"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert same_settings.stderr is not None
        line = same_settings.stderr.readline().decode()  # the server grants no further leases
        assert old.is_process_running()
    _, rest = same_settings.communicate(timeout=PATIENCE_S)

    assert line == "dist: waiting for the end of 1 command on a local server that ends after it\n"
    assert (same_settings.returncode, rest.decode()) == (0, "dist: starting a local Prefect server\n")
    assert running(place).pid != old.pid


def test_a_server_with_other_settings_is_replaced(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = start(place)
    monkeypatch.setenv("PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE", "100")

    new = start(place)

    assert new.pid != old.pid
    secret = {"Authorization": f"Basic {encode_basic(new.secret)}"}
    request = urllib.request.Request(f"{new.url}/api/admin/settings", headers=secret)
    with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
        services = json.load(answer)["server"]["services"]
    assert services["task_run_recorder"]["batch_size"] == 100
    assert services["scheduler"]["enabled"] is False


def test_a_server_that_hangs_is_named_and_can_be_stopped(place: Path) -> None:
    state = start(place)
    os.kill(state.pid, signal.SIGSTOP)

    hanging = dist("--connect-timeout", "1", "server", "start")
    stopped = dist("--connect-timeout", "1", "server", "stop")

    says = f"dist: local Prefect server: process {state.pid} does not answer on {state.url}; "
    assert (hanging.code, hanging.line) == (1, says + "end the server with 'dist server stop', and run the command again")
    assert (stopped.code, stopped.lines) == (0, ["stopped"])
    assert not state.is_process_running()


def test_an_unused_server_ends(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIST_SERVER_IDLE", "2s")
    with local_server.use_server(place, answer_s=ANSWER_S, notify=print) as server:
        server.wait_until_ready()
        state = running(place)
        began = time.monotonic()
        assert not poll_until(lambda: not state.is_process_running(), timeout_s=5)  # the lease keeps the server
    assert ends(state)
    assert time.monotonic() - began > 5
    assert local_state.read_state(place) is None


def test_a_command_that_finds_an_ending_server_starts_another(place: Path) -> None:
    state = start(place)
    with local_client.open_connection(state, timeout_s=ANSWER_S) as connection:
        assert connection.request("POST", "/dist/stop?when=unused")["stops"]

    assert start(place).pid != state.pid
    assert not state.is_process_running()


@pytest.mark.parametrize("name", ["dist-server.json", "prefect.db"])
def test_a_server_ends_when_a_file_is_removed(name: str, place: Path) -> None:
    state = start(place)

    (place / name).unlink()

    assert ends(state)
    assert not local_state.state_path(place).exists()


def test_a_server_with_an_error_in_its_watch_ends_and_logs_the_error(place: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from prefect_dist.cli import _server\n"
        "class Broken(_server.Server):\n"
        "    def _should_end(self):\n"
        "        raise OSError('the disk is broken')\n"
        "_server.Server = Broken\n"
        "_server.main()\n"
    )
    with local_process.listen() as listening:
        done = subprocess.run(
            [sys.executable, "-P", str(program), str(listening.fileno()), "600"],
            pass_fds=[listening.fileno()],
            env=local_process.make_environment(place, "dist:x", listening.getsockname()[1]),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    assert done.stderr == "the disk is broken\n"


def test_sigterm_records_what_the_server_has_received(place: Path, tmp_path: Path) -> None:
    image = images.image(6401, layers=60, layer_bytes=100)
    with FakeRegistry() as registry:
        images.load(registry, "app", image, "v1")
        done = subprocess.run(fetch(registry, tmp_path / "store"), capture_output=True, timeout=PATIENCE_S, check=True)
        state = running(place)
        os.kill(state.pid, signal.SIGTERM)
        assert ends(state)

    run = json.loads(done.stdout)["flow_run_id"]
    assert task_states(place, run) == ["COMPLETED"] * (len(image.descriptors) + 1)


def test_a_full_disk_is_reported_in_one_line(place: Path) -> None:
    (place / "prefect.db").unlink()

    no_file = dist("server", "start", file_limit_bytes=0)
    no_database = dist("server", "start", file_limit_bytes=50_000)

    assert no_file.code == no_database.code == 1
    assert no_file.err.splitlines()[-1] == (
        f"dist: {place}/dist-server.json: File too large; the local Prefect server needs a writable directory with free space: "
        "set PREFECT_HOME to another directory, or PREFECT_API_URL to a Prefect server"
    )
    last = no_database.err.splitlines()[-1]
    assert last.startswith("dist: local Prefect server: did not start: (sqlite3.OperationalError) ")
    assert last.endswith(f"(log: {place}/dist-server.log); run commands with --direct to work without a server")
    assert local_state.read_state(place) is None


def test_a_directory_that_cannot_be_created_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    home = tmp_path / "file" / "prefect"

    with pytest.raises(Unavailable, match=f"^{home}: Not a directory; the local Prefect server needs"):
        start(home)


def test_the_status_announces_no_local_server_if_another_server_is_configured(tmp_path: Path) -> None:
    api = "http://127.0.0.1:9/api"

    local = dist("server", "status", PREFECT_HOME=str(tmp_path), PREFECT_API_URL=None)
    other = dist("server", "status", PREFECT_HOME=str(tmp_path), PREFECT_API_URL=api)

    assert local.lines == ["no local Prefect server is running; the next run command starts one"]
    assert other.lines == ["no local Prefect server is running"]
    assert other.line == f"dist: PREFECT_API_URL is set: commands use the Prefect server {api}, not the local server"


def test_open_names_the_ui_of_a_configured_server_and_starts_no_other(tmp_path: Path) -> None:
    api, run = "http://127.0.0.1:9/api", "c7323d19-79bb-43b4-ada4-747ca34d920b"

    start_page = dist("server", "open", PREFECT_HOME=str(tmp_path), PREFECT_API_URL=api)
    run_page = dist("server", "open", run, PREFECT_HOME=str(tmp_path), PREFECT_API_URL=api)

    says = f"dist: PREFECT_API_URL is set: commands use the Prefect server {api}; open http://127.0.0.1:9"
    assert (start_page.code, start_page.line) == (2, f"{says}/")
    assert (run_page.code, run_page.line) == (2, f"{says}/runs/flow-run/{run}")
    assert not local_state.log_path(tmp_path).exists()


def test_a_wrong_idle_time_is_refused(tmp_path: Path) -> None:
    result = dist("server", "start", PREFECT_HOME=str(tmp_path), DIST_SERVER_IDLE="soon", PREFECT_API_URL=None)

    assert result.code == 2
    assert result.line.startswith("dist: environment variable DIST_SERVER_IDLE: duration 'soon': expected a number")


def test_start_in_the_foreground_serves_until_sigterm(place: Path) -> None:
    process = subprocess.Popen(command("server", "start", "--foreground"), stderr=subprocess.PIPE)
    assert poll_until(lambda: local_state.read_state(place) is not None or process.poll() is not None)

    state = start(place)
    assert state.pid == process.pid
    process.terminate()
    _, err = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 0
    assert err.decode().splitlines() == [
        f"dist: local Prefect server on {state.url}; to end it, press Ctrl-C, send SIGTERM, or run 'dist server stop'"
    ]
    assert not local_state.state_path(place).exists()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project")


def block_types(home: Path) -> set[str]:
    """Return the block types in the database of the server that commands start."""
    with closing(sqlite3.connect(home / "prefect.db")) as database:
        return {slug for (slug,) in database.execute("SELECT slug FROM block_type")}


def test_a_command_runs_in_a_project_with_packages_of_the_same_names(project: Path, migrated: Path, tmp_path: Path) -> None:
    """The server that the command starts also registers our block types."""
    (tmp_path / "prefect").mkdir()
    copy(migrated, tmp_path / "prefect" / "prefect.db")
    assert not block_types(tmp_path / "prefect")
    environment = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
    environment |= {"PREFECT_HOME": str(tmp_path / "prefect")}
    store = tmp_path / "store"
    with FakeRegistry() as registry:
        images.load(registry, "app", IMAGE, "v1")
        reference = f"{registry.host}/app:v1"
        done = subprocess.run(
            [INSTALLED, "--store", store, "--output", "json", "fetch", reference],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["status"] == "complete"
    assert str(open_store(str(store)).names.get(reference).descriptor.digest) == IMAGE.root.digest
    assert block_types(tmp_path / "prefect") >= {"content-store", "mirror-configuration", "registry-credentials"}


def test_a_program_imports_a_flow_in_a_project_with_packages_of_the_same_names(project: Path) -> None:
    (project / "program.py").write_text("from prefect_dist.flows.mirror import mirror\nprint(mirror.name)\n")

    done = subprocess.run([sys.executable, "program.py"], cwd=project, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "mirror\n", "")
