"""The Prefect API becomes unreachable during a run: the lock file gets the results, and the command ends soon."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prefect_dist.flows.mirror_parts import MOST_OPEN
from tests import images
from tests.cli.dist import command
from tests.fakes.faults import Fault, Stall
from tests.fakes.registry import FakeRegistry
from tests.fakes.relay import Relay
from tests.peers.prefect import PrefectServer
from tests.peers.processes import PATIENCE_S, poll_until

IMAGE = images.image(6600, layers=1)
# Tasks per part of a run, with a smaller limit than the limit of Prefect runs, so that small runs have parts.
PART = 100
TAGS = PART + 1
_ENDS_S = 30
_HEARD_S = 30


@pytest.fixture
def api(prefect: PrefectServer) -> Iterator[Relay]:
    """A proxy before the Prefect API, which a test can cut."""
    with Relay(prefect.url) as relay:
        yield relay


@contextmanager
def started(
    directory: Path, api: Relay, source: FakeRegistry, target: FakeRegistry, *, most_tasks: int
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a mirror of all tags of `app` in parts of `most_tasks` tasks, and kill the command at the end of the block."""
    config = directory / "mirror.yaml"
    entry = f"{{source: {source.host}/app, target: {target.host}/copy, type: repository}}"
    config.write_text(f"lock: {directory}/lock.json\nsync: [{entry}]\n")
    argv = command("--store", directory / "store", "--output", "json", "mirror", "--concurrency", "4", config)
    setting = f"from prefect_dist.flows import mirror_parts; mirror_parts.MOST_TASKS = {most_tasks}"
    argv[1:3] = ["-c", f"from prefect_dist.cli.main import main; {setting}; main()"]
    quiet = {f"PREFECT_LOGGING_HANDLERS_{name}_LEVEL": "CRITICAL" for name in ("CONSOLE", "DEBUG")}
    env = os.environ | quiet | {"PREFECT_API_URL": api.url, "PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL": "CRITICAL"}
    with (directory / "out").open("wb") as out, (directory / "err").open("wb") as err:
        process = subprocess.Popen(argv, stdout=out, stderr=err, env=env)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def published(target: FakeRegistry) -> set[str]:
    """Return the tags of the target."""
    puts = (one.path for one in target.requests if one.method == "PUT" and "/manifests/v" in one.path)
    return {path.rpartition("/")[2] for path in puts}


def recorded(directory: Path) -> set[str]:
    """Return the mirrored tags in the lock file."""
    records = json.loads((directory / "lock.json").read_text())["images"]
    return {name.rpartition(":")[2] for name, record in records.items() if record["mirrored"]}


def test_an_unreachable_api_ends_the_command_and_keeps_the_results(api: Relay, tmp_path: Path) -> None:
    with FakeRegistry() as source, FakeRegistry() as target:
        images.load(source, "app", IMAGE)
        for number in range(TAGS):
            source.put_manifest("app", IMAGE.manifests[-1].raw, IMAGE.root.media_type, tag=f"v{number}")
        with started(tmp_path, api, source, target, most_tasks=PART) as process:
            assert poll_until(lambda: len(published(target)) > 20 or process.poll() is not None)
            api.cut()
            silence = _silence_until_end(process, target)
        there = published(target)

    out, err = (tmp_path / "out").read_text(), (tmp_path / "err").read_text()
    assert process.returncode == 1, err
    assert silence < _ENDS_S, err
    assert len(there) > 20  # active parts continue without the API
    assert recorded(tmp_path) == there
    report = json.loads(out)
    assert sum(target["outcome"] == "added" for target in report["targets"]) == len(there)
    lines = err.splitlines()
    assert all(line.startswith("dist: ") for line in lines), err
    assert api.url in lines[-1]
    assert len(lines) <= 2


def test_no_part_starts_without_the_api(api: Relay, tmp_path: Path) -> None:
    size, count = 40, 12
    with FakeRegistry() as source, FakeRegistry() as target:
        images.load(source, "app", IMAGE)
        for number in range(size * count):
            source.put_manifest("app", IMAGE.manifests[-1].raw, IMAGE.root.media_type, tag=f"v{number}")
        with started(tmp_path, api, source, target, most_tasks=size) as process:
            assert poll_until(lambda: len(published(target)) > 20 or process.poll() is not None)
            api.cut()
            _silence_until_end(process, target)
        there = published(target)

    out, err = (tmp_path / "out").read_text(), (tmp_path / "err").read_text()
    assert process.returncode == 1, err
    assert 20 < len(there) < 2 * MOST_OPEN * size
    assert recorded(tmp_path) == there
    assert json.loads(out)["status"] == "stopped"
    assert api.url in err.splitlines()[-1]


def test_a_signal_ends_the_command_at_once_without_the_api(api: Relay, tmp_path: Path) -> None:
    with FakeRegistry() as source, FakeRegistry() as target:
        images.load(source, "app", IMAGE, "v1")
        source.inject(Fault(path=f"/v2/app/blobs/{list(IMAGE.blobs)[-1]}", nth=None, action=Stall(0)))
        with started(tmp_path, api, source, target, most_tasks=PART) as process:
            assert poll_until(lambda: _asks_for_content(source) or process.poll() is not None)
            api.cut()
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=PATIENCE_S)
            took = time.monotonic() - began

    out, err = (tmp_path / "out").read_text(), (tmp_path / "err").read_text()
    assert process.returncode == 143, err
    assert took < _HEARD_S
    assert json.loads(out)["status"] == "stopped"
    assert api.url in err.splitlines()[-1]


def _asks_for_content(source: FakeRegistry) -> bool:
    return any("/blobs/" in one.path for one in source.requests)


def _silence_until_end(process: subprocess.Popen[bytes], target: FakeRegistry) -> float:
    """Wait for the end of the command. Return the seconds since the last tag was published."""
    count, last, began = 0, time.monotonic(), time.monotonic()
    while process.poll() is None:
        assert time.monotonic() - began < PATIENCE_S
        if len(published(target)) > count:
            count, last = len(published(target)), time.monotonic()
        time.sleep(0.1)
    return time.monotonic() - last


def test_a_busy_api_delays_the_start_of_a_part_and_does_not_end_the_run(prefect: PrefectServer, tmp_path: Path) -> None:
    """A call has three attempts, so seven refusals fail two attempts to start the first part."""
    with (
        Relay(prefect.url, refused=b"POST /api/task_runs/ ", refusals=7) as busy,
        FakeRegistry() as source,
        FakeRegistry() as target,
    ):
        images.load(source, "app", IMAGE)
        for number in range(PART + 1):
            source.put_manifest("app", IMAGE.manifests[-1].raw, IMAGE.root.media_type, tag=f"v{number}")
        with started(tmp_path, busy, source, target, most_tasks=PART) as process:
            assert process.wait(PATIENCE_S) == 0, (tmp_path / "err").read_text()
        assert busy.refusals == 0
        assert len(recorded(tmp_path)) == PART + 1
