"""Deployments of `prefect.yaml` on a real Prefect server with a real worker: their settings, and their runs."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from tests import images
from tests.cli.dist import dist
from tests.fakes.faults import Fault, Stall
from tests.fakes.registry import FakeRegistry
from tests.flows.deploying import POOL, TOP, run_prefect
from tests.flows.mirrors import find_missing
from tests.images import BuiltImage
from tests.peers.prefect import PrefectServer
from tests.peers.processes import poll_until
from tests.peers.registry import CncfRegistry, cncf_registry
from tests.peers.skopeo import inspect

FLOWS = ("check", "copy", "fetch", "gc", "mirror", "pull", "push", "seed", "verify")
SCHEDULES = {
    "mirror": {"cron": "0 3 * * *", "timezone": "Etc/UTC", "day_or": True},
    "check": {"cron": "0 6 * * 0", "timezone": "Etc/UTC", "day_or": True},
    "gc": {"interval": 86400.0, "anchor_date": "2026-01-01T04:00:00Z", "timezone": "Etc/UTC"},
    "verify": {"interval": 604800.0, "anchor_date": "2026-01-03T06:00:00Z", "timezone": "Etc/UTC"},
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CncfRegistry]:
    with cncf_registry(tmp_path_factory.mktemp("target")) as running:
        yield running


def configuration(source: str, target: str, directory: Path) -> str:
    """Return the text of a configuration that mirrors one image."""
    sync = [{"type": "image", "source": source, "target": target}]
    return json.dumps({"store": str(directory / "store"), "lock": str(directory / "lock.json"), "sync": sync})


def test_each_flow_has_a_deployment_without_a_path_of_this_machine(server: PrefectServer, home: Path) -> None:
    for name in FLOWS:
        found = server.deployment(name)
        assert found["entrypoint"] == f"prefect_dist.flows.{name}.{name}"
        assert found["path"] is None
        assert not [path for path in (home, TOP) if str(path) in json.dumps(found)]
        assert (found["work_pool_name"], found["tags"], found["pull_steps"]) == (POOL, ["dist"], [])
        assert found["enforce_parameter_schema"]
        assert found["description"]
        schedules = [(one["schedule"], one["active"]) for one in found["schedules"]]
        assert schedules == ([(SCHEDULES[name], False)] if name in SCHEDULES else [])
        assert found["parameters"] == ({"config": "block:mirror"} if name in ("mirror", "check") else {"store": "block:dist"})
        limit = (found["global_concurrency_limit"] or {}).get("limit")
        assert limit == (1 if name == "verify" else None)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("fetch", {"references": []}, "'references'"),
        ("gc", {"store": "x", "dry_run": "maybe"}, "'maybe' is not of type 'boolean'"),
        ("mirror", {"config": "x", "concurrency": 65}, "65 is greater than the maximum of 64"),
        ("mirror", {"config": "x", "network": {"read_timeout": 0}}, "network"),
    ],
)
def test_invalid_parameters_are_refused_before_the_run(
    server: PrefectServer, name: str, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(HTTPError) as refused:
        server.start(name, parameters)
    assert refused.value.code == 409
    assert message in refused.value.read().decode()


def test_a_deployment_runs_from_the_command_line_of_prefect(
    server: PrefectServer, registry: CncfRegistry, target: CncfRegistry, tmp_path: Path, home: Path
) -> None:
    """The content store and the configuration are in blocks, as in the deployments."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from prefect_dist.flows.blocks import ContentStore, MirrorConfiguration

    built = images.image(7000, layers=2)
    images.push(registry.host, "deployed/cli", built, "v1")
    sync = [{"type": "image", "source": f"{registry.host}/deployed/cli:v1", "target": f"{target.host}/cli:v1"}]
    text = json.dumps({"store": "block:dist", "lock": str(tmp_path / "lock.json"), "sync": sync})
    with temporary_settings({PREFECT_API_URL: server.url}):
        MirrorConfiguration(text=text).save("mirror", overwrite=True)
        ContentStore(url=str(tmp_path / "store")).save("dist", overwrite=True)

    output = run_prefect(server, "deployment", "run", "mirror/mirror", "--watch", home=home / "worker")

    assert "finished successfully" in output
    assert inspect(f"docker://{target.host}/cli:v1")["Digest"] == built.root.digest


