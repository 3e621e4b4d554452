"""The parent of a divided run watches the flow runs of its shards, starts some of them again, and reports errors."""

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from uuid import UUID

import httpx
import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled, Cancelling, Completed, Crashed, Failed, Pending, Running

from prefect_dist.flows import shard_api, shard_runs
from prefect_dist.flows.parameters import make_resources
from prefect_dist.flows.run import _ReleasingRunner
from prefect_dist.flows.shard_runs import ShardOptions, ShardRuns
from prefect_dist.mirror.configured import make_mirror_run
from prefect_dist.mirror.mirror_shard_files import MirrorShardInput, MirrorShardResult
from prefect_dist.mirror.results import MirrorResults
from prefect_dist.mirror.shard_format import sign
from prefect_dist.mirror.shard_job import ShardJob, make_shard_run
from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import Denied, DistError, Unavailable
from prefect_dist.storage import open_store
from prefect_dist.storage.backend import Backend, open_backend
from prefect_dist.storage.runs import RunFiles
from prefect_dist.transfer.cancellation import CancelToken, Stopped, use_token
from prefect_dist.transfer.events import Note, ignore_event
from tests.flows.fake_prefect import FakePrefect, refuse

RESULT = MirrorShardResult(results=MirrorResults()).to_json()
STOPPED = MirrorShardResult(results=MirrorResults(is_stopped=True)).to_json()
CHECK_STOPPED = json.dumps({"version": 1, "ok": 0, "rows": [], "stopped": True}).encode()


class Parent:
    """The parent of two shards, with a store in memory and a fake of Prefect's API."""

    def __init__(self) -> None:
        self.backend: Backend
        self.backend, _, layout = open_backend(f"memory://{uuid.uuid4().hex}", {})
        self.files, self.prefect, self.cancel = RunFiles(self.backend, layout, "run"), FakePrefect(), CancelToken()
        self.notes = list[str]()

    def write_result(self, shard: int, content: bytes = RESULT) -> None:
        """Write the result of a shard, as its process does."""
        (key,) = {run.parameters["key"] for run in self.prefect.runs.values() if run.parameters["shard"] == shard}
        self.files.write(f"result-{shard}.json", sign(content, key))

    def open_runs(self, *, workers: int = 2) -> ShardRuns:
        """Return the runner of the shards."""
        with use_token(self.cancel):
            return ShardRuns({}, workers=workers, notify=self._note, deployment="mirror-shard/mirror-shard")

    def carry_out(self, runs: ShardRuns | None = None, *, workers: int = 2) -> dict[int, str | None]:
        """Return the errors of two shards."""
        runs = runs or self.open_runs(workers=workers)
        shards = {number: Digest.of(b"%d" % number) for number in range(2)}
        return {number: None if error is None else str(error) for number, error in runs.carry_out(shards, self.files)}

    def _note(self, event: Any) -> None:
        if isinstance(event, Note):
            self.notes.append(event.text)


@pytest.fixture
def parent(monkeypatch: pytest.MonkeyPatch) -> Parent:
    parent = Parent()
    monkeypatch.setattr(shard_api, "client", lambda: parent.prefect)
    monkeypatch.setattr(shard_api, "run_deployment", parent.prefect.run_deployment)
    monkeypatch.setattr(shard_runs, "_POLL_S", 0.01)
    return parent


def end_first(parent: Parent, change: Callable[[FlowRun], None]) -> Callable[[FlowRun, int, int], None]:
    """Return workers that complete each flow run, except that `change` decides the end of the first attempt of shard 0."""

    def work(run: FlowRun, shard: int, attempt: int) -> None:
        if (shard, attempt) == (0, 1):
            change(run)
        else:
            parent.write_result(shard)
            run.state = Completed()

    return work


