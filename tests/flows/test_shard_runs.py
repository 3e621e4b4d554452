"""Mirror runs that a real worker carries out in shards, as runs of the deployment `mirror-shard`."""

import json
import os
import signal
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from uuid import UUID

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Completed, Crashed, Failed

from prefect_dist.flows import parent_run
from prefect_dist.flows.api import client
from prefect_dist.flows.parent_run import stop_with_parent
from prefect_dist.flows.shard_runs import DEPLOYMENT, ShardRuns
from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import Unavailable
from prefect_dist.storage.backend import open_backend
from prefect_dist.storage.runs import RunFiles
from prefect_dist.transfer.cancellation import CancelToken, use_token
from prefect_dist.transfer.events import ignore_event
from tests import images
from tests.cli.dist import dist_direct
from tests.fakes.faults import Call, Fault, Stall
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import count_uploads, find_missing
from tests.peers.prefect import PrefectServer
from tests.peers.processes import poll_until

APPS = {f"app{number}": images.image(960 + number, layers=1, layer_bytes=4_000_000) for number in range(4)}


@pytest.fixture
def source() -> Iterator[FakeRegistry]:
    with FakeRegistry() as source:
        for name, built in APPS.items():
            images.load(source, name, built, "v1")
        yield source


def configuration(source: FakeRegistry, target: FakeRegistry, directory: Path) -> str:
    """Return the text of a configuration that mirrors all repositories of a registry."""
    sync = [{"type": "registry", "source": source.host, "target": target.host}]
    store, lock = str(directory / "store"), str(directory / "lock.json")
    return json.dumps({"name": "nightly", "store": store, "lock": lock, "sync": sync})


def start_mirror(server: PrefectServer, config: str) -> str:
    """Start a mirror run that two shards carry out, and return its id.

    A response that stalls does not end for ten minutes, because a busy worker needs a minute to start the next shard.
    """
    return server.start("mirror", {"config": config, "workers": 2, "network": {"read_timeout": 600}})


def list_shards(server: PrefectServer, run: str) -> list[dict[str, Any]]:
    """Return the runs of the flow `mirror-shard` that a mirror run has submitted."""
    found = server.post("/flow_runs/filter", {"flows": {"name": {"any_": ["mirror-shard"]}}})
    return [one for one in found if one["parameters"]["run"] == run]


def find_processes(run: str) -> list[int]:
    """Return the processes that carry out a flow run."""
    wanted = f"PREFECT__FLOW_RUN_ID={run}".encode()
    found = list[int]()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@flow
def find_submitted(run: str) -> Mapping[int, Digest]:
    """Return the shards of a run that Prefect knows, as a later attempt of the run does."""
    shards = ShardRuns({}, workers=2, notify=ignore_event, deployment=DEPLOYMENT)
    shards.run = run
    return shards.find_submitted()


def test_workers_carry_out_the_shards_of_a_run_and_each_blob_is_transferred_once(
    server: PrefectServer, source: FakeRegistry, target: FakeRegistry, tmp_path: Path
) -> None:
    """The parent holds the only slot of the target while it plans. If the parent kept the slot, no shard could begin."""
    limit = f"registry:{target.host}"
    server.post("/v2/concurrency_limits/", {"name": limit, "limit": 1, "active": True})
    try:
        run = start_mirror(server, configuration(source, target, tmp_path))

        assert server.wait_for_end(run)["type"] == "COMPLETED", server.logs(run)
        assert server.get(f"/v2/concurrency_limits/{limit}")["active_slots"] == 0
    finally:
        server.delete(f"/v2/concurrency_limits/{limit}")
    assert [name for name, built in APPS.items() if find_missing(target, name, built, "v1")] == []
    shards = list_shards(server, run)
    digests = {one["parameters"]["shard"]: Digest.parse(one["parameters"]["digest"]) for one in shards}
    with temporary_settings({PREFECT_API_URL: server.url}):
        assert find_submitted(run) == digests
    assert [(one["name"], one["state_type"]) for one in sorted(shards, key=lambda one: one["name"])] == [
        ("nightly: shard 0", "COMPLETED"),
        ("nightly: shard 1", "COMPLETED"),
    ]
    reads = Counter(one.path for one in source.requests if one.method == "GET" and "/blobs/" in one.path)
    assert set(reads.values()) == {1}
    assert set(count_uploads(target.requests).values()) == {1}
    locked = json.loads((tmp_path / "lock.json").read_text())["images"]
    assert {name: record["mirrored"] is None for name, record in locked.items()} == dict.fromkeys(
        (f"{target.host}/{name}:v1" for name in APPS), False
    )


