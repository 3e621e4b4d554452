"""One active run per flow and configuration: later runs are cancelled, and a dead run does not block the next run."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests import images
from tests.fakes.faults import Fault, Response, Wire
from tests.fakes.registry import FakeRegistry
from tests.peers.prefect import PrefectServer
from tests.peers.processes import poll_until

BUILT = images.image(7400, layers=1)
LAYER = list(BUILT.blobs)[-1]

pytestmark = pytest.mark.timeout(900)


@dataclass(slots=True)
class HeldResponses:
    """Holds responses until their clients disconnect, and counts the responses."""

    after: int = 0
    count: int = 0

    def apply(self, response: Response) -> Response:
        self.count += 1
        return replace(response, interruption=self)

    def interrupt(self, wire: Wire) -> bool:
        return wire.wait(None)


@dataclass(frozen=True, slots=True)
class DeploymentRuns:
    """Starts runs of one flow, with a configuration for an image at `source` and `target`."""

    server: PrefectServer
    flow: str
    source: FakeRegistry
    target: FakeRegistry
    directory: Path
    held: HeldResponses

    def start(self) -> str:
        """Start a run and return its id."""
        store = {} if self.flow == "mirror" else {"store": str(self.directory / "store")}
        patient = {"read_timeout": 600}
        return self.server.start(self.flow, {"config": self._configuration(), "network": patient, **store})

    def start_and_wait(self) -> str:
        """Start a run, and return its id once the run waits for a held response."""
        before, run = self.held.count, self.start()
        assert poll_until(lambda: self.held.count > before), self.server.logs(run)
        return run

    def kill(self, run: str) -> None:
        """Kill the process of a run."""
        os.kill(int(self.server.get(f"/flow_runs/{run}")["infrastructure_pid"].rpartition(":")[2]), signal.SIGKILL)

    def cancel(self, run: str) -> None:
        """Cancel a run, and wait until it has ended."""
        self.server.post(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
        assert self.server.wait_for_end(run)["type"] == "CANCELLED"

    def limit(self, run: str) -> str:
        """Return the name of the limit of a run, which is a tag of the run."""
        (tag,) = [tag for tag in self.server.get(f"/flow_runs/{run}")["tags"] if tag.startswith(f"{self.flow}:")]
        return str(tag)

    def _configuration(self) -> str:
        source, target = f"{self.source.host}/app:v1", f"{self.target.host}/app:v1"
        lock = self.directory / "lock.json"
        if self.flow == "check":
            record = {"source": source, "digest": BUILT.root.digest, "mirrored": "2026-01-01T00:00:00Z", "own": True}
            lock.write_text(json.dumps({"version": 1, "images": {target: record}}))
        wanted: dict[str, object] = {"seed": {"images": [source], "to": self.target.host}}
        if self.flow != "seed":
            wanted = {"sync": [{"type": "image", "source": source, "target": target}]}
        return json.dumps({"store": str(self.directory / "store"), "lock": str(lock), **wanted})


@contextmanager
def open_runs(server: PrefectServer, flow: str, times: int, directory: Path) -> Iterator[DeploymentRuns]:
    """Yield runs of a flow between new registries, with a number of held responses."""
    held = HeldResponses()
    with FakeRegistry() as source, FakeRegistry() as target:
        images.load(source, "app", BUILT, "v1")
        if flow == "check":
            images.load(target, "app", BUILT, "v1")
            target.inject(Fault(path="/v2/app/manifests/.*", times=times, action=held))
        else:
            source.inject(Fault(path=f"/v2/app/blobs/{LAYER}", times=times, action=held))
        yield DeploymentRuns(server, flow, source, target, directory, held)


@pytest.fixture
def runs(request: pytest.FixtureRequest, server: PrefectServer, tmp_path: Path) -> Iterator[DeploymentRuns]:
    """Runs of a flow, with a number of held responses. The test gives both as the parameter."""
    flow, times = request.param
    with open_runs(server, flow, times, tmp_path) as opened:
        yield opened


@pytest.fixture(scope="module", autouse=True)
def died(server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DeploymentRuns, str]]:
    """A run whose process was killed and whose state is Running, with the path of its limit.

    The lease of the run lasts for a minute, the minimum of Prefect. The lease expires while the other tests run.
    """
    with open_runs(server, "mirror", 1, tmp_path_factory.mktemp("died")) as runs:
        run = runs.start_and_wait()
        slots = f"/v2/concurrency_limits/{runs.limit(run)}"
        runs.kill(run)
        held = server.get(slots)["active_slots"]
        assert server.wait_for_end(run)["type"] == "CRASHED"
        # Without a worker that reports the crash, the run would remain in the state Running for ever.
        answer = server.post(f"/flow_runs/{run}/set_state", {"state": {"type": "RUNNING"}, "force": True})
        assert (held, answer["status"]) == (1, "ACCEPT")
        yield runs, slots


@pytest.mark.parametrize("runs", [("check", 1), ("seed", 1)], indirect=True)
def test_a_second_run_of_the_same_configuration_is_cancelled(runs: DeploymentRuns) -> None:
    """`test_deployments` starts mirrors, also with another configuration."""
    run = runs.start_and_wait()

    cancelled = runs.server.wait_for_end(runs.start())

    assert cancelled["type"] == "CANCELLED"
    assert f"({run}) of this configuration is already active" in cancelled["message"]
    assert runs.held.count == 1
    runs.cancel(run)


@pytest.mark.parametrize("runs", [("mirror", 2)], indirect=True)
def test_a_run_takes_the_slot_of_a_crashed_run_and_keeps_it_after_the_lease_expires(runs: DeploymentRuns) -> None:
    server, crashed = runs.server, runs.start_and_wait()
    runs.kill(crashed)
    assert server.wait_for_end(crashed)["type"] == "CRASHED"
    limit = f"/v2/concurrency_limits/{runs.limit(crashed)}"
    # A lease of the same kind as the crashed run has, but with a known id, so that the test can end it at a known time.
    server.patch(limit, {"limit": 2})
    wanted = {"names": [runs.limit(crashed)], "slots": 1, "lease_duration": 3600}
    lease = server.post("/v2/concurrency_limits/increment-with-lease", wanted)["lease_id"]
    server.patch(limit, {"limit": 1})

    run = runs.start_and_wait()
    server.post("/v2/concurrency_limits/decrement-with-lease", {"lease_id": lease})  # as the server does when it expires
    third = server.wait_for_end(runs.start())

    assert third["type"] == "CANCELLED"
    assert f"({run}) of this configuration is already active" in third["message"]
    assert runs.held.count == 2
    runs.cancel(run)


def test_a_dead_run_in_state_running_holds_its_slot_only_until_its_lease_expires(died: tuple[DeploymentRuns, str]) -> None:
    runs, slots = died

    assert poll_until(lambda: runs.server.get(slots)["active_slots"] == 0)  # a lease lasts for 60 seconds
    late = runs.server.wait_for_end(runs.start())

    assert late["type"] == "COMPLETED", late
    assert runs.target.manifest("app", "v1") is not None
