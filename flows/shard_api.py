"""The requests of the parent of a divided run to Prefect's API.

The API may be unreachable for some time, because the processes of shards continue without it. Every error is a `DistError`: the
parent reports the error for its open shards, and keeps the results of the others.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar
from uuid import UUID

from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun, State, WorkerStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectException, PrefectHTTPStatusError
from prefect.states import Cancelled, Cancelling, Crashed
from pydantic import TypeAdapter

from prefect_dist.flows.api import UNREACHABLE, ApiUnavailable, brief, client
from prefect_dist.ocispec.errors import DistError, InvalidInput, NotFound, Unavailable, quote_text
from prefect_dist.transfer.cancellation import CancelToken
from prefect_dist.transfer.events import Note, Notify

# A server that starts again, or a database that an operator upgrades.
_API_AWAY_S = 600.0
_PAUSE_S = 1.0
_PAGE = 100  # flow runs per request to Prefect
_ENTRY_POINT = "prefect_dist.flows.mirror_shard.mirror_shard"
_DEPLOY_AGAIN = "deploy this version again: prefect deploy --all"
# A proxy may answer with a page of its own, such as a login form.
_UNREADABLE = "Prefect's API gave an unreadable answer"
_CHECK_URL = "check PREFECT_API_URL, and the proxies between this machine and Prefect"
_SHARD_PARAMETERS = {"shard", "digest", "key"}
_BUSY = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
_WORKERS = TypeAdapter(list[dict[str, Any]])
T = TypeVar("T")
OWN_WORKER = "own-worker"
"""The tag of a deployment whose command starts and watches a worker."""
_PREPARE: ContextVar[Callable[[], None] | None] = ContextVar("prepare_submission", default=None)


@contextmanager
def call_before_submissions(prepare: Callable[[], None]) -> Iterator[None]:
    """Let runs that start in this block call `prepare` before each submission of a shard. Errors of `prepare` end the run."""
    previous = _PREPARE.set(prepare)
    try:
        yield
    finally:
        _PREPARE.reset(previous)


class PatientApi:
    """Calls Prefect's API, which may be unreachable for ten minutes. The processes of shards continue meanwhile."""

    def __init__(self, notify: Notify, cancel: CancelToken) -> None:
        self._notify, self._cancel = notify, cancel
        self._away_since: float | None = None

    def call(self, call: Callable[[], T]) -> T | None:
        """Return the result of a call, or None if the API is unreachable.

        Raises:
            ApiUnavailable: the API has been unreachable for ten minutes.
            Stopped: the API is unreachable, and the run has failed meanwhile, such as by the end of the local server.
            NotFound: Prefect has no such object.
            InvalidInput, Unavailable: Prefect refuses the request, or the answer is not from Prefect.
        """
        if self._away_since is not None and self._cancel.failure is not None:
            self._cancel.check()
        try:
            with brief():
                result = call()
        except UNREACHABLE as exc:
            reason = str(exc) or type(exc).__name__
        except PrefectHTTPStatusError as exc:
            if not exc.response.is_server_error and exc.response.status_code not in _BUSY:
                raise _explain_refusal(exc) from exc
            reason = str(exc)
        except ObjectNotFound as exc:
            raise NotFound("Prefect does not have the object") from exc
        except PrefectException as exc:
            raise Unavailable(f"Prefect's client failed ({type(exc).__name__}: {exc})") from exc
        except ValueError as exc:
            why = str(exc).partition("\n")[0]  # pydantic then quotes the answer, which has the keys of shards
            raise Unavailable(f"{_UNREADABLE} ({type(exc).__name__}: {quote_text(why)}); {_CHECK_URL}") from exc
        else:
            self._away_since = None
            return result
        self._note_silence(reason)
        return None

    def wait(self, call: Callable[[], T]) -> T:
        """Return the result of a call, as soon as the API is reachable.

        Raises:
            Stopped: the run was cancelled meanwhile.
            DistError: see `call`.
        """
        while (result := self.call(call)) is None:
            self._cancel.pause(_PAUSE_S)
        return result

    def _note_silence(self, reason: str) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
            self._notify(Note(f"Prefect's API does not answer, and the shards continue without it: {reason}"))
        if time.monotonic() - self._away_since > _API_AWAY_S:
            raise ApiUnavailable(f"Prefect's API has not answered for {_API_AWAY_S / 60:.0f} minutes: {reason}")


def _explain_refusal(exc: PrefectHTTPStatusError) -> DistError:
    """Return the error for a response with a status of 400 to 499."""
    code = exc.response.status_code
    try:
        detail = exc.response.json()["detail"]
    except (KeyError, TypeError, ValueError):
        detail = exc.response.text
    made = NotFound if code == HTTPStatus.NOT_FOUND else InvalidInput
    return made(f"Prefect answered a request with status {code}: {quote_text(str(detail))}")