def test_workers_check_and_repair_the_targets_of_a_mirror(
    server: PrefectServer, source: FakeRegistry, target: FakeRegistry, tmp_path: Path
) -> None:
    text = configuration(source, target, tmp_path)
    (tmp_path / "mirror.yaml").write_text(text)
    mirrored = dist_direct("mirror", tmp_path / "mirror.yaml")
    assert mirrored.code == 0, mirrored.err
    layer = list(APPS["app1"].blobs)[-1]
    target.lose("app1", layer)
    target.untag("app2", "v1")
    before = len(target.requests)

    run = server.start("check", {"config": text, "workers": 2, "repair": True})

    state = server.wait_for_end(run)
    assert state["type"] == "COMPLETED", server.logs(run)
    assert "2 ok" in state["message"]
    assert "2 repaired" in state["message"]
    assert {(one["name"], one["state_type"]) for one in list_shards(server, run)} == {
        ("nightly: shard 0", "COMPLETED"),
        ("nightly: shard 1", "COMPLETED"),
    }
    assert [name for name, built in APPS.items() if find_missing(target, name, built, "v1")] == []
    assert set(count_uploads(target.requests[before:])) == {layer}
    assert not list((tmp_path / "store" / "runs").glob("*/*.json"))


def test_shards_whose_process_is_killed_or_stopped_run_again_and_resume(
    server: PrefectServer, source: FakeRegistry, target: FakeRegistry, tmp_path: Path
) -> None:
    layers = {name: list(built.blobs)[-1] for name, built in APPS.items()}
    for name, layer in layers.items():
        source.inject(Fault(path=f"/v2/{name}/blobs/{layer}", action=Stall(1_500_000)))
    run = start_mirror(server, configuration(source, target, tmp_path))

    def have_stalled() -> bool:
        files = [path for path in (tmp_path / "store" / "ingest").glob("*") if path.is_file()]
        return sum(path.stat().st_size == 1_500_000 for path in files) == len(layers)

    assert poll_until(have_stalled), server.logs(run)
    victims = [find_processes(shard["id"]) for shard in list_shards(server, run)]
    assert len(victims) == 2
    for pids, end in zip(victims, (signal.SIGKILL, signal.SIGTERM), strict=True):
        assert pids
        for pid in pids:
            os.kill(pid, end)

    assert server.wait_for_end(run)["type"] == "COMPLETED", server.logs(run)
    assert [name for name, built in APPS.items() if find_missing(target, name, built, "v1")] == []
    shards = list_shards(server, run)
    assert {one["name"] for one in shards} == {
        f"nightly: shard {number}{again}" for number in (0, 1) for again in ("", ", attempt 2")
    }
    assert Counter(one["state_type"] for one in shards) == {"CRASHED": 1, "CANCELLED": 1, "COMPLETED": 2}
    for name, layer in layers.items():
        ranges = [one.headers.get("range") for one in source.requests if one.path == f"/v2/{name}/blobs/{layer}"]
        assert ranges == [None, f"bytes=1500000-{len(APPS[name].blobs[layer]) - 1}"]
    assert set(count_uploads(target.requests).values()) == {1}


def test_a_cancelled_run_cancels_its_shards(
    server: PrefectServer, source: FakeRegistry, target: FakeRegistry, tmp_path: Path
) -> None:
    layer = list(APPS["app1"].blobs)[-1]
    source.inject(Fault(path=f"/v2/app1/blobs/{layer}", action=Stall(1_500_000)))
    begun = []
    source.inject(Fault(path=f"/v2/app1/blobs/{layer}", action=Call(lambda: begun.append(1))))
    run = start_mirror(server, configuration(source, target, tmp_path))
    assert poll_until(lambda: bool(begun)), server.logs(run)

    server.post(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})

    assert server.wait_for_end(run)["type"] == "CANCELLED"
    assert poll_until(
        lambda: not {one["state_type"] for one in list_shards(server, run)} & {"RUNNING", "CANCELLING", "PENDING"},
    ), [one["state"] for one in list_shards(server, run)]
    assert target.manifest("app1", "v1") is None


