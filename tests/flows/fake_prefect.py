"""Prefect's API for the parent of a divided run, in memory: tests play the workers, and decide how flow runs end."""

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import httpx
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Scheduled

Work = Callable[[FlowRun, int, int], None]


def refuse(status: int, detail: str) -> PrefectHTTPStatusError:
    """Return the error of Prefect's client for a response with this status."""
    request = httpx.Request("POST", "http://prefect.invalid/api")
    response = httpx.Response(status, text=json.dumps({"detail": detail}), request=request)
    error = httpx.HTTPStatusError(f"status {status}", request=request, response=response)
    return PrefectHTTPStatusError.from_httpx_error(error)


@dataclass
class FakePrefect:
    """A client of Prefect.

    `work` gets each new flow run, the number of the shard and of the attempt, in the role of a worker. `pool` is the type of
    the work pool, None for a deployment without a pool. `tags` are those of the deployment. `error` is the error of
    every call, and `refusal` is the error of the next flow runs. Lists lack `hidden` flow runs.
    """

    work: Work = field(default=lambda _run, _shard, _attempt: None)
    pool: str | None = "process"
    tags: list[str] = field(default_factory=list)
    workers: list[str] = field(default_factory=lambda: ["ONLINE"])
    error: Exception | None = None
    refusal: Exception | None = None
    runs: dict[UUID, FlowRun] = field(default_factory=dict)
    hidden: set[UUID] = field(default_factory=set)
    submitted: list[str] = field(default_factory=list)
    states: list[tuple[str, str]] = field(default_factory=list)

    def _check(self) -> None:
        if self.error is not None:
            raise self.error

    def read_deployment_by_name(self, _name: str) -> Any:
        """Return the deployment."""
        self._check()
        return SimpleNamespace(work_pool_name=self.pool and "dist", tags=self.tags)

    def run_deployment(
        self, _name: str, *, parameters: dict[str, Any], timeout: int, idempotency_key: str, flow_run_name: str
    ) -> FlowRun:
        """Submit a flow run, as Prefect's function of this name."""
        assert timeout == 0
        self._check()
        if self.refusal is not None:
            raise self.refusal
        run = self.add_run(flow_run_name, parameters)
        run.idempotency_key = idempotency_key
        self.submitted.append(flow_run_name)
        self.work(run, parameters["shard"], int(idempotency_key.rpartition("-")[2]))
        return run

    def add_run(self, name: str, parameters: dict[str, Any]) -> FlowRun:
        """Return a new flow run of the parent."""
        run = FlowRun(flow_id=uuid.uuid4(), name=name, parameters=parameters, state=Scheduled())
        self.runs[run.id] = run
        return run

    def read_flow_runs(self, *, flow_run_filter: FlowRunFilter, limit: int, offset: int) -> list[FlowRun]:
        """Return the flow runs with these IDs, without hidden flow runs, or all flow runs of the only parent."""
        self._check()
        if flow_run_filter.parent_flow_run_id is not None:
            return list(self.runs.values())[offset : offset + limit]
        assert flow_run_filter.id is not None
        wanted = flow_run_filter.id.any_ or []
        assert len(wanted) <= limit
        return [self.runs[one] for one in wanted if one in self.runs and one not in self.hidden]

    def read_flow_run(self, run: UUID) -> FlowRun:
        """Return a flow run."""
        self._check()
        if run not in self.runs:
            raise ObjectNotFound(http_exc=refuse(404, "no flow run"))
        return self.runs[run]

    def set_flow_run_state(self, run: UUID, state: State[Any], *, force: bool = False) -> object:
        """Set the state of a flow run. Without `force`, an ended flow run keeps its state."""
        self._check()
        found = self.read_flow_run(run)
        self.states.append((found.name, state.type.value))
        if force or found.state is None or not found.state.is_final():
            found.state = state
        return object()

    def read_work_pool(self, _name: str) -> Any:
        """Return the work pool."""
        self._check()
        kind = self.pool or ""
        return SimpleNamespace(is_push_pool=kind.endswith(":push"), is_managed_pool=kind.endswith(":managed"))

    def request(self, method: str, path: str, *, path_params: dict[str, str], json: object) -> httpx.Response:
        """Return the workers of the work pool."""
        self._check()
        assert (method, path, path_params) == (
            "POST",
            "/work_pools/{work_pool_name}/workers/filter",
            {"work_pool_name": "dist"},
        )
        assert json == {}
        return httpx.Response(200, json=[{"status": status} for status in self.workers])
