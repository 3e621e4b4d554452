"""Controls of an operator in Prefect: limits, retries, suspension and time limits. The registry counts their effect."""

import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from prefect_dist.flows import parent_run
from prefect_dist.storage import open_store
from tests import images
from tests.cli.dist import dist
from tests.fakes.faults import Answer, Call, Fault, Response, Stall, Wire
from tests.fakes.registry import FakeRegistry
from tests.flows.deploying import TOP, run_prefect
from tests.flows.mirrors import Mirrors, find_missing, image
from tests.peers.prefect import PrefectServer
from tests.peers.processes import poll_until

MANY = images.image(7200, layers=4, layer_bytes=2000)
# Delay of each response. Without a limit, other requests arrive during the delay.
_DELAY_S = 0.5


@dataclass(slots=True)
class Gauge:
    """Delays responses, and counts how many responses are delayed at the same time."""

    after: int = 0
    most: int = 0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def apply(self, response: Response) -> Response:
        return replace(response, interruption=self)

    def interrupt(self, _wire: Wire) -> bool:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        threading.Event().wait(_DELAY_S)
        with self._lock:
            self._now -= 1
        return True


@pytest.fixture
def gauge(source: FakeRegistry) -> Gauge:
    """Gauge of the layers and configs that a run reads at the same time."""
    images.load(source, "app", MANY, "v1")
    gauge = Gauge()
    source.inject(Fault(path="/v2/app/blobs/.*", nth=None, action=gauge))
    return gauge


@pytest.fixture
def limit(prefect: PrefectServer, source: FakeRegistry) -> Iterator[str]:
    """A limit of one on tasks with requests to the source."""
    made = prefect.post("/concurrency_limits/", {"tag": f"registry:{source.host}", "concurrency_limit": 1})
    yield made["tag"]
    prefect.delete(f"/concurrency_limits/{made['id']}")


@pytest.fixture
def slots(prefect: PrefectServer, source: FakeRegistry) -> Iterator[str]:
    """A global limit of three slots on the source."""
    name = f"registry:{source.host}"
    prefect.post("/v2/concurrency_limits/", {"name": name, "limit": 3, "active": True})
    yield name
    prefect.delete(f"/v2/concurrency_limits/{name}")


def test_a_run_without_a_limit_sends_several_requests_at_once(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, gauge: Gauge
) -> None:
    assert mirrors.run(image(source, target, "app:v1")).status == "complete"
    assert gauge.most > 1


def test_a_run_respects_the_concurrency_limit_of_a_registry_tag(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, *, gauge: Gauge, limit: str, prefect: PrefectServer
) -> None:
    report = mirrors.run(image(source, target, "app:v1"))

    assert report.status == "complete"
    assert gauge.most == 1
    assert not find_missing(target, "app", MANY, "v1")
    runs = prefect.task_runs(mirrors.flow_run, at_least=report.tasks)
    assert {tag for run in runs for tag in run["tags"]} == {limit}


def test_a_task_is_retried_as_often_as_the_run_allows(mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry) -> None:
    layer = list(MANY.blobs)[-1]
    images.load(source, "app", MANY, "v1")
    source.inject(Fault(path=f"/v2/app/blobs/{layer}", nth=None, action=Answer(503)))

    report = mirrors.run(image(source, target, "app:v1"), retries=2)

    assert report.status == "failed"
    assert len([one for one in source.requests if one.path.endswith(layer)]) == 1 + 2
    assert target.manifest("app", "v1") is None


def fetch_twice(source: FakeRegistry, directory: Path) -> list[str]:
    """Fetch an image with two commands at the same time, into separate stores. Return the ids of their flow runs."""

    def fetch(name: str) -> str:
        done = dist("--store", directory / name, "--output", "json", "fetch", f"{source.host}/app:v1")
        assert done.code == 0, done.err
        assert {str(info.digest) for info in open_store(str(directory / name)).walk()} == set(MANY.descriptors)
        return str(done.json["flow_run_id"])

    with ThreadPoolExecutor(2) as executor:
        return list(executor.map(fetch, ("one", "other")))


def test_two_runs_share_the_concurrency_limit_of_a_registry_tag(
    prefect: PrefectServer, source: FakeRegistry, gauge: Gauge, limit: str, tmp_path: Path
) -> None:
    """Two processes. Without the limit, each process would send several requests at once."""
    assert limit
    runs = [prefect.get(f"/flow_runs/{run}") for run in fetch_twice(source, tmp_path)]

    assert gauge.most == 1
    assert max(run["start_time"] for run in runs) < min(run["end_time"] for run in runs)  # the runs overlapped