@flow
def end_at_once() -> None:
    """Do nothing."""


@flow(validate_parameters=False)  # else `looks` is a copy
def watch_parent(parent: str, looks: Sequence[str]) -> list[str | None]:
    """Return the reason why a run ends, before and after its parent is cancelled. `looks` counts the looks at the parent."""
    token = CancelToken()
    with use_token(token), stop_with_parent(parent):
        assert poll_until(lambda: len(looks) >= 3)
        before = token.reason
        client().set_flow_run_state(UUID(parent), Cancelling(), force=True)
        poll_until(lambda: token.reason is not None)
    return [before, token.reason]


def test_a_shard_stops_with_its_parent_although_prefect_lost_its_own_cancellation(
    prefect: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parent_run, "_PAUSE_S", 0.1)
    """Prefect ignores the cancellation of a run whose process is just starting. Here, Prefect does not cancel the shard."""
    looks = list[str]()
    is_cancelled = parent_run._is_cancelled

    def note_look(api: SyncPrefectClient, run: str) -> bool:
        looks.append(run)
        return is_cancelled(api, run)

    monkeypatch.setattr(parent_run, "_is_cancelled", note_look)
    with temporary_settings({PREFECT_API_URL: prefect.url}):
        parent = end_at_once(return_state=True).state_details.flow_run_id
        assert watch_parent(str(parent), looks) == [None, "the parent run was cancelled"]


@pytest.mark.parametrize("parent", [Completed(), Failed(), Crashed()], ids=["Completed", "Failed", "Crashed"])
def test_a_shard_does_not_start_after_the_end_of_its_parent(prefect: PrefectServer, tmp_path: Path, parent: State[Any]) -> None:
    """A shard may wait for a worker longer than its parent runs. A crashed parent may start again, and needs its shards."""
    from prefect_dist.flows.mirror_shard import mirror_shard

    with temporary_settings({PREFECT_API_URL: prefect.url}):
        run = str(end_at_once(return_state=True).state_details.flow_run_id)
        prefect.post(f"/flow_runs/{run}/set_state", {"state": {"type": parent.type, "name": parent.name}, "force": True})
        state = mirror_shard(run, 0, str(Digest.of(b"")), "key", str(tmp_path / "store"), return_state=True)

    if parent.is_crashed():
        assert state.is_failed()
        assert "the input of the shard is missing" in str(state.message)
    else:
        assert state.is_cancelled()
        assert state.message == f"the parent run has ended as {parent.name}, and needs no result of this shard"


def test_a_prefect_server_without_the_deployment_is_named(prefect: PrefectServer, tmp_path: Path) -> None:
    from prefect_dist.flows.mirror import mirror

    text = json.dumps({"sync": [{"type": "image", "source": "a.invalid/x:v1", "target": "b.invalid/x:v1"}]})
    with temporary_settings({PREFECT_API_URL: prefect.url}):
        state = mirror(text, str(tmp_path / "store"), workers=2, worker_deployment="mirror-shard/none", return_state=True)
    assert state.is_failed()
    assert str(state.message).startswith("Prefect has no deployment mirror-shard/none; deploy the entry point prefect_dist")


@flow
def submit_shard(deployment: str) -> str:
    """Return the error of a shard that Prefect refuses."""
    backend, _, layout = open_backend(f"memory://{uuid.uuid4().hex}", {})
    shards = ShardRuns({}, workers=1, notify=ignore_event, deployment=deployment)
    ((_, error),) = shards.carry_out({0: Digest.of(b"")}, RunFiles(backend, layout, "run"))
    return str(error)