class ShardFlowRuns:
    """The flow runs of the deployment `name`, which carries out shards.

    Raises:
        InvalidInput: Prefect does not have the deployment.
    """

    def __init__(self, name: str, api: PatientApi) -> None:
        self._name, self._api = name, api
        self._deployment = self._find_deployment()

    def _find_deployment(self) -> DeploymentResponse:
        try:
            return self._api.wait(lambda: client().read_deployment_by_name(self._name))
        except NotFound:
            remedy = f"deploy the entry point {_ENTRY_POINT} to a work pool, or run in one process"
            raise InvalidInput(f"Prefect has no deployment {self._name}; {remedy} (see dist init)") from None

    def submit(self, parameters: Mapping[str, Any], *, key: str, name: str) -> UUID | None:
        """Submit a flow run. Return None if the API is unreachable. For an existing key, Prefect returns the existing flow run.

        Raises:
            InvalidInput: Prefect does not have the deployment any more, or the deployment is from another version.
            Unavailable: the worker of the command cannot be started.
        """
        if (prepare := _PREPARE.get()) is not None:
            prepare()
        submit = partial(
            run_deployment, self._name, parameters=dict(parameters), timeout=0, idempotency_key=key, flow_run_name=name
        )
        try:
            made: Any = self._api.call(submit)
        except (InvalidInput, NotFound) as exc:
            why = f"Prefect does not start a run of the deployment {self._name}: {exc}"
            raise InvalidInput(f"{why}; {_DEPLOY_AGAIN}", cause=f"{why}; {_DEPLOY_AGAIN}") from exc
        return None if made is None else UUID(str(made.id))

    def find_children(self, parent: UUID) -> list[FlowRun]:
        """Return the flow runs that `parent` submitted and that have all parameters of a shard."""
        wanted, found = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[parent])), list[FlowRun]()
        while page := self._api.wait(partial(_list_runs, wanted, offset=len(found))):
            found += page
        return [run for run in found if run.parameters.keys() >= _SHARD_PARAMETERS]

    def read(self, runs: Collection[UUID]) -> dict[UUID, FlowRun] | None:
        """Return flow runs, without deleted flow runs. Return None if the API is unreachable."""
        listed, found = list(runs), dict[UUID, FlowRun]()
        for start in range(0, len(listed), _PAGE):
            wanted = FlowRunFilter(id=FlowRunFilterId(any_=listed[start : start + _PAGE]))
            page = self._api.call(partial(_list_runs, wanted))
            if page is None:
                return None
            found |= {run.id: run for run in page}
        return found

    def read_one(self, run: UUID) -> FlowRun | None:
        """Return a flow run, or None if the API is unreachable.

        Raises:
            NotFound: the flow run was deleted.
        """
        return self._api.call(lambda: client().read_flow_run(run))

    def cancel(self, runs: Iterable[UUID]) -> None:
        """Ask Prefect to cancel flow runs. Their workers stop the processes."""
        self._set_states(runs, Cancelling(message="the parent run was cancelled"))

    def end(self, runs: Iterable[UUID]) -> None:
        """Set flow runs that have never started to Cancelled. A process that starts later ends at once."""
        self._set_states(runs, Cancelled(message="the parent run was cancelled before the shard started"))

    def _set_states(self, runs: Iterable[UUID], state: State[Any]) -> None:
        """Set the state of flow runs. If the API is unreachable, stop: the caller tries again later."""
        for run in runs:
            try:
                if self._api.call(partial(client().set_flow_run_state, run, state)) is None:
                    return
            except NotFound:
                continue

    def mark_crashed(self, run: UUID, reason: str) -> bool:
        """Set a flow run to Crashed. Return False if the API is unreachable."""
        state: State[Any] = Crashed(message=reason)
        try:
            return self._api.call(lambda: client().set_flow_run_state(run, state, force=True)) is not None
        except NotFound:
            return True

    def require_worker(self) -> bool:
        """Return True if a worker polls the work pool, and False if the pool needs no worker of the user.

        A push pool and a managed pool have no workers. A deployment that a process serves has no work pool. A command watches
        its own worker, which may take long to start on a busy machine.

        Raises:
            Unavailable: no worker polls the work pool.
            InvalidInput: Prefect does not have the work pool any more.
        """
        if (name := self._deployment.work_pool_name) is None or OWN_WORKER in self._deployment.tags:
            return False
        try:
            pool = self._api.call(lambda: client().read_work_pool(name))
            if pool is None or pool.is_push_pool or pool.is_managed_pool:
                return False
            workers = self._api.call(partial(_list_workers, name))
        except NotFound as exc:
            raise InvalidInput(f"Prefect has no work pool {name} for the deployment {self._name}; {_DEPLOY_AGAIN}") from exc
        if workers is not None and not any(worker.get("status") == WorkerStatus.ONLINE.value for worker in workers):
            remedy = f"start one with: prefect worker start --pool {name}"
            raise Unavailable(f"no worker polls the work pool {name} of the deployment {self._name}; {remedy}")
        return workers is not None


def _list_runs(wanted: FlowRunFilter, offset: int = 0) -> list[FlowRun]:
    return client().read_flow_runs(flow_run_filter=wanted, limit=_PAGE, offset=offset)


def _list_workers(pool: str) -> list[dict[str, Any]]:
    """Return the workers of a work pool as JSON objects."""
    values = {"work_pool_name": pool}
    response = client().request("POST", "/work_pools/{work_pool_name}/workers/filter", path_params=values, json={})
    return _WORKERS.validate_python(response.json())