def test_a_restarted_parent_finds_all_its_shards_and_no_other_flow_run(parent: Parent) -> None:
    """A flow run without the parameters of a shard is not from a parent of this version."""
    for _ in range(150):  # Prefect lists 100 flow runs at a time
        parent.prefect.add_run("another", {"shard": 7, "digest": str(Digest.of(b""))})
    parent.prefect.work = end_first(parent, lambda run: setattr(run, "state", Crashed()))
    assert parent.carry_out() == {0: None, 1: None}

    restarted = parent.open_runs()
    restarted.run = str(uuid.uuid4())

    assert restarted.find_submitted() == {number: Digest.of(b"%d" % number) for number in range(2)}
    assert restarted.read_result(0, parent.files) == RESULT


def give_up_later(parent: Parent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancel a parent that would wait for ever, after 200 looks."""
    looks = count(1)

    def read(**given: Any) -> list[FlowRun]:
        if next(looks) == 200:
            parent.cancel.set("the test")
        return FakePrefect.read_flow_runs(parent.prefect, **given)

    monkeypatch.setattr(parent.prefect, "read_flow_runs", read)


@pytest.mark.parametrize("forge", [lambda raw: raw, lambda raw: sign(raw, "another key")], ids=["unsigned", "other key"])
def test_a_result_that_another_program_wrote_fails_the_shard(parent: Parent, forge: Callable[[bytes], bytes]) -> None:
    """More people can write to the content store than can start runs."""

    def forge_result(run: FlowRun) -> None:
        parent.files.write("result-0.json", forge(RESULT))
        run.state = Completed()

    parent.prefect.work = end_first(parent, forge_result)

    errors = parent.carry_out()

    assert errors[1] is None
    assert str(errors[0]).endswith(
        "/runs/run/result-0.json: the result has no signature of the shard; another program has changed the file; run again"
    )


@pytest.mark.parametrize("result", [STOPPED, CHECK_STOPPED], ids=["mirror", "check"])
def test_a_shard_that_was_stopped_is_started_again(parent: Parent, result: bytes) -> None:
    def stop(run: FlowRun) -> None:
        parent.write_result(0, result)
        run.state = Cancelled(message="terminated by the worker")

    parent.prefect.work = end_first(parent, stop)

    assert parent.carry_out() == {0: None, 1: None}
    assert parent.prefect.submitted == ["shard 0", "shard 1", "shard 0, attempt 2"]
    assert parent.notes == ["shard 0 of this run ended as Cancelled: terminated by the worker; starting the shard again"]


@pytest.mark.parametrize("tasks", [0, 3], ids=["the same bytes", "other bytes"])
def test_the_last_result_of_a_shard_that_was_stopped_three_times_is_used(parent: Parent, tasks: int) -> None:
    last = MirrorShardResult(results=MirrorResults(is_stopped=True), tasks=tasks).to_json()
    assert (last == STOPPED) == (tasks == 0)

    def work(run: FlowRun, shard: int, attempt: int) -> None:
        parent.write_result(shard, RESULT if shard else last if attempt == 3 else STOPPED)
        run.state = Completed() if shard else Cancelled()

    parent.prefect.work = work
    runs = parent.open_runs()

    assert parent.carry_out(runs) == {0: None, 1: None}
    assert parent.prefect.submitted[2:] == ["shard 0, attempt 2", "shard 0, attempt 3"]
    assert runs.read_result(0, parent.files) == last


def test_the_result_of_a_stopped_attempt_is_not_the_result_of_the_next_attempt(parent: Parent) -> None:
    """The old result does not name the tags that the next attempt has set, and hides the reason of its end."""

    def work(run: FlowRun, shard: int, attempt: int) -> None:
        if attempt == 1:
            parent.write_result(shard, RESULT if shard else STOPPED)
        run.state = Completed() if shard else Cancelled() if attempt == 1 else Failed(message="/etc/mirror.yaml: no such file")

    parent.prefect.work = work
    runs = parent.open_runs()

    assert parent.carry_out(runs) == {0: "shard 0 of this run ended as Failed: /etc/mirror.yaml: no such file", 1: None}
    assert runs.read_result(0, parent.files) is None


def test_a_shard_notices_that_an_earlier_attempt_has_begun(tmp_path: Path) -> None:
    place, digest = str(tmp_path / "store"), Digest.of(raw := MirrorShardInput(images=()).to_json())
    make = partial(
        make_shard_run,
        make_resources(place, {}),
        run="run",
        shard=0,
        digest=str(digest),
        key="key",
        workers=1,
        config=None,
        concurrency=1,
        retries=0,
        offline=False,
    )
    with open_store(place) as store:
        files = store.open_run("run")
    files.write("shard-0.json", raw)

    first = make().job
    files.write("alive-0.json", b"{}")
    second = make().job

    assert isinstance(first, ShardJob)
    assert isinstance(second, ShardJob)
    assert (first.is_again, second.is_again) == (False, True)


def test_a_shard_that_a_cancelled_parent_stopped_is_not_started_again(parent: Parent) -> None:
    def stop(run: FlowRun) -> None:
        parent.cancel.set("the user")
        parent.write_result(0, STOPPED)
        run.state = Cancelled()

    parent.prefect.work = end_first(parent, stop)

    assert parent.carry_out(workers=1) == {0: None, 1: "the user; complete content is kept, run again to resume"}
    assert parent.prefect.submitted == ["shard 0"]


def test_a_failed_shard_is_reported_at_once_and_a_crashed_shard_is_started_three_times(parent: Parent) -> None:
    def work(run: FlowRun, shard: int, _attempt: int) -> None:
        run.state = Crashed(message="signal 9") if shard else Failed(message="/etc/mirror.yaml: no such file")

    parent.prefect.work = work

    assert parent.carry_out() == {
        0: "shard 0 of this run ended as Failed: /etc/mirror.yaml: no such file",
        1: "shard 1 of this run ended as Crashed: signal 9; the log of its flow run may have the cause; run again to resume",
    }
    assert parent.prefect.submitted == ["shard 0", "shard 1", "shard 1, attempt 2", "shard 1, attempt 3"]


def test_a_flow_run_that_one_list_lacks_is_awaited_and_a_deleted_flow_run_is_replaced(
    parent: Parent, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = list[int]()

    def work(run: FlowRun, shard: int, attempt: int) -> None:
        if shard == 1:
            run.state = Running()
            parent.prefect.hidden.add(run.id)
        elif attempt == 1:
            del parent.prefect.runs[run.id]
        else:
            parent.write_result(0)
            run.state = Completed()

    def read(wanted: uuid.UUID) -> FlowRun:
        found = FakePrefect.read_flow_run(parent.prefect, wanted)
        looks.append(1)
        if len(looks) == 3:
            parent.write_result(1)
            found.state = Completed()
        return found

    parent.prefect.work = work
    monkeypatch.setattr(parent.prefect, "read_flow_run", read)

    assert parent.carry_out() == {0: None, 1: None}
    assert parent.prefect.submitted == ["shard 0", "shard 1", "shard 0, attempt 2"]
    assert len(looks) == 3


@pytest.mark.parametrize("state", [Pending(), Cancelling()], ids=["Pending", "Cancelling"])
def test_a_shard_that_does_not_start_or_end_is_marked_as_crashed_and_started_again(
    parent: Parent, monkeypatch: pytest.MonkeyPatch, state: State[Any]
) -> None:
    """A person can cancel a run that a worker was about to start when the worker died."""
    monkeypatch.setattr(shard_runs, "_WAITING_S", 0.1)
    parent.prefect.work = end_first(parent, lambda run: setattr(run, "state", state))
    give_up_later(parent, monkeypatch)

    assert parent.carry_out() == {0: None, 1: None}
    assert parent.prefect.submitted == ["shard 0", "shard 1", "shard 0, attempt 2"]
    assert parent.prefect.states == [("shard 0", "CRASHED")]
    assert parent.notes == [f"shard 0 of this run stayed {state.name} for 0 minutes; starting the shard again"]


@pytest.mark.parametrize(
    ("pool", "workers", "says"),
    [
        ("process", ["OFFLINE"], "no worker polls the work pool dist .*; start one with: prefect worker start --pool dist"),
        ("process", ["OFFLINE", "ONLINE"], None),
        ("ecs:push", [], None),
        ("prefect:managed", [], None),
        (None, [], None),
        ("own", [], None),
    ],
)
def test_only_a_pool_that_needs_a_worker_fails_without_a_worker(
    parent: Parent, monkeypatch: pytest.MonkeyPatch, pool: str | None, workers: list[str], says: str | None
) -> None:
    monkeypatch.setattr(shard_runs, "_FIRST_LOOK_S", 0.0)
    monkeypatch.setattr(shard_runs, "_NO_WORKER_S", 0.0)
    parent.prefect.pool, parent.prefect.workers = pool, workers
    parent.prefect.tags = [shard_api.OWN_WORKER] if pool == "own" else []
    looks = list[int]()

    def read(**given: Any) -> list[FlowRun]:
        looks.append(1)
        for run in parent.prefect.runs.values() if len(looks) == 5 else ():
            parent.write_result(run.parameters["shard"])
            run.state = Completed()
        return FakePrefect.read_flow_runs(parent.prefect, **given)

    monkeypatch.setattr(parent.prefect, "read_flow_runs", read)
    if says is None:
        assert parent.carry_out() == {0: None, 1: None}
        hints = ["no shard has started yet"] if "ONLINE" in workers else []
        assert [note.partition(":")[0] for note in parent.notes] == hints
        return
    with pytest.raises(Unavailable, match=says):
        parent.carry_out()
    assert parent.prefect.states == [("shard 0", "CANCELLING"), ("shard 1", "CANCELLING")]


def test_a_worker_that_is_missing_later_in_the_run_is_reported_as_at_the_start(
    parent: Parent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first shard waits for a free place, runs and ends. Then the only worker ends."""
    monkeypatch.setattr(shard_runs, "_FIRST_LOOK_S", 0.0)
    monkeypatch.setattr(shard_runs, "_NO_WORKER_S", 0.0)
    looks = count(1)

    def read(**given: Any) -> list[FlowRun]:
        first, look = next(iter(parent.prefect.runs.values())), next(looks)
        if look == 5:
            first.state = Running()
        elif look == 10:
            parent.write_result(0)
            first.state, parent.prefect.workers = Completed(), []
        elif look == 200:
            parent.cancel.set("the test")
        return FakePrefect.read_flow_runs(parent.prefect, **given)

    monkeypatch.setattr(parent.prefect, "read_flow_runs", read)

    with pytest.raises(Unavailable, match="no worker polls the work pool dist"):
        parent.carry_out(workers=1)
    assert [note.partition(":")[0] for note in parent.notes] == ["no shard has started yet", "shard 0 started"]


def test_a_missing_worker_is_noted_before_the_run_fails_and_the_place_of_each_shard_is_noted(
    parent: Parent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_runs, "_FIRST_LOOK_S", 0.0)
    parent.prefect.workers = ["OFFLINE"]

    def start_all(**given: Any) -> list[FlowRun]:
        for run in parent.prefect.runs.values() if len(parent.notes) == 1 else ():
            run.state, run.infrastructure_pid, run.labels = Running(), "5432", {"prefect.worker.name": "vm-2"}
        if len(parent.notes) == 3:
            for run in parent.prefect.runs.values():
                run.state = Failed(message="/etc/mirror.yaml: no such file")
        return FakePrefect.read_flow_runs(parent.prefect, **given)

    monkeypatch.setattr(parent.prefect, "read_flow_runs", start_all)

    errors = parent.carry_out()

    hint = "no worker polls the work pool dist of the deployment mirror-shard/mirror-shard; start one with: "
    hint += "prefect worker start --pool dist"
    assert parent.notes == [hint, "shard 0 started on worker vm-2 (5432)", "shard 1 started on worker vm-2 (5432)"]
    failed = "of this run ended as Failed on worker vm-2 (5432): /etc/mirror.yaml: no such file"
    assert errors == {number: f"shard {number} {failed}" for number in range(2)}


@pytest.mark.parametrize(
    "refusal", [refuse(409, "Validation failed: 'digest' was unexpected"), refuse(404, "Deployment not found")]
)
def test_a_deployment_that_refuses_a_shard_is_an_error_with_the_remedy_and_shards_in_flight_continue(
    parent: Parent, refusal: Exception
) -> None:
    def refuse_next(run: FlowRun) -> None:
        parent.prefect.refusal = refusal
        parent.write_result(0)
        run.state = Completed()

    parent.prefect.work = end_first(parent, refuse_next)

    errors = parent.carry_out()

    assert errors[0] is None
    assert str(errors[1]).startswith(
        "Prefect does not start a run of the deployment mirror-shard/mirror-shard: Prefect answered"
    )
    assert str(errors[1]).endswith("; deploy this version again: prefect deploy --all")


def test_an_unreachable_api_ends_the_parent_after_some_time(parent: Parent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_api, "_API_AWAY_S", 0.05)

    def lose_api(run: FlowRun) -> None:
        run.state = Running()
        parent.prefect.error = httpx.ConnectError("refused")

    parent.prefect.work = end_first(parent, lose_api)

    with pytest.raises(Unavailable, match="has not answered for 0 minutes: refused"):
        parent.carry_out()


def test_a_failed_parent_does_not_wait_for_an_unreachable_api(parent: Parent) -> None:
    """The local server of a command has ended."""

    def lose_api(run: FlowRun) -> None:
        run.state = Running()
        parent.cancel.fail(Unavailable("the server ended"))
        parent.prefect.error = httpx.ConnectError("refused")

    parent.prefect.work = end_first(parent, lose_api)

    with pytest.raises(Stopped, match="not finished: the server ended"):
        parent.carry_out()


def test_the_error_of_the_parent_is_reported_although_the_api_is_then_unreachable(
    parent: Parent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its end, the parent cancels the flow runs in flight."""
    monkeypatch.setattr(shard_api, "_API_AWAY_S", 0.0)
    monkeypatch.setattr(shard_runs, "_FIRST_LOOK_S", 0.0)
    monkeypatch.setattr(shard_runs, "_NO_WORKER_S", 0.0)

    def lose_api(*given: Any, **named: Any) -> httpx.Response:
        answer = FakePrefect.request(parent.prefect, *given, **named)
        parent.prefect.error = httpx.ConnectError("refused")
        return answer

    parent.prefect.workers = ["OFFLINE"]
    monkeypatch.setattr(parent.prefect, "request", lose_api)

    with pytest.raises(Unavailable, match="no worker polls the work pool dist"):
        parent.carry_out()


def test_a_cancelled_parent_ends_although_the_api_is_unreachable(parent: Parent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_runs, "_CANCELLED_S", 0.1)

    def lose_api(run: FlowRun) -> None:
        run.state = Running()
        parent.cancel.set("the user")
        parent.prefect.error = httpx.ConnectError("refused")

    parent.prefect.work = end_first(parent, lose_api)

    assert parent.carry_out() == dict.fromkeys(range(2), "the user; complete content is kept, run again to resume")


def test_a_store_that_refuses_a_read_fails_only_the_shard(parent: Parent, monkeypatch: pytest.MonkeyPatch) -> None:
    read = RunFiles.read
    parent.prefect.work = end_first(parent, lambda run: setattr(run, "state", Completed()))

    def deny(files: RunFiles, name: str) -> bytes | None:
        if name == "result-0.json":
            raise Denied("access denied", subject=name)
        return read(files, name)

    monkeypatch.setattr(RunFiles, "read", deny)

    assert parent.carry_out() == {0: "result-0.json: access denied", 1: None}


def test_a_store_that_refuses_the_time_of_a_file_says_nothing_about_a_shard(
    parent: Parent, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = shard_runs.ShardAttempt(0, Digest.of(b""))
    monkeypatch.setattr(parent.backend.fs, "info", Mock(side_effect=PermissionError("denied")))

    assert shard_runs.find_last_sign(attempt, parent.files) is None


def test_an_unreachable_api_at_the_start_is_awaited(parent: Parent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_api, "_API_AWAY_S", 0.0)
    monkeypatch.setattr(shard_api, "_PAUSE_S", 0.01)
    parent.prefect.error = httpx.ConnectError("refused")

    with pytest.raises(DistError, match="has not answered for 0 minutes"):
        parent.carry_out()


@pytest.mark.usefixtures("parent")
def test_no_more_shards_are_in_flight_than_requests_to_a_registry() -> None:
    config = {
        "registries": {"a.invalid": {"reqConcurrent": 3}, "unused.invalid": {"reqConcurrent": 1}},
        "sync": [{"type": "image", "source": "a.invalid/x:v1", "target": "b.invalid/x:v1"}],
    }
    spec = make_mirror_run(
        make_resources("memory://run", {}),
        config=json.dumps(config),
        dry_run=False,
        concurrency=4,
        retries=0,
    )
    options = ShardOptions(workers=8, deployment="mirror-shard/x", config=None, store=None, store_options={}, network=None)

    divided = options.divide(spec)

    assert divided is not None
    assert divided(ignore_event).workers == 3


def test_the_parent_holds_no_slots_while_shards_run_and_takes_them_again_to_plan(parent: Parent) -> None:
    events, slots = list[str](), ExitStack()

    def run_shards(*_given: object) -> Iterator[tuple[int, DistError | None]]:
        events.append("shards run")
        yield 0, None

    def lease() -> None:
        events.append("leased")
        slots.callback(events.append, "released")

    lease()
    releasing = _ReleasingRunner(Mock(carry_out=run_shards), slots, lease)
    list(releasing.carry_out({}, parent.files))
    releasing.prepare_planning()
    list(releasing.carry_out({}, parent.files))

    assert events == ["leased", "released", "shards run", "leased", "released", "shards run"]


@pytest.mark.parametrize("body", [{"detail": "maintenance"}, [1], "x"])
def test_an_answer_that_is_no_list_of_workers_fails_the_shards_with_one_line(
    parent: Parent, monkeypatch: pytest.MonkeyPatch, body: object
) -> None:
    monkeypatch.setattr(shard_runs, "_FIRST_LOOK_S", 0.0)
    monkeypatch.setattr(shard_runs, "_NO_WORKER_S", 0.0)
    monkeypatch.setattr(parent.prefect, "request", lambda *_given, **_named: httpx.Response(200, json=body))

    with pytest.raises(Unavailable, match=r"^Prefect's API gave an unreadable answer"):
        parent.carry_out()


def test_shards_that_end_between_two_looks_are_no_time_without_a_start(parent: Parent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shard ends within the pause between two looks, so no look sees a running shard. All shards together take longer."""
    monkeypatch.setattr(shard_runs, "_FIRST_LOOK_S", 0.5)
    monkeypatch.setattr(shard_runs, "_NO_WORKER_S", 0.5)
    monkeypatch.setattr(shard_runs, "_POLL_S", 0.1)
    seen = set[UUID]()

    def end_seen(**given: Any) -> list[FlowRun]:
        for run in list(parent.prefect.runs.values()):
            if run.id in seen:
                parent.write_result(run.parameters["shard"])
                run.state = Completed()
            seen.add(run.id)
        return FakePrefect.read_flow_runs(parent.prefect, **given)

    monkeypatch.setattr(parent.prefect, "read_flow_runs", end_seen)
    shards = {number: Digest.of(b"%d" % number) for number in range(10)}

    ended = list(parent.open_runs(workers=1).carry_out(shards, parent.files))

    assert ended == [(number, None) for number in shards]
    assert [note for note in parent.notes if "no shard has started" in note] == []
