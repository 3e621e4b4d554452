"""Carries out the shards of a mirror, seed or check as runs of the deployment `mirror-shard`, on the machines of a work pool.

Prefect starts the runs on the workers. This module submits the runs, and submits a shard again if its run crashed, was stopped,
or is silent. A shard shows that it is alive by a file in the content store. So a machine that lost power is noticed
although Prefect still shows the run as Running.
"""

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, StateType
from prefect.runtime import flow_run

from prefect_dist.flows.parameters import Network
from prefect_dist.flows.shard_api import PatientApi, ShardFlowRuns
from prefect_dist.mirror.hosts_file import MAX_CONCURRENCY
from prefect_dist.mirror.run_spec import RunSpec
from prefect_dist.mirror.shard_format import read_stopped, verify
from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import DistError, InvalidInput, NotFound, Unavailable
from prefect_dist.storage.runs import ALIVE_S, RunFiles, name_alive, name_result
from prefect_dist.transfer.cancellation import current_token
from prefect_dist.transfer.events import Note, Notify
from prefect_dist.transfer.pool import Grain

DEPLOYMENT = "mirror-shard/mirror-shard"
"""The deployment that carries out shards."""

_POLL_S = 1.0
# A shard writes its file every `ALIVE_S`. A store that is unreachable for a short time must not look like a dead shard.
_SILENCE_S = 3 * ALIVE_S
# A worker polls its work pool every 15 s, and shows itself every 30 s.
_NO_WORKER_S = 60.0
# The first look for a worker, early enough for a person who forgot to start one, and the time between later looks.
_FIRST_LOOK_S, _NEXT_LOOK_S = 15.0, 300.0
# A label of each flow run that a worker carries out.
_WORKER = "prefect.worker.name"
_NO_PLACE = (
    "no shard has started yet: the workers have no free place, or a limit in Prefect is reached; start another worker or raise "
    "its --limit; a parent that is a run of a deployment takes one place"
)
# A worker sets a flow run to Pending before it starts the process. A machine may pull a large image first.
_WAITING_S = 600.0
_MOST_ATTEMPTS = 3
# For the last attempt. The reason of a run that ended as Failed has its own remedy.
_REMEDY = "; the log of its flow run may have the cause; run again to resume"
# The time that cancelled shards have to end. The machine of a shard may be dead.
_CANCELLED_S = 60.0


@dataclass(slots=True)
class ShardAttempt:
    """One flow run of a shard.

    `seen` is the time of its last sign of life, by the clock of the store and of this process. `waiting_since` is the time when
    a worker was first seen to have the flow run without a process.
    """

    number: int
    digest: Digest
    attempt: int = 1
    seen: tuple[datetime | None, float] = field(default_factory=lambda: (None, time.monotonic()))
    is_started: bool = False
    waiting_since: float | None = None

    def note_start(self) -> None:
        """Note that the process of the shard runs. The time that the run waited for a worker is no silence."""
        if not self.is_started:
            self.is_started, self.seen = True, (self.seen[0], time.monotonic())

    def is_stuck(self, state: StateType) -> bool:
        """Return True if the flow run has been Pending, or Cancelling before its start, for too long.

        `state` is the current state. A worker that is dead ends neither of them.
        """
        if state is not StateType.PENDING and (self.is_started or state is not StateType.CANCELLING):
            self.waiting_since = None
        elif self.waiting_since is None:
            self.waiting_since = time.monotonic()
        return self.waiting_since is not None and time.monotonic() - self.waiting_since > _WAITING_S

    def is_silent(self, modified: datetime | None) -> bool:
        """Return True if the shard has written no file for a minute. `modified` is the time of the last file."""
        if modified != self.seen[0]:
            self.seen = modified, time.monotonic()
        return time.monotonic() - self.seen[1] > _SILENCE_S