def test_the_printed_steps_of_init_end_in_successful_runs(
    server: PrefectServer, registry: CncfRegistry, target: CncfRegistry, tmp_path: Path, home: Path
) -> None:
    built = images.image(7003, layers=1)
    images.push(registry.host, "deployed/steps", built, "3.22.1")
    project = tmp_path / "project"
    steps = dist("init", project).out.decode()
    (script,) = re.findall(r"^ *python - <<'END'\n.*?^ *END$", steps, re.MULTILINE | re.DOTALL)
    assert "remove the # before store and lock in mirror.yaml" in steps
    text = re.sub(r"^# (store|lock): ", r"\1: ", (project / "mirror.yaml").read_text(), flags=re.MULTILINE)
    places = {
        "/var/lib/dist": str(tmp_path / "data"),
        "source: alpine": f"source: {registry.host}/deployed/steps",
        "registry.example.org/hub": f"{target.host}/steps",
    }
    for shown, real in places.items():
        assert shown in text
        text = text.replace(shown, real)
    (project / "mirror.yaml").write_text(text)
    script = script.replace("/var/lib/dist", places["/var/lib/dist"])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PREFECT_API_URL": server.url, "PREFECT_HOME": str(home / "worker")}
    subprocess.run(["bash", "-ec", script], cwd=project, env=env, check=True)

    for name in ("mirror", "check"):  # these two need the keys that are commented out
        run = server.start(name, {})
        assert server.wait_for_end(run)["type"] == "COMPLETED", server.logs(run)

    assert inspect(f"docker://{target.host}/steps/alpine:3.22.1")["Digest"] == built.root.digest
    assert (tmp_path / "data" / "mirror.lock.json").exists()


def test_a_deployment_runs_from_the_api_with_the_configuration_as_a_parameter(
    server: PrefectServer, registry: CncfRegistry, target: CncfRegistry, tmp_path: Path
) -> None:
    built = images.image(7001, layers=2)
    images.push(registry.host, "deployed/api", built, "v1")
    text = configuration(f"{registry.host}/deployed/api:v1", f"{target.host}/api:v1", tmp_path)

    run = server.start("mirror", {"config": text})

    state = server.wait_for_end(run)
    assert state["type"] == "COMPLETED", state
    assert state["message"].startswith("mirror configuration complete: 1 added")
    assert inspect(f"docker://{target.host}/api:v1")["Digest"] == built.root.digest