def test_a_deployment_of_an_older_version_is_named_with_the_remedy(prefect: PrefectServer) -> None:
    flow_id = prefect.post("/flows/", {"name": "mirror-shard"})["id"]
    schema = {"type": "object", "properties": {"images": {"type": "string"}}, "required": ["images"]}
    old = {"name": "old", "flow_id": flow_id, "parameter_openapi_schema": schema, "enforce_parameter_schema": True}
    deployment = prefect.post("/deployments/", old)["id"]
    try:
        with temporary_settings({PREFECT_API_URL: prefect.url}):
            error = submit_shard("mirror-shard/old")
    finally:
        prefect.delete(f"/deployments/{deployment}")
    assert "Prefect does not start a run of the deployment mirror-shard/old" in error
    assert "'images' is a required property" in error
    assert error.endswith("deploy this version again: prefect deploy --all")


def test_a_divided_check_waits_for_no_slots_because_its_parent_sends_no_request(prefect: PrefectServer, tmp_path: Path) -> None:
    from prefect_dist.flows.check import check

    text = json.dumps({"sync": [{"type": "image", "source": "a.invalid/x:v1", "target": "b.invalid/x:v1"}]})
    limit = "registry:b.invalid"
    prefect.post("/v2/concurrency_limits/", {"name": limit, "limit": 1, "active": True})
    try:
        prefect.post("/v2/concurrency_limits/increment", {"names": [limit], "slots": 1, "mode": "concurrency"})
        with temporary_settings({PREFECT_API_URL: prefect.url}):
            state = check(text, str(tmp_path / "store"), workers=2, worker_deployment="mirror-shard/none", return_state=True)
    finally:
        prefect.delete(f"/v2/concurrency_limits/{limit}")
    assert str(state.message).startswith("Prefect has no deployment mirror-shard/none")


def test_time_without_a_worker_and_time_without_the_store_are_no_silence_of_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect_dist.flows.shard_runs import ShardAttempt, find_last_sign

    long_ago = time.monotonic() - 100
    attempt = ShardAttempt(0, Digest.of(b""), seen=(None, long_ago))
    attempt.note_start()
    assert not attempt.is_silent(None)

    written = datetime.now(UTC)
    attempt.seen = written, long_ago
    attempt.note_start()  # of a run that has begun already
    assert attempt.is_silent(written)

    backend, _, layout = open_backend(f"memory://{uuid.uuid4().hex}", {})
    files = RunFiles(backend, layout, "run")
    assert find_last_sign(attempt, files) is None
    assert attempt.is_silent(written)
    monkeypatch.setattr(backend.fs, "info", Mock(side_effect=ConnectionResetError("the store is away")))
    assert find_last_sign(attempt, files) == written
    assert not attempt.is_silent(written)


def test_a_parent_waits_for_an_unreachable_api_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect_dist.flows import shard_api
    from prefect_dist.flows.api import ApiUnavailable

    answers = iter([httpx.ConnectError("refused"), httpx.ReadTimeout("late"), None])
    notes = list[Any]()
    api = shard_api.PatientApi(notes.append, CancelToken())

    def answer() -> str:
        if (error := next(answers)) is not None:
            raise error
        return "answer"

    assert [api.call(answer) for _ in range(3)] == [None, None, "answer"]
    assert [note.text for note in notes] == ["Prefect's API does not answer, and the shards continue without it: refused"]

    monkeypatch.setattr(shard_api, "_API_AWAY_S", 0.0)
    with pytest.raises(ApiUnavailable, match="has not answered for 0 minutes: refused"):
        api.call(Mock(side_effect=httpx.ConnectError("refused")))


def test_an_answer_of_a_proxy_is_an_error_with_a_remedy() -> None:
    from prefect_dist.flows import shard_api

    api = shard_api.PatientApi(ignore_event, CancelToken())
    page = httpx.Response(200, text="<html>Sign in</html>")
    for read in (page.json, lambda: FlowRun.model_validate_json(page.text)):
        with pytest.raises(Unavailable) as caught:
            api.call(read)
        assert str(caught.value).startswith("Prefect's API gave an unreadable answer (")
        assert str(caught.value).endswith("; check PREFECT_API_URL, and the proxies between this machine and Prefect")
        assert "Sign in" not in str(caught.value)