@dataclass(frozen=True, slots=True)
class _End:
    """The end of a flow run. If `is_final`, another attempt would end in the same way."""

    reason: str
    is_final: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOptions:
    """The parameters of a flow that say where and with which resources its shards run."""

    workers: int
    deployment: str
    config: str | None
    store: str | None
    store_options: Mapping[str, Any]
    network: Network | None

    def widen(self, spec: RunSpec) -> RunSpec:
        """Return the run of the parent, which plans for all workers: its requests in flight are those of all shards."""
        return replace(spec, window=min(MAX_CONCURRENCY, spec.window * self.workers))

    def divide(self, spec: RunSpec, *, grain: Grain | None = None) -> Callable[[Notify], "ShardRuns"] | None:
        """Return a function that opens the shards of a run; None for a run of one process."""
        if self.workers == 1:
            return None
        workers = _limit_workers(self.workers, spec)
        parameters = {
            "config": self.config,
            "store": self.store,
            "store_options": dict(self.store_options),
            "network": None if self.network is None else self.network.model_dump(),
            "concurrency": spec.window,
            "retries": spec.retries,
            "grain": grain or spec.grain,
            "offline": spec.session.offline,
        }
        return lambda notify: ShardRuns(
            parameters, workers=workers, notify=notify, deployment=self.deployment, title=spec.configuration
        )


def _limit_workers(workers: int, spec: RunSpec) -> int:
    """Return the number of shards in flight. Each shard needs at least one of the concurrent requests to each registry."""
    hosts = spec.session.registries.hosts
    bounds = (hosts.settings_for(host).in_flight for host in spec.job.list_hosts(spec.session))
    return min([workers, *(bound for bound in bounds if bound is not None)])