def test_a_deployment_runs_on_a_schedule(
    server: PrefectServer, registry: CncfRegistry, target: CncfRegistry, tmp_path: Path
) -> None:
    built = images.image(7002, layers=2)
    images.push(registry.host, "deployed/schedule", built, "v1")
    text = configuration(f"{registry.host}/deployed/schedule:v1", f"{target.host}/schedule:v1", tmp_path)
    deployment = server.deployment("mirror")["id"]
    every = {"interval": 15, "timezone": "Etc/UTC"}
    schedule = {"schedule": every, "active": True, "parameters": {"config": text}, "max_scheduled_runs": 1}
    (made,) = server.post(f"/deployments/{deployment}/schedules", [schedule])
    runs: list[dict[str, Any]] = []

    def has_run() -> bool:
        completed = {"deployments": {"id": {"any_": [deployment]}}, "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
        runs[:] = [run for run in server.post("/flow_runs/filter", completed) if run["auto_scheduled"]]
        return bool(runs)

    try:
        assert poll_until(has_run)
    finally:
        server.delete(f"/deployments/{deployment}/schedules/{made['id']}")
    assert runs[0]["parameters"]["config"] == text
    assert runs[0]["name"] == "mirror configuration"
    assert inspect(f"docker://{target.host}/schedule:v1")["Digest"] == built.root.digest


@pytest.fixture
def stalled_image() -> Iterator[tuple[FakeRegistry, BuiltImage, str]]:
    """A registry whose first response stops in the middle of a layer, the image, and the digest of the layer."""
    built = images.image(7003, layers=1, layer_bytes=4_000_000)
    layer = list(built.blobs)[-1]
    with FakeRegistry() as source:
        images.load(source, "app", built, "v1")
        source.inject(Fault(path=f"/v2/app/blobs/{layer}", action=Stall(1_500_000)))
        yield source, built, layer


def _has_stalled(directory: Path) -> bool:
    """Return True once the store has all bytes that the stalled_image registry sent."""
    files = (path for path in (directory / "store").rglob("*") if path.is_file())
    return any(path.stat().st_size == 1_500_000 for path in files)


def assert_ended_as_cancelled_because_of(active: str, state: dict[str, Any]) -> None:
    assert state["type"] == "CANCELLED"
    assert f"({active}) of this configuration is already active" in state["message"]


def assert_failed_with_one_line(server: PrefectServer, run: str, missing: str) -> None:
    """Check that a run started and did not find an image, and that its state has the cause."""
    state = server.wait_for_end(run)
    assert state["type"] == "FAILED"
    assert state["message"].startswith("mirror configuration failed: ")
    assert missing in state["message"]
    assert "\n" not in state["message"]
    assert not [line for line in server.logs(run) if "Traceback" in line]


def test_only_a_run_of_another_configuration_starts_next_to_an_active_run_and_a_cancelled_run_is_resumed(
    server: PrefectServer, stalled_image: tuple[FakeRegistry, BuiltImage, str], tmp_path: Path
) -> None:
    source, built, layer = stalled_image
    with FakeRegistry() as target:
        text = configuration(f"{source.host}/app:v1", f"{target.host}/app:v1", tmp_path)
        # With the default time limit, the run requests the layer again while a busy worker starts the other runs.
        run = server.start("mirror", {"config": text, "network": {"read_timeout": 600}})
        assert poll_until(lambda: _has_stalled(tmp_path))

        other = configuration(f"{source.host}/none:v1", f"{target.host}/none:v1", tmp_path)
        overlapping, failing = (server.start("mirror", {"config": one}) for one in (text, other))
        assert_ended_as_cancelled_because_of(run, server.wait_for_end(overlapping))
        assert_failed_with_one_line(server, failing, f"{source.host}/none:v1")
        server.post(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
        state = server.wait_for_end(run)

        assert state["type"] == "CANCELLED"
        # After a while, the worker replaces this message by a message of Prefect.
        messages = [one["message"] for one in server.get(f"/flow_run_states/?flow_run_id={run}") if one["type"] == "CANCELLED"]
        assert messages[0].startswith("mirror configuration stopped: ")
        assert messages[0].endswith("complete content is kept, run again to resume")
        assert not [line for line in server.logs(run) if "Traceback" in line]
        # Prefect's cleanup of cancelled runs may find a task run whose end the server has not recorded yet.
        assert {one["state_type"] for one in server.task_runs(run, at_least=4)} <= {"COMPLETED", "FAILED", "CANCELLED"}
        assert target.manifest("app", "v1") is None

        again = server.start("mirror", {"config": text})

        assert server.wait_for_end(again)["type"] == "COMPLETED"
        assert not find_missing(target, "app", built, "v1")
    requests = [one for one in source.requests if one.method == "GET" and one.path.endswith(layer)]
    assert [one.headers.get("range") for one in requests] == [None, f"bytes=1500000-{len(built.blobs[layer]) - 1}"]


def test_the_state_of_a_run_with_an_invalid_configuration_has_the_error_in_one_line(server: PrefectServer) -> None:
    run = server.start("mirror", {"config": "name: nightly\nsynch: []\n"})
    state = server.wait_for_end(run)
    assert (state["type"], state["message"]) == ("FAILED", "configuration:2: synch: unknown key; did you mean sync")
    assert server.get(f"/flow_runs/{run}")["name"] == "mirror nightly"
    assert not [line for line in server.logs(run) if "Traceback" in line]
