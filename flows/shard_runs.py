"""Carries out the shards of a mirror run as runs of the deployment `mirror-shard`, on the machines of a work pool.

Prefect starts the runs on the workers. This module submits the runs, and submits a shard again if its run crashed, vanished or
fell silent. A shard shows that it is alive by a file in the content store. So a machine that lost power is noticed although
Prefect still shows the run as Running.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import State, StateType, WorkerStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.runtime import flow_run
from prefect.states import Cancelled, Cancelling, Crashed

from prefect_dist.flows.api import UNREACHABLE, ApiUnavailable, brief, client
from prefect_dist.flows.parameters import Network
from prefect_dist.mirror.hosts_file import MAX_CONCURRENCY
from prefect_dist.mirror.run_spec import RunSpec
from prefect_dist.mirror.shard_job import ALIVE_S
from prefect_dist.mirror.skopeo import Dialect
from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import DistError, InvalidInput, Unavailable
from prefect_dist.storage.runs import RunFiles
from prefect_dist.transfer.cancellation import current_token
from prefect_dist.transfer.events import Note, Notify
from prefect_dist.transfer.pool import Grain

DEPLOYMENT = "mirror-shard/mirror-shard"
"""The deployment that carries out shards."""

_POLL_S = 1.0
# A shard writes its file every `ALIVE_S`. A store that is away for a short time must not look like a dead shard.
_SILENCE_S = 3 * ALIVE_S
# A worker polls its work pool every 15 s, and shows itself every 30 s.
_NO_WORKER_S = 60.0
_MOST_ATTEMPTS = 3
_PAGE = 100  # flow runs per request to Prefect
# The time that cancelled shards have to end. The machine of a shard may be dead.
_CANCELLED_S = 60.0
# A server that starts again, or a database that an operator upgrades.
_API_AWAY_S = 600.0
T = TypeVar("T")


@dataclass(slots=True)
class Attempt:
    """One flow run of a shard. `seen` is the time of its last sign of life, by the clock of the store and of this process."""

    number: int
    digest: Digest
    attempt: int = 1
    submitted: float = field(default_factory=time.monotonic)
    seen: tuple[datetime | None, float] = field(default_factory=lambda: (None, time.monotonic()))
    is_started: bool = False

    def note_start(self) -> None:
        """Note that the process of the shard runs. The time that the run waited for a worker is no silence."""
        if not self.is_started:
            self.is_started, self.seen = True, (self.seen[0], time.monotonic())

    def is_silent(self, modified: datetime | None) -> bool:
        """Return True if the shard has written no file for a minute. `modified` is the time of the last file."""
        if modified != self.seen[0]:
            self.seen = modified, time.monotonic()
        return time.monotonic() - self.seen[1] > _SILENCE_S


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

    def divide(
        self, spec: RunSpec, *, grain: Grain | None = None, dialect: Dialect = "dist", to: Sequence[str] = ()
    ) -> Callable[[Notify], "ShardRuns"] | None:
        """Return a function that opens the shards of a run; None for a run of one process."""
        if self.workers == 1:
            return None
        parameters = {
            "config": self.config,
            "store": self.store,
            "store_options": dict(self.store_options),
            "network": None if self.network is None else self.network.model_dump(),
            "concurrency": spec.window,
            "retries": spec.retries,
            "grain": grain or spec.grain,
            "offline": spec.session.offline,
            "dialect": dialect,
            "to": list(to),
        }
        return lambda notify: ShardRuns(parameters, workers=self.workers, notify=notify, deployment=self.deployment)


class PatientApi:
    """Calls Prefect's API, which may be away for ten minutes. The processes of shards continue meanwhile."""

    def __init__(self, notify: Notify) -> None:
        self._notify = notify
        self._away_since: float | None = None

    def call(self, call: Callable[[], T]) -> T | None:
        """Return the result of a call, or None if the API is away.

        Raises:
            ApiUnavailable: the API has been away for ten minutes.
        """
        try:
            with brief():
                result = call()
        except UNREACHABLE as exc:
            reason = str(exc) or type(exc).__name__
        except PrefectHTTPStatusError as exc:
            if not exc.response.is_server_error:
                raise
            reason = str(exc)
        else:
            self._away_since = None
            return result
        if self._away_since is None:
            self._away_since = time.monotonic()
            self._notify(Note(f"Prefect's API does not answer, and the shards continue without it: {reason}"))
        if time.monotonic() - self._away_since > _API_AWAY_S:
            raise ApiUnavailable(f"Prefect's API has not answered for {_API_AWAY_S / 60:.0f} minutes: {reason}")
        return None