class ShardRuns:
    """Carries out shards, at most `workers` at a time. `parameters` are those of every shard. `title` is for their names.

    Raises:
        InvalidInput: Prefect has no deployment for shards.
        DistError: see `PatientApi.call`.
    """

    def __init__(
        self, parameters: Mapping[str, Any], *, workers: int, notify: Notify, deployment: str, title: str | None = None
    ) -> None:
        self.run, self.workers = str(flow_run.id), workers
        self._parameters, self._notify, self._cancel = parameters, notify, current_token()
        self._flow_runs = ShardFlowRuns(deployment, PatientApi(notify, self._cancel))
        self._prefix = "" if title is None else f"{title}: "
        self._keys = dict[int, str]()
        self._old_results = dict[int, datetime | None]()  # the times of results that do not count, by shard
        self._deadline: float | None = None  # of the wait for cancelled shards
        self._idle_since, self._next_look_s = time.monotonic(), _FIRST_LOOK_S

    def find_submitted(self) -> Mapping[int, Digest]:
        """Return all shards that earlier attempts of this run submitted, with the digests of their inputs."""
        found = self._flow_runs.find_children(UUID(self.run))
        self._keys |= {run.parameters["shard"]: run.parameters["key"] for run in found}
        return {run.parameters["shard"]: Digest.parse(run.parameters["digest"]) for run in found}

    def prepare_planning(self) -> None:
        """Do nothing: the run of the parent holds the slots of registries, see `flows.run`."""

    def carry_out(self, shards: Mapping[int, Digest], files: RunFiles) -> Iterator[tuple[int, DistError | None]]:
        """Yield each shard as it ends: with None if its result is in the store, otherwise with the reason.

        Raises:
            Unavailable: no worker polls the work pool of the deployment, or Prefect's API is unreachable for ten minutes.
        """
        self._idle_since, self._next_look_s = time.monotonic(), _FIRST_LOOK_S
        waiting, running = deque(ShardAttempt(number, digest) for number, digest in shards.items()), dict[UUID, ShardAttempt]()
        try:
            while (waiting and self._cancel.reason is None) or running:
                yield from self._submit_next(waiting, running)
                for run, end in self._poll(running, files).items():
                    attempt = running.pop(run)
                    error = self._judge(attempt, end, files)
                    if error is not None and self._can_retry(attempt, end):
                        self._notify(Note(f"{error}; starting the shard again"))
                        self._discard_result(attempt.number, files)
                        waiting.append(ShardAttempt(attempt.number, attempt.digest, attempt.attempt + 1))
                    else:
                        yield attempt.number, error
        finally:
            with suppress(DistError):  # the error that ends the loop is more important
                self._flow_runs.cancel(running)
        for attempt in waiting:
            yield attempt.number, self._cancel.error

    def read_result(self, number: int, files: RunFiles) -> bytes | None:
        """Return the result of a shard without its signature, or None if the shard has no result.

        Raises:
            Corrupt: the result is not from the shard.
            DistError: the store.
        """
        name, old = name_result(number), self._old_results.get(number)
        if old is not None and files.read_modification_time(name) == old:
            return None
        signed, key = files.read(name), self._keys.get(number)
        if signed is None or key is None:
            return None
        return verify(signed, key, at=f"{files.url}/{name}")

    def _discard_result(self, number: int, files: RunFiles) -> None:
        """Count the current result of a shard as missing, until the next attempt has written another result."""
        with suppress(DistError):  # then the next attempt may end with this result
            self._old_results[number] = files.read_modification_time(name_result(number))

    def _submit_next(self, waiting: deque[ShardAttempt], running: dict[UUID, ShardAttempt]) -> Iterator[tuple[int, DistError]]:
        """Submit waiting shards, up to `workers` in flight. If Prefect's API is unreachable, the shards keep waiting.

        If Prefect refuses a shard, yield the error for each waiting shard. The shards in flight continue.
        """
        while waiting and len(running) < self.workers and self._cancel.reason is None:
            try:
                submitted = self._submit(waiting[0])
            except InvalidInput as exc:
                refused = [(attempt.number, exc.with_traceback(None)) for attempt in waiting]
                waiting.clear()
                yield from refused
                return
            if submitted is None:
                return
            running[submitted] = waiting.popleft()

    def _submit(self, attempt: ShardAttempt) -> UUID | None:
        """Submit a shard. Return None if Prefect's API is unreachable.

        A shard that an earlier attempt of this run submitted is the same flow run.
        """
        own = {"run": self.run, "shard": attempt.number, "digest": str(attempt.digest), "workers": self.workers}
        own["key"] = self._keys.setdefault(attempt.number, secrets.token_hex(16))
        name = f"{self._prefix}shard {attempt.number}" + (f", attempt {attempt.attempt}" if attempt.attempt > 1 else "")
        return self._flow_runs.submit(
            {**self._parameters, **own}, key=self._make_key(attempt.number, attempt.attempt), name=name
        )

    def _make_key(self, number: int, attempt: int) -> str:
        """Return the key of a flow run. For a key that Prefect knows, Prefect returns the existing flow run."""
        return f"{self.run}-{number}-{attempt}"

    def _poll(self, running: Mapping[UUID, ShardAttempt], files: RunFiles) -> dict[UUID, _End]:
        """Wait a moment, and return the flow runs that ended. A silent flow run ends as Crashed."""
        self._wait(running)
        if self._deadline is not None and time.monotonic() > self._deadline:
            return dict.fromkeys(running, _End(f"did not end within {_CANCELLED_S:.0f} s of its cancellation"))
        found = self._flow_runs.read(running) if running else None
        if found is None:
            return {}
        ends = {run: self._find_end(run, attempt, found.get(run), files) for run, attempt in running.items()}
        ended = {run: end for run, end in ends.items() if end is not None}
        if self._deadline is not None:
            self._cancel_again(run for run in found.values() if run.id not in ended)
        elif ended:
            self._note_activity()
        else:
            self._watch_start(running)
        return ended

    def _find_end(self, run: UUID, attempt: ShardAttempt, record: FlowRun | None, files: RunFiles) -> _End | None:
        """Return the end of a flow run, or None if the flow run has not ended. `record` is None if the list lacks the run."""
        try:
            record = record or self._flow_runs.read_one(run)
        except NotFound:
            return _End(f"was deleted: flow run {run}")
        if record is None or (state := record.state) is None:
            return None
        if state.is_final():
            why = f"ended as {state.name}{_describe_place(record)}: {state.message or 'no reason given'}"
            return _End(why, is_final=state.type in (StateType.FAILED, StateType.COMPLETED))
        if state.type is StateType.RUNNING and not attempt.is_started:
            attempt.note_start()
            self._notify(Note(f"shard {attempt.number} started{_describe_place(record)}"))
        reason: str | None = None
        if attempt.is_stuck(state.type):
            reason = f"stayed {state.name} for {_WAITING_S / 60:.0f} minutes"
        elif attempt.is_started and attempt.is_silent(find_last_sign(attempt, files)):
            reason = f"gave no sign of life{_describe_place(record)} for {_SILENCE_S:.0f} s"
        if reason is None or not self._flow_runs.mark_crashed(run, f"the shard {reason}"):
            return None
        return _End(reason)

    def _wait(self, running: Mapping[UUID, ShardAttempt]) -> None:
        """Wait a moment. After a cancellation, cancel the flow runs once."""
        if self._deadline is not None:
            time.sleep(_POLL_S)
            return
        deadline = time.monotonic() + _POLL_S
        while self._cancel.reason is None and time.monotonic() < deadline:
            time.sleep(min(0.1, _POLL_S))
        if self._cancel.reason is not None:
            self._deadline = time.monotonic() + _CANCELLED_S
            self._flow_runs.cancel(running)

    def _cancel_again(self, found: Iterable[FlowRun]) -> None:
        """Cancel flow runs again that have replaced the state Cancelling, because they began at the same moment."""
        states = [(run, run.state.type) for run in found if run.state is not None]
        self._flow_runs.cancel(run.id for run, state in states if state is not StateType.CANCELLING)
        # The engine of a process that finds its flow run Cancelling exits, and the flow run would stay Cancelling forever.
        self._flow_runs.end(run.id for run, state in states if state is StateType.CANCELLING and run.start_time is None)

    def _judge(self, attempt: ShardAttempt, end: _End, files: RunFiles) -> DistError | None:
        """Return None if the result of a shard is in the store, otherwise the reason of its end.

        A shard that was stopped, such as by the end of its worker, writes a result without the rest of its work. The result
        counts only if the shard is not started again: it does not know what the next attempt publishes.
        """
        try:
            raw = self.read_result(attempt.number, files)
        except DistError as exc:
            return exc.with_traceback(None)
        can_retry = self._can_retry(attempt, end)
        if raw is not None and not (read_stopped(raw) and can_retry):
            return None
        remedy = "" if can_retry or end.is_final else _REMEDY
        return self._cancel.error or Unavailable(f"shard {attempt.number} of this run {end.reason}{remedy}")

    def _can_retry(self, attempt: ShardAttempt, end: _End) -> bool:
        return not end.is_final and attempt.attempt < _MOST_ATTEMPTS and self._cancel.reason is None

    def _note_activity(self) -> None:
        """Note that workers carry out shards."""
        self._idle_since, self._next_look_s = time.monotonic(), _FIRST_LOOK_S

    def _watch_start(self, running: Mapping[UUID, ShardAttempt]) -> None:
        """Note after some time in which no shard runs that none has started. Raise an error after a minute without a worker."""
        if any(attempt.is_started for attempt in running.values()) or not running:
            self._note_activity()
            return
        waited_s = time.monotonic() - self._idle_since
        if waited_s < self._next_look_s:
            return
        self._next_look_s = _NO_WORKER_S if waited_s < _NO_WORKER_S else waited_s + _NEXT_LOOK_S
        try:
            if self._flow_runs.require_worker() and waited_s >= _NO_WORKER_S:
                self._notify(Note(_NO_PLACE))
        except Unavailable as exc:
            if waited_s >= _NO_WORKER_S:
                raise
            self._notify(Note(str(exc)))


def _describe_place(record: FlowRun) -> str:
    """Return the worker and the process, container or job of a flow run as text, empty if Prefect does not know them yet."""
    if (worker := record.labels.get(_WORKER)) is None:
        return ""
    return f" on worker {worker}" + (f" ({record.infrastructure_pid})" if record.infrastructure_pid else "")


def find_last_sign(attempt: ShardAttempt, files: RunFiles) -> datetime | None:
    """Return the time of the last file of a shard. An unreachable store says nothing about the shard."""
    try:
        return files.read_modification_time(name_alive(attempt.number))
    except DistError:
        attempt.seen = attempt.seen[0], time.monotonic()
        return attempt.seen[0]
