"""The option --direct: the same runs without Prefect. Each process refuses to import Prefect."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from prefect_dist.storage import open_store
from tests import images
from tests.cli.dist import dist, dist_direct
from tests.cli.json_keys import find_objects, read_documented_keys
from tests.fakes.faults import Answer, Fault, Stall
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import find_missing
from tests.peers.prefect import PrefectServer
from tests.peers.processes import PATIENCE_S, poll_until

ONE, OTHER = images.image(9700, layers=2), images.image(9701, layers=1)
BIG = images.image(9702, layers=1, layer_bytes=8_000_000)
LAYER = list(BIG.blobs)[-1]
STALL_AT = 5_000_000
VETO = ["sh", "-c", 'case "$DIST_REFERENCE" in *:v2) exit 1;; esac']
WITHOUT_PREFECT = """
import sys

class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "prefect":
            raise ImportError(f"a direct run imports {name}")

sys.meta_path.insert(0, Refusal())
from prefect_dist.cli.main import main
main()
"""


def command(*arguments: str | Path) -> list[str]:
    """Return the command line of a direct run in a process that cannot import Prefect."""
    return [sys.executable, "-c", WITHOUT_PREFECT, *map(str, arguments), "--direct"]


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        images.load(registry, "app", ONE, "v1")
        images.load(registry, "app", OTHER, "v2")
        yield registry


@pytest.fixture
def stalling() -> Iterator[FakeRegistry]:
    """A registry that stalls in the middle of its first response for the layer."""
    with FakeRegistry() as registry:
        images.load(registry, "app", BIG, "v1")
        registry.inject(Fault(path=f"/v2/app/blobs/{LAYER}", action=Stall(STALL_AT)))
        yield registry


def write_config(directory: Path, registry: FakeRegistry, target: str, **settings: Any) -> Path:
    """Write a configuration that mirrors the repository `app`. Store and lock file are in the same directory."""
    directory.mkdir(exist_ok=True)
    path = directory / "mirror.yaml"
    entry = {"type": "repository", "source": f"{registry.host}/app", "target": target, **settings}
    path.write_text(json.dumps({"name": "ours", "store": "store", "sync": [entry]}))
    return path


def normalize(document: dict[str, Any], *directories: Path) -> dict[str, Any]:
    """Return a document without the values that differ between two equal runs: ids, times, paths and numbers of tasks."""
    for part in (document, *document.get("images", ())):
        for key in {"flow_run_id", "seconds", "tasks"} & part.keys():
            del part[key]
    text = json.dumps(document)
    for directory in directories:
        text = text.replace(str(directory), "DIRECTORY")
    found: dict[str, Any] = json.loads(text)
    return found


def list_contents(store: Path) -> set[str]:
    return {str(info.digest) for info in open_store(str(store)).walk()}


def test_a_direct_fetch_has_the_json_and_the_requests_of_a_prefect_run(
    registry: FakeRegistry, prefect: PrefectServer, tmp_path: Path
) -> None:
    assert prefect.url
    names = [f"{registry.host}/app:{tag}" for tag in ("v1", "v2", "none")]
    arguments = ("--output", "json", "fetch", "--referrers", "--retries", "0", *names)
    stores = tmp_path / "prefect", tmp_path / "direct"
    recorded = dist("--store", stores[0], *arguments)
    asked = [(request.method, request.path) for request in registry.requests]

    result = dist_direct("--store", stores[1], *arguments)

    assert (result.code, recorded.code) == (1, 1)
    assert result.err == recorded.err
    assert result.json["flow_run_id"] is None
    assert result.json["tasks"] == recorded.json["tasks"]  # so few images have no child flow runs
    assert normalize(result.json, *stores) == normalize(recorded.json, *stores)
    again = [(request.method, request.path) for request in registry.requests[len(asked) :]]
    assert sorted(again) == sorted(asked)
    assert list_contents(stores[1]) == {*ONE.descriptors, *OTHER.descriptors}


def test_a_direct_mirror_has_the_json_the_lock_file_and_the_exit_code_of_a_prefect_run(
    registry: FakeRegistry, prefect: PrefectServer, tmp_path: Path
) -> None:
    assert prefect.url
    documents, locks = [], []
    for kind, run in (("prefect", dist), ("direct", dist_direct)):
        with FakeRegistry() as target:
            config = write_config(tmp_path / kind, registry, f"{target.host}/copy", gate={"command": VETO})
            result = run("--output", "json", "mirror", config)
            assert result.code == 3, result.err
            assert not find_missing(target, "copy", ONE, "v1")
            assert target.manifest("copy", "v2") is None
            text = json.dumps(normalize(result.json, tmp_path / kind)).replace(target.host, "TARGET")
            lock = (tmp_path / kind / "mirror.lock.json").read_text().replace(target.host, "TARGET")
        documents.append(json.loads(text))
        locks.append({name: record["digest"] for name, record in json.loads(lock)["images"].items()})

    assert documents[0] == documents[1]
    assert sorted(row["outcome"] for row in documents[1]["targets"]) == ["added", "vetoed"]
    assert locks[0] == locks[1]
    assert locks[1]


def test_the_json_of_each_direct_run_has_the_documented_keys(registry: FakeRegistry, tmp_path: Path) -> None:
    table, _ = read_documented_keys()
    store, name = tmp_path / "store", f"{registry.host}/app:v1"
    with FakeRegistry() as target:
        config = write_config(tmp_path, registry, f"{target.host}/copy", gate={"command": VETO})
        listed = tmp_path / "images.txt"
        listed.write_text(f"{name}\n")
        runs: list[tuple[int, tuple[str | Path, ...]]] = [
            (0, ("fetch", name)),
            (0, ("pull", "--platform", "linux/amd64", name, tmp_path / "root")),
            (0, ("push", name, f"{target.host}/pushed:v1")),
            (0, ("copy", name, f"{target.host}/copied:v1")),
            (0, ("copy", f"store:{name}", f"{target.host}/stored:v1")),
            (3, ("mirror", config)),
            (0, ("mirror", "--dry-run", config)),
            (0, ("seed", listed, "--to", f"{target.host}/seeded")),
            (0, ("check", config)),
            (0, ("verify",)),
            (0, ("gc", "--grace", "0")),
        ]
        for code, arguments in runs:
            result = dist_direct("--store", store, "--output", "json", *arguments)
            assert (result.code, result.json["status"]) == (code, "vetoed" if code else "complete"), result.err
            assert result.json["flow_run_id"] is None
            assert result.json["tasks"] > 0
            found = {place: keys for place, keys in find_objects(result.json) if not place.startswith(".errors")}
            assert {place: table[str(arguments[0]), place] for place in found} == found
        assert not find_missing(target, "seeded/app", ONE, "v1")


def test_a_direct_run_prints_no_address_and_with_debug_its_log(registry: FakeRegistry, tmp_path: Path) -> None:
    name = f"{registry.host}/app:v1"
    first = dist_direct("--store", tmp_path, "fetch", name)
    again = dist_direct("--store", tmp_path, "--debug", "fetch", name)

    assert (first.code, first.err.splitlines()) == (0, [f"{name} complete: 4 fetched, 0 existed"])
    assert first.lines[-1] == f"store: {tmp_path}"
    assert f"INFO prefect_dist.mirror.direct: {name} resolves to " in again.err


def test_a_direct_run_prints_a_warning_once_and_logs_it_with_debug(registry: FakeRegistry, tmp_path: Path) -> None:
    config = write_config(tmp_path, registry, f"{registry.host}/copy", referrerFilters=[{"artifactType": "a/b"}])
    warning = f"{config}:1: sync[0].referrerFilters: has no effect: referrers is not true"

    plain = dist_direct("mirror", "--dry-run", config)
    debug = dist_direct("--debug", "mirror", "--dry-run", config)

    assert [line for line in plain.err.splitlines() if "referrerFilters" in line] == [f"dist: warning: {warning}"]
    assert f"INFO prefect_dist.mirror.direct: {warning}" in debug.err.splitlines()


@pytest.mark.parametrize("kind", ["store", "credentials", "configured store", "configured credentials"])
def test_a_direct_run_refuses_prefect_blocks(kind: str, registry: FakeRegistry, tmp_path: Path) -> None:
    config = tmp_path / "mirror.yaml"
    sync = [{"type": "image", "source": f"{registry.host}/app:v1", "target": "registry.example/app:v1"}]
    known = {"registries": {"registry.example": {"block": "team"}}} if kind == "configured credentials" else {}
    store = "block:team" if kind == "configured store" else "store"
    config.write_text(json.dumps({"store": store, "sync": sync, **known}))
    arguments = {
        "store": ("--store", "block:team", "fetch", f"{registry.host}/app:v1"),
        "credentials": ("--store", tmp_path, "fetch", "--credentials", "team", f"{registry.host}/app:v1"),
    }.get(kind, ("mirror", config))

    result = dist_direct(*arguments)

    place = "store block:team" if "store" in kind else "credentials block team"
    remedy = "name a path or URL" if "store" in kind else "use docker login"
    assert result.code == 2
    assert result.line == f"dist: {place}: only a Prefect run can read blocks; leave out --direct, or {remedy}"
    assert registry.requests == []


def start_fetch(store: Path, name: str) -> subprocess.Popen[bytes]:
    """Start a direct fetch, and wait until the registry stalls."""
    arguments = command("--store", store, "--output", "json", "fetch", "--read-timeout", "10m", name)
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def has_stalled() -> bool:
        return any(status.offset == STALL_AT for status in open_store(str(store)).active())

    assert poll_until(lambda: has_stalled() or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    return process


@pytest.mark.parametrize("ending", [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
def test_a_direct_run_stops_at_a_signal_and_the_next_run_resumes(
    ending: tuple[signal.Signals, int, str], stalling: FakeRegistry, tmp_path: Path
) -> None:
    number, code, reason = ending
    name = f"{stalling.host}/app:v1"
    process = start_fetch(tmp_path, name)

    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE_S)  # without the signal, the stall would last ten minutes

    stopped = f"dist: {name}: {reason}; complete content is kept, run again to resume\n"
    assert (process.returncode, err.decode()) == (code, stopped)
    assert json.loads(out)["status"] == "stopped"
    check_resumption(stalling, tmp_path, name)


def test_the_direct_run_after_a_kill_transfers_only_the_rest(stalling: FakeRegistry, tmp_path: Path) -> None:
    name = f"{stalling.host}/app:v1"
    process = start_fetch(tmp_path, name)
    process.kill()
    process.communicate()
    check_resumption(stalling, tmp_path, name)


def check_resumption(registry: FakeRegistry, store: Path, name: str) -> None:
    """Fetch again, and check that the registry sends only the rest of the layer."""
    result = dist_direct("--store", store, "--output", "json", "fetch", name)
    assert result.code == 0, result.err
    first, second = registry.find_requests("GET", f"/v2/app/blobs/{LAYER}")
    size = len(BIG.blobs[LAYER])
    assert second.headers["range"] == f"bytes={STALL_AT}-{size - 1}"
    assert (first.sent, second.sent) == (STALL_AT, size - STALL_AT)
    assert list_contents(store) == set(BIG.descriptors)


def test_a_direct_run_ends_at_its_timeout(stalling: FakeRegistry, tmp_path: Path) -> None:
    result = dist_direct("--store", tmp_path, "--timeout", "12", "--output", "json", "fetch", f"{stalling.host}/app:v1")
    assert (result.code, result.json["status"]) == (1, "stopped")
    assert "not done within 12 s" in result.line


def test_two_direct_runs_on_one_store_fetch_each_blob_once(tmp_path: Path) -> None:
    image = images.image(9710, layers=4, layer_bytes=3_000_000)
    with FakeRegistry() as registry:
        images.load(registry, "app", image, "v1")
        arguments = command("--store", tmp_path, "--output", "json", "fetch", f"{registry.host}/app:v1")
        processes = [subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
        ended = [(process.communicate(timeout=PATIENCE_S), process.returncode) for process in processes]
        fetched = [request.path.rpartition("/")[2] for request in registry.requests if "/blobs/" in request.path]

    assert [code for _, code in ended] == [0, 0], ended
    assert sorted(fetched) == sorted(image.blobs)
    fetched_counts = [json.loads(out)["images"][0]["fetched"] for (out, _), _ in ended]
    assert sum(fetched_counts) == len(image.descriptors)
    assert list_contents(tmp_path) == set(image.descriptors)


def test_two_direct_mirrors_with_one_lock_file_record_all_their_images(registry: FakeRegistry, tmp_path: Path) -> None:
    with FakeRegistry() as target:
        lock, processes = tmp_path / "mirror.lock.json", []
        for tag in ("v1", "v2"):
            settings = {"tags": {"allow": [tag]}}
            config = write_config(tmp_path / tag, registry, f"{target.host}/copy-{tag}", **settings)
            document = json.loads(config.read_text()) | {"lock": str(lock)}
            config.write_text(json.dumps(document))
            processes.append(subprocess.Popen(command("mirror", config), stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        ended = [(process.communicate(timeout=PATIENCE_S), process.returncode) for process in processes]
        host = target.host

    assert [code for _, code in ended] == [0, 0], ended
    assert json.loads(lock.read_text())["images"].keys() == {f"{host}/copy-v1:v1", f"{host}/copy-v2:v2"}


def test_a_direct_run_waits_for_a_rate_limited_registry(registry: FakeRegistry, tmp_path: Path) -> None:
    path = f"/v2/app/blobs/{list(ONE.blobs)[-1]}"
    registry.inject(Fault(path=path, action=Answer(429, (("Retry-After", "1"),))))

    result = dist_direct("--store", tmp_path, "fetch", "--retries", "0", f"{registry.host}/app:v1")

    assert result.code == 0, result.err
    assert [request.status for request in registry.find_requests("GET", path)] == [429, 200]
    assert f"{registry.host}: rate-limited; requests pause for 1.0 s" in result.err


def test_a_direct_mirror_pushes_metrics(registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[tuple[str, bytes]] = []

    class Gateway(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            pushed.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server, FakeRegistry() as target:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setenv("DIST_METRICS", f"http://127.0.0.1:{server.server_port}")
        result = dist_direct("mirror", write_config(tmp_path, registry, f"{target.host}/copy"))
        server.shutdown()

    assert result.code == 0, result.err
    (path, body), (registry_path, registry_body) = pushed
    assert path == "/metrics/job/prefect-dist/flow/mirror/mirror/ours"
    assert b"dist_last_run_success 1.0" in body
    assert registry_path.startswith(f"{path}/registry")
    assert b"dist_registry_failed_targets 0.0" in registry_body