class ShardRuns:
    """Carries out shards, at most `workers` at a time. `parameters` are those of every shard.

    Raises:
        InvalidInput: Prefect has no deployment for shards.
    """

    def __init__(self, parameters: Mapping[str, Any], *, workers: int, notify: Notify, deployment: str) -> None:
        self.run, self.workers = str(flow_run.id), workers
        self._parameters, self._notify = parameters, notify
        self._deployment, self._cancel = _find_deployment(deployment), current_token()
        self._name, self._api = deployment, PatientApi(notify)
        self._end: float | None = None  # of the wait for cancelled shards

    def find_submitted(self, numbers: Collection[int]) -> Mapping[int, Digest]:
        """Return the shards that an earlier attempt of this run submitted, with the digests of their inputs."""
        keys = [self._make_key(number, 1) for number in sorted(numbers)]
        pages = (keys[start : start + _PAGE] for start in range(0, len(keys), _PAGE))
        filters = (FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=page)) for page in pages)
        runs = [run for wanted in filters for run in client().read_flow_runs(flow_run_filter=wanted, limit=_PAGE)]
        return {run.parameters["shard"]: Digest.parse(run.parameters["digest"]) for run in runs}

    def carry_out(self, shards: Mapping[int, Digest], files: RunFiles) -> Iterator[tuple[int, DistError | None]]:
        """Yield each shard as it ends: with None if its result is in the store, otherwise with the reason.

        Raises:
            Unavailable: no worker polls the work pool of the deployment.
        """
        waiting, running = deque(Attempt(number, digest) for number, digest in shards.items()), dict[UUID, Attempt]()
        try:
            while (waiting and self._cancel.reason is None) or running:
                while waiting and len(running) < self.workers and self._cancel.reason is None:
                    submitted = self._submit(waiting[0])
                    if submitted is None:
                        break
                    running[submitted] = waiting.popleft()
                for run in self._poll(running, files):
                    attempt = running.pop(run)
                    error = self._judge(attempt, run, files)
                    if error is None or attempt.attempt == _MOST_ATTEMPTS or self._cancel.reason is not None:
                        yield attempt.number, error
                    else:
                        self._notify(Note(f"{error}; starting the shard again"))
                        waiting.append(Attempt(attempt.number, attempt.digest, attempt.attempt + 1))
        finally:
            _cancel_runs(running)
        for attempt in waiting:
            yield attempt.number, self._cancel.error

    def _submit(self, attempt: Attempt) -> UUID | None:
        """Submit a shard. Return None if Prefect's API is away.

        A shard that an earlier attempt of this run submitted is the same flow run.
        """
        submit = partial(
            run_deployment,
            self._name,
            parameters={
                **self._parameters,
                "run": self.run,
                "shard": attempt.number,
                "digest": str(attempt.digest),
                "workers": self.workers,
            },
            timeout=0,
            idempotency_key=self._make_key(attempt.number, attempt.attempt),
            flow_run_name=f"shard {attempt.number}" + (f", attempt {attempt.attempt}" if attempt.attempt > 1 else ""),
        )
        attempt.submitted = time.monotonic()
        made: Any = self._api.call(submit)
        return None if made is None else UUID(str(made.id))

    def _make_key(self, number: int, attempt: int) -> str:
        """Return the key of a flow run. For a key that Prefect knows, Prefect returns the existing flow run."""
        return f"{self.run}-{number}-{attempt}"

    def _poll(self, running: Mapping[UUID, Attempt], files: RunFiles) -> list[UUID]:
        """Wait a moment, and return the flow runs that ended or were deleted. A silent flow run ends as Crashed."""
        self._wait(running)
        if self._end is not None and time.monotonic() > self._end:
            return list(running)
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=list(running)))
        found = self._api.call(partial(client().read_flow_runs, flow_run_filter=wanted)) if running else None
        if found is None:
            return []
        ended = [*(running.keys() - {run.id for run in found})]
        ended += [run.id for run in found if run.state is not None and run.state.is_final()]
        if self._end is not None:  # a flow run that began at this moment has replaced its state Cancelling
            states = {run.id: run.state.type for run in found if run.state is not None and run.id not in ended}
            _cancel_runs(one for one, state in states.items() if state is not StateType.CANCELLING)
            # The engine of a process that finds its flow run Cancelling exits, and the flow run would stay Cancelling forever.
            _end_runs(run.id for run in found if states.get(run.id) is StateType.CANCELLING and run.start_time is None)
        for run in found:
            attempt = running[run.id]
            if run.state is not None and run.state.type is StateType.RUNNING:
                attempt.note_start()
            if run.id in ended or not attempt.is_started:
                continue
            if attempt.is_silent(find_last_sign(attempt, files)):
                state: State[Any] = Crashed(message=f"the shard gave no sign of life for {_SILENCE_S:.0f} s")
                if self._api.call(partial(client().set_flow_run_state, run.id, state, force=True)) is not None:
                    ended.append(run.id)
        self._require_worker(running)
        return ended

    def _wait(self, running: Mapping[UUID, Attempt]) -> None:
        """Wait a moment. After a cancellation, cancel the flow runs once."""
        if self._end is not None:
            time.sleep(_POLL_S)
            return
        deadline = time.monotonic() + _POLL_S
        while self._cancel.reason is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if self._cancel.reason is not None:
            self._end = time.monotonic() + _CANCELLED_S
            _cancel_runs(running)

    def _judge(self, attempt: Attempt, run: UUID, files: RunFiles) -> DistError | None:
        """Return None if the result of a shard is in the store, otherwise the reason of its end."""
        if files.read(f"result-{attempt.number}.json") is not None:
            return None
        try:
            record = self._api.call(partial(client().read_flow_run, run))
        except ObjectNotFound:
            return Unavailable(f"the flow run {run} of shard {attempt.number} was deleted")
        state = None if record is None else record.state
        what = "ended without a state" if state is None else f"ended as {state.name}: {state.message or 'no reason given'}"
        return Unavailable(f"shard {attempt.number} of this run {what}")

    def _require_worker(self, running: Mapping[UUID, Attempt]) -> None:
        """Raise an error if no shard has started for a minute, and no worker polls the work pool."""
        if any(attempt.is_started for attempt in running.values()) or not running:
            return
        if time.monotonic() - min(attempt.submitted for attempt in running.values()) < _NO_WORKER_S:
            return
        pool = self._deployment.work_pool_name
        if pool is None:
            raise InvalidInput(f"the deployment {self._name} has no work pool; deploy it to one")
        workers = (
            client()
            .request("POST", "/work_pools/{work_pool_name}/workers/filter", path_params={"work_pool_name": pool}, json={})
            .json()
        )
        if not any(worker["status"] == WorkerStatus.ONLINE.value for worker in workers):
            remedy = f"start one with: prefect worker start --pool {pool}"
            raise Unavailable(f"no worker polls the work pool {pool} of the deployment {self._name}; {remedy}")


def find_last_sign(attempt: Attempt, files: RunFiles) -> datetime | None:
    """Return the time of the last file of a shard. A store that does not answer says nothing about the shard."""
    try:
        return files.read_modification_time(f"alive-{attempt.number}.json")
    except Unavailable:
        attempt.seen = attempt.seen[0], time.monotonic()
        return attempt.seen[0]


def _find_deployment(name: str) -> DeploymentResponse:
    try:
        return client().read_deployment_by_name(name)
    except ObjectNotFound:
        remedy = "create the deployments with dist init and prefect deploy --all, or leave out --workers"
        raise InvalidInput(f"Prefect has no deployment {name}; {remedy}") from None


def _cancel_runs(running: Iterable[UUID]) -> None:
    """Ask Prefect to cancel flow runs. Their workers stop the processes."""
    for run in running:
        with suppress(ObjectNotFound):
            client().set_flow_run_state(run, Cancelling(message="the parent run was cancelled"))


def _end_runs(runs: Iterable[UUID]) -> None:
    """Set flow runs that have never started to Cancelled. A process that starts later ends at once."""
    for run in runs:
        with suppress(ObjectNotFound):
            client().set_flow_run_state(run, Cancelled(message="the parent run was cancelled before the shard started"))
