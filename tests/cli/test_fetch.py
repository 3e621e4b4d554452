"""The command fetch on real servers: interrupted, twice in parallel, and with the local Prefect server."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from prefect_dist.storage import open_store
from tests import images
from tests.cli.dist import command, dist, dist_direct
from tests.fakes.faults import Answer, Fault, Stall
from tests.fakes.registry import FakeRegistry
from tests.peers import skopeo
from tests.peers.prefect import PrefectServer
from tests.peers.processes import PATIENCE_S, poll_until
from tests.peers.registry import CncfRegistry, cncf_registry

BIG = images.image(400, layers=1, layer_bytes=8_000_000)
LAYER = list(BIG.blobs)[-1]
STALL_AT = 5_000_000


@pytest.fixture
def stalling() -> Iterator[FakeRegistry]:
    """A registry that stalls in the middle of its first response for the layer."""
    with FakeRegistry() as registry:
        images.load(registry, "app", BIG, "v1")
        registry.inject(Fault(path=f"/v2/app/blobs/{LAYER}", action=Stall(STALL_AT)))
        yield registry


def started(store: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A `dist fetch` that waits for the stalled registry."""
    process = subprocess.Popen(
        command("--store", store, "--output", "json", "fetch", "--read-timeout", "10m", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )

    def has_come() -> bool:
        return any(status.offset == STALL_AT for status in open_store(str(store)).active())

    assert poll_until(lambda: has_come() or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    return process


def test_the_run_after_a_kill_transfers_only_the_rest(stalling: FakeRegistry, prefect: PrefectServer, tmp_path: Path) -> None:
    assert prefect.url
    store = tmp_path / "store"
    process = started(store, f"{stalling.host}/app:v1")
    process.kill()
    process.communicate()

    result = dist("--store", store, "--output", "json", "fetch", f"{stalling.host}/app:v1")

    assert result.code == 0, result.err
    first, second = stalling.find_requests("GET", f"/v2/app/blobs/{LAYER}")
    size = len(BIG.blobs[LAYER])
    assert second.headers["range"] == f"bytes={STALL_AT}-{size - 1}"
    assert (first.sent, second.sent) == (STALL_AT, size - STALL_AT)
    assert result.json["images"][0]["outcome"] == "fetched"
    assert {str(info.digest) for info in open_store(str(store)).walk()} == set(BIG.descriptors)


@pytest.mark.parametrize("ending", [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
def test_a_stalled_run_stops_at_a_signal_and_reports_its_results(
    ending: tuple[signal.Signals, int, str], stalling: FakeRegistry, prefect: PrefectServer, tmp_path: Path
) -> None:
    number, code, reason = ending
    process = started(tmp_path, f"{stalling.host}/app:v1")

    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE_S)  # without the signal, the stall would last ten minutes

    assert (process.returncode, err.decode()) == (
        code,
        f"dist: {stalling.host}/app:v1: {reason}; complete content is kept, run again to resume\n",
    )
    (ingest,) = open_store(str(tmp_path)).active()
    assert ingest.offset == STALL_AT
    report = json.loads(out)
    (image,) = report["images"]
    assert (report["status"], image["outcome"], image["fetched"], image["failed"]) == ("stopped", "failed", 2, 1)
    assert [error["descriptor"] for error in report["errors"]] == [LAYER]
    assert prefect.get(f"/flow_runs/{report['flow_run_id']}")["state"]["type"] == "CANCELLED"
    assert all(task["state_type"] in ("COMPLETED", "FAILED") for task in prefect.task_runs(report["flow_run_id"]))


def test_a_run_stops_at_its_timeout_and_reports_its_results(
    stalling: FakeRegistry, prefect: PrefectServer, tmp_path: Path
) -> None:
    assert prefect.url
    arguments = ("--store", tmp_path, "--timeout", "8s", "--output", "json", "fetch")

    result = dist(*arguments, f"{stalling.host}/app:v1")

    assert result.code == 1
    assert result.line == f"dist: {stalling.host}/app:v1: not done within 8 s; complete content is kept, run again to resume"
    assert result.json["status"] == "stopped"


def test_the_second_interrupt_exits_a_blocked_run(prefect: PrefectServer, tmp_path: Path) -> None:
    assert prefect.url
    with FakeRegistry() as registry:
        images.load(registry, "app", BIG, "v1")
        registry.inject(Fault(method="HEAD", path="/v2/app/manifests/v1", action=Answer(503, (("Retry-After", "300"),))))
        process = subprocess.Popen(command("--store", tmp_path, "fetch", f"{registry.host}/app:v1"), stderr=subprocess.PIPE)
        assert poll_until(lambda: bool(registry.requests) or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert any(
            line == b"stopping; press Ctrl-C again to exit immediately\n" for line in process.stderr
        )  # reads on until it comes
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 130
    assert err.splitlines()[-1] == b"dist: interrupted; exited before the run could stop and report its results"


def test_a_command_without_a_run_ends_at_the_first_signal(stalling: FakeRegistry, tmp_path: Path) -> None:
    arguments = ("--store", tmp_path, "fetch-object", f"{stalling.host}/app@{LAYER}")
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(1)

    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 143
    assert err == b"dist: terminated\n"


def test_two_parallel_commands_share_the_downloads(registry: CncfRegistry, prefect: PrefectServer, tmp_path: Path) -> None:
    assert prefect.url
    image = images.image(410, layers=4, layer_bytes=3_000_000)
    images.push(registry.host, "cli/twice", image, "v1")
    name = f"{registry.host}/cli/twice:v1"
    before = len(registry.requests())

    with ThreadPoolExecutor(2) as executor:
        results = list(executor.map(lambda _: dist("--store", tmp_path, "--output", "json", "fetch", name), range(2)))

    assert [result.code for result in results] == [0, 0], [result.err for result in results]
    store = open_store(str(tmp_path))
    assert {str(info.digest) for info in store.walk()} == set(image.descriptors)
    assert not list(store.active())
    assert skopeo.inspect(f"oci:{tmp_path}:{name}")["Digest"] == image.root.digest
    fetched = [r.path for r in registry.requests(at_least=before + len(image.descriptors) + 2)[before:] if r.method == "GET"]
    assert sorted(path.rpartition("/")[2] for path in fetched) == sorted(image.descriptors)
    assert sum(result.json["images"][0]["fetched"] for result in results) == len(image.descriptors)


def test_the_local_server_records_the_whole_run(migrated: Path, tmp_path: Path) -> None:
    index = images.index([images.image(420), images.image(421, platform="linux/arm64")])
    home = tmp_path / "prefect"
    home.mkdir()
    shutil.copy(migrated, home / "prefect.db")
    with cncf_registry(tmp_path / "registry") as registry:
        images.push(registry.host, "app", index, "v1")
        name = f"{registry.host}/app:v1"

        result = dist(
            "--store", tmp_path / "store", "--output", "json", "fetch", name, PREFECT_HOME=str(home), PREFECT_API_URL=None
        )

    assert (result.code, result.err) == (0, "")
    assert not servers_on(home)
    run = (result.json["flow_run_id"],)
    with closing(sqlite3.connect(home / "prefect.db")) as database:
        tasks = database.execute("SELECT id, state_type, task_inputs FROM task_run WHERE flow_run_id = ?", run).fetchall()
        runs = database.execute("SELECT state_type FROM flow_run WHERE id = ?", run).fetchall()
    assert [state for _, state, _ in tasks] == ["COMPLETED"] * (len(index.descriptors) + 1)
    assert runs == [("COMPLETED",)]
    inputs = [(task, one) for task, _, text in tasks for group in json.loads(text).values() for one in group]
    edges = {(one["id"], task) for task, one in inputs if one["input_type"] == "task_run"}
    assert len(edges) == len(index.descriptors)
    assert {parent for parent, _ in edges} <= {task for task, _, _ in tasks}


def servers_on(home: Path) -> list[str]:
    """Return the processes that have the environment of a command on this database, without this process."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment, command_line = (process / "environ").read_bytes(), (process / "cmdline").read_text()
        except OSError:
            continue
        if f"PREFECT_HOME={home}".encode() in environment and process.name != str(os.getpid()):
            found.append(command_line.replace("\0", " "))
    return found


def test_the_local_server_of_one_command_ends_with_a_killed_command(
    stalling: FakeRegistry, migrated: Path, tmp_path: Path
) -> None:
    home = tmp_path / "prefect"
    home.mkdir()
    shutil.copy(migrated, home / "prefect.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(home))
        patch.delenv("PREFECT_API_URL", raising=False)
        process = started(tmp_path / "store", f"{stalling.host}/app:v1")
    assert servers_on(home)

    process.kill()
    process.communicate()

    assert poll_until(lambda: not servers_on(home))


def test_a_pipe_gets_progress_lines_and_a_table_at_the_end(
    registry: CncfRegistry, prefect: PrefectServer, tmp_path: Path
) -> None:
    image = images.image(430, layers=1)
    images.push(registry.host, "cli/text", image, "v1")
    name = f"{registry.host}/cli/text:v1"

    result = dist("--store", tmp_path, "fetch", name)

    assert result.code == 0
    assert result.err.splitlines() == ["starting Prefect", f"{name} complete: 3 fetched, 0 existed"]
    head, row, summary, store, address = result.out.decode().splitlines()
    assert head.split() == ["IMAGE", "OUTCOME", "FETCHED", "EXISTED", "FAILED", "BYTES", "DIGEST"]
    assert row.split()[:5] == [name, "fetched", "3", "0", "0"]
    assert row.endswith(image.root.digest)
    assert summary.startswith("1 image complete: 3 fetched, 0 existed; ")
    assert store == f"store: {tmp_path}"
    assert address.startswith(f"run: {prefect.ui}/runs/flow-run/")


def test_a_run_that_waits_for_a_registry_stops_within_seconds(prefect: PrefectServer, tmp_path: Path) -> None:
    with FakeRegistry() as registry:
        registry.inject(Fault(method="HEAD", nth=None, action=Answer(429, (("Retry-After", "3600"),))))
        arguments = command("--store", tmp_path, "--output", "json", "fetch", f"{registry.host}/app:v1")
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert poll_until(lambda: bool(registry.requests) or process.poll() is not None)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        out, _ = process.communicate(timeout=PATIENCE_S)
        assert time.monotonic() - began < 5
        assert len(registry.requests) == 1
    assert process.returncode == 143
    result = json.loads(out)
    assert result["status"] == "stopped"
    run = prefect.get(f"/flow_runs/{result['flow_run_id']}")
    assert run["state"]["type"] == "CANCELLED"


def test_a_run_that_waits_for_slots_reports_the_wait_and_stops_at_a_signal(prefect: PrefectServer, tmp_path: Path) -> None:
    with FakeRegistry() as registry:
        name = f"registry:{registry.host}"
        prefect.post("/v2/concurrency_limits/", {"name": name, "limit": 1, "active": True, "active_slots": 1})
        arguments = command("--store", tmp_path, "fetch", f"{registry.host}/app:v1")
        process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        said = [process.stderr.readline() for _ in range(2)]
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=PATIENCE_S)
        prefect.delete(f"/v2/concurrency_limits/{name}")
        assert registry.requests == []
    assert process.returncode == 143
    assert said[-1] == f"waiting for 1 slot of the 1 of Prefect limit {name}, held by other runs\n"
    assert rest.splitlines() == [
        "stopping; press Ctrl-C again to exit immediately",
        "dist: terminated; complete content is kept, run again to resume",
    ]


def test_a_wait_for_a_rate_limited_registry_is_logged(tmp_path: Path) -> None:
    image = images.image(402, layers=2)
    with FakeRegistry() as registry:
        images.load(registry, "app", image, "v1")
        registry.inject(Fault(method="HEAD", action=Answer(429, (("Retry-After", "2"),))))
        fetch = ("fetch", "--retries", "0", f"{registry.host}/app:v1")
        result = dist_direct("--store", tmp_path / "store", *fetch, COLUMNS="20")  # the width matters only for terminals
    assert result.code == 0, result.err
    (line,) = [line for line in result.err.splitlines() if "rate-limited" in line]
    found = re.fullmatch(rf"{registry.host}: rate-limited; requests pause for 2\.0 s, until ([-0-9: ]+) UTC", line)
    assert found is not None, line
    until = datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    assert timedelta(0) <= datetime.now(UTC) - until < timedelta(minutes=5)


def test_a_layer_is_fetched_from_its_urls(tmp_path: Path) -> None:
    image = images.image(401, layers=2)
    with FakeRegistry() as registry, FakeRegistry() as elsewhere:
        document = json.loads(image.manifests[-1].raw)
        layer = document["layers"][-1]
        layer["urls"] = [f"http://{elsewhere.host}/v2/files/blobs/{layer['digest']}"]
        elsewhere.put_blob("files", image.blobs[layer["digest"]])
        for digest, content in image.blobs.items():
            if digest != layer["digest"]:
                registry.put_blob("app", content)
        registry.put_manifest("app", json.dumps(document).encode(), document["mediaType"], tag="v1")
        hosts = tmp_path / "hosts.yaml"
        hosts.write_text(f'registries: {{"{elsewhere.host}": {{}}}}')
        fetch = ("--store", tmp_path / "store", "--output", "json", "fetch", f"{registry.host}/app:v1")

        refused = dist_direct(*fetch, "--retries", "0")

        assert refused.code == 1
        (error,) = refused.json["errors"]
        assert layer["digest"] in error["descriptor"]
        assert "127.0.0.1 is a loopback address; to allow it, add " in error["message"]
        assert elsewhere.requests == []

        fetched = dist_direct(*fetch, "--hosts", hosts)

        assert fetched.code == 0, fetched.err
        assert len(elsewhere.requests) == 1
    assert {str(info.digest) for info in open_store(str(tmp_path / "store")).walk()} > set(image.blobs)