def test_a_run_has_at_most_one_request_in_flight_per_slot_of_a_global_limit(
    mirrors: Mirrors,
    source: FakeRegistry,
    target: FakeRegistry,
    *,
    gauge: Gauge,
    slots: str,
    prefect: PrefectServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert mirrors.run(image(source, target, "app:v1")).status == "complete"
    assert gauge.most == 3
    assert f"holds 3 slots of Prefect limit {slots}" in caplog.text
    assert prefect.get(f"/v2/concurrency_limits/{slots}")["active_slots"] == 0


def test_runs_share_the_slots_of_a_global_limit(
    prefect: PrefectServer, source: FakeRegistry, gauge: Gauge, slots: str, tmp_path: Path
) -> None:
    """Two processes. Without the limit, each process would send five requests at once. The second waits for slots."""
    assert len(set(fetch_twice(source, tmp_path))) == 2

    assert gauge.most == 3
    assert Counter(requested_blobs(source)) == dict.fromkeys(MANY.blobs, 2)
    assert prefect.get(f"/v2/concurrency_limits/{slots}")["active_slots"] == 0


def test_a_suspended_run_sends_no_requests_and_continues_after_resume(
    server: PrefectServer, source: FakeRegistry, tmp_path: Path
) -> None:
    built = images.image(7300, layers=40)
    images.load(source, "app", built, "v1")
    source.inject(Fault(path="/v2/app/blobs/.*", nth=None, action=Gauge()))
    store = tmp_path / "store"
    run = server.start("fetch", {"references": [f"{source.host}/app:v1"], "store": str(store), "concurrency": 2})
    assert poll_until(lambda: len(requested_blobs(source)) > 2)

    hour = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    details = {"pause_reschedule": True, "pause_timeout": hour}
    server.post(f"/flow_runs/{run}/set_state", {"state": {"type": "PAUSED", "name": "Suspended", "state_details": details}})
    assert poll_until(lambda: any("Finished in state Suspended" in line for line in server.logs(run)))
    before = requested_blobs(source)
    assert len(before) < len(built.blobs)
    server.post(f"/flow_runs/{run}/resume", {})

    assert server.wait_for_end(run)["type"] == "COMPLETED"
    assert str(open_store(str(store)).names.get(f"{source.host}/app:v1").descriptor.digest) == built.root.digest
    assert set(requested_blobs(source)) == built.blobs.keys()
    repeated = {digest for digest, times in Counter(requested_blobs(source)).items() if times > 1}
    assert repeated <= set(before[-2:])  # requests that the suspension interrupted


@pytest.fixture
def time_limit(server: PrefectServer, tmp_path: Path) -> Iterator[None]:
    """The automation that cancels long runs, after ten seconds, the minimum of Prefect."""
    shipped = (TOP / "automations" / "too-long.yaml").read_text()
    short = tmp_path / "too-long.yaml"
    short.write_text(shipped.replace("within: 14400", "within: 10"))
    output = run_prefect(server, "automation", "create", "--from-file", str(short), home=tmp_path)
    (made,) = re.findall(r"with id\s+([0-9a-f-]{36})", output)
    yield
    server.delete(f"/automations/{made}")


@pytest.mark.usefixtures("time_limit")
def test_a_run_that_takes_too_long_is_cancelled_and_the_next_run_resumes(
    server: PrefectServer, source: FakeRegistry, tmp_path: Path
) -> None:
    images.load(source, "app", MANY, "v1")
    stalling = list(MANY.blobs)[-1]
    source.inject(Fault(path=f"/v2/app/blobs/{stalling}", nth=1, action=Stall(100)))
    wanted = {"references": [f"{source.host}/app:v1"], "store": str(tmp_path / "store")}

    first = server.start("fetch", wanted)
    assert server.wait_for_end(first)["type"] == "CANCELLED"
    before = requested_blobs(source)
    second = server.start("fetch", wanted)
    assert server.wait_for_end(second)["type"] == "COMPLETED"

    assert progress(server, first)[0] < 100
    assert progress(server, first)[1].startswith("0 of 1 image finished, 1 failed, 5 of 6 descriptors, 1 failed, ")
    assert progress(server, second)[0] == 100
    assert Counter(before) == dict.fromkeys(MANY.blobs, 1)
    assert requested_blobs(source)[len(before) :] == [stalling]


# A program that runs a flow with the tag of runs of deployments.
_TAGGED = """
import sys
from prefect import tags
from prefect_dist.flows.fetch import fetch

with tags("dist"):
    fetch([sys.argv[1]], sys.argv[2])
"""


@pytest.fixture
def silence(prefect: PrefectServer, tmp_path: Path) -> Iterator[None]:
    """The automation that marks silent runs as crashed, after ten seconds, the minimum of Prefect."""
    shipped = (TOP / "automations" / "silent.yaml").read_text()
    short = tmp_path / "silent.yaml"
    short.write_text(shipped.replace("within: 600", "within: 10"))
    output = run_prefect(prefect, "automation", "create", "--from-file", str(short), home=tmp_path)
    (made,) = re.findall(r"with id\s+([0-9a-f-]{36})", output)
    yield
    prefect.delete(f"/automations/{made}")


@pytest.mark.usefixtures("silence")
def test_a_run_whose_process_is_killed_is_marked_as_crashed(
    prefect: PrefectServer, source: FakeRegistry, tmp_path: Path
) -> None:
    images.load(source, "silent", MANY, "v1")
    source.inject(Fault(path="/v2/silent/blobs/.*", nth=None, action=Stall(0)))
    argv = [sys.executable, "-c", _TAGGED, f"{source.host}/silent:v1", str(tmp_path / "store")]
    process = subprocess.Popen(argv, env={**os.environ, "PREFECT_API_URL": prefect.url})
    wanted = {"flow_runs": {"name": {"any_": [f"fetch {source.host}/silent:v1"]}, "state": {"type": {"any_": ["RUNNING"]}}}}
    assert poll_until(lambda: bool(prefect.post("/flow_runs/filter", wanted)))
    (run,) = prefect.post("/flow_runs/filter", wanted)
    heartbeat = {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": {"id": [f"prefect.flow-run.{run['id']}"]}}
    assert poll_until(lambda: bool(prefect.post("/events/filter", {"filter": heartbeat})["events"]))

    process.kill()
    process.wait()

    state = prefect.wait_for_end(run["id"])
    assert (state["type"], state["message"].partition(";")[0]) == ("CRASHED", "No heartbeat for ten minutes")


@pytest.mark.parametrize("kind", ["global", "tag"])
def test_a_limit_of_zero_blocks_a_registry(prefect: PrefectServer, source: FakeRegistry, tmp_path: Path, kind: str) -> None:
    images.load(source, "app", MANY, "v1")
    name = f"registry:{source.host}"
    if kind == "global":
        prefect.post("/v2/concurrency_limits/", {"name": name, "limit": 0, "active": True})
        message = f"Prefect limit {name} has less than 1 slot; raise it with 'prefect gcl update {name} --limit N', or"
    else:
        prefect.post("/concurrency_limits/", {"tag": name, "concurrency_limit": 0})
        message = f"Prefect limit of the tag {name} is 0; raise it with 'prefect concurrency-limit create {name} N', or"

    done = dist("--store", tmp_path / "store", "fetch", f"{source.host}/app:v1")

    assert done.code == 1
    assert f"\ndist: {message}" in done.err
    assert requested_blobs(source) == []


def cancel_runs(prefect: PrefectServer, source: FakeRegistry) -> None:
    """Cancel the running flow run that mirrors images of the source, as a person in the UI."""
    started = prefect.post("/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}})
    (run,) = (one["id"] for one in started if source.host in Path(one["parameters"]["config"]).read_text())
    prefect.post(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})


def test_a_run_without_a_worker_stops_after_its_cancellation(
    prefect: PrefectServer, mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parent_run, "_PAUSE_S", 0.1)
    images.load(source, "app", MANY, "v1")
    layer = f"/v2/app/blobs/{list(MANY.blobs)[-1]}"
    for action in (Call(partial(cancel_runs, prefect, source)), Stall(100)):
        source.inject(Fault(path=layer, action=action))

    report = mirrors.run(image(source, target, "app:v1"))

    assert report.status == "stopped"
    assert "the run was cancelled in Prefect; complete content is kept" in str(report.errors[0])
    assert prefect.get(f"/flow_runs/{mirrors.flow_run}")["state_type"] == "CANCELLED"
    assert target.manifest("app", "v1") is None


def test_a_command_whose_run_is_cancelled_when_its_work_is_done_prints_the_report(
    prefect: PrefectServer, source: FakeRegistry, target: FakeRegistry, tmp_path: Path
) -> None:
    images.load(source, "app", MANY, "v1")
    target.inject(Fault(method="PUT", path="/v2/app/manifests/v1", action=Call(partial(cancel_runs, prefect, source))))
    config = tmp_path / "mirror.yaml"
    config.write_text(json.dumps({"sync": [image(source, target, "app:v1")]}))

    done = dist("--store", tmp_path / "store", "--output", "json", "mirror", config)

    assert done.code == 1
    assert done.json["status"] == "complete"
    assert done.line == "dist: Prefect shows the run as Cancelling: it was cancelled when its work was done"


def requested_blobs(source: FakeRegistry) -> list[str]:
    """Return the digests of the requested blobs."""
    return [one.path.rpartition("/")[2] for one in source.requests if "/blobs/" in one.path]


def progress(server: PrefectServer, flow_run: str) -> tuple[float, str]:
    """Return the progress artifact of a finished run: percentage and description."""
    wanted = {"flow_runs": {"id": {"any_": [flow_run]}}, "artifacts": {"key": {"any_": ["progress"]}}}
    (shown,) = server.post("/artifacts/filter", wanted)
    return shown["data"], shown["description"]
