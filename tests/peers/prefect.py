"""A real, persistent Prefect server on loopback, as an operator starts it, and a worker that runs its deployments."""

import base64
import json
import os
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from tests.peers.processes import LOOPBACK, free_port, poll_until, running

_SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    # Tests wait for records: the server would write a batch after five seconds, and look for expired leases every 15 seconds.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",  # a transaction for each 20 events otherwise
    "PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": "2",
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",  # a minute otherwise
    "DO_NOT_TRACK": "1",
}
_RECORDED_S = 60  # a killed run has tasks whose end is never recorded
_PAGE = 200
_ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@dataclass(frozen=True, slots=True)
class PrefectServer:
    """Requests to the server's API over plain HTTP; `url` ends in /api. `auth` is the required user and password, if any."""

    url: str
    auth: str | None = field(default=None, repr=False)

    @property
    def ui(self) -> str:
        """URL of the UI."""
        return self.url.removesuffix("/api")

    def post(self, path: str, body: object) -> Any:
        """JSON response to a POST."""
        return self._request("POST", path, json.dumps(body).encode())

    def get(self, path: str) -> Any:
        """JSON response to a GET."""
        return self._request("GET", path)

    def patch(self, path: str, body: object) -> None:
        """Change the object at a path."""
        self._request("PATCH", path, json.dumps(body).encode())

    def delete(self, path: str) -> None:
        """Delete the object at a path. Retry while the database is busy, as the clients of Prefect do."""

        def try_to_delete() -> bool:
            try:
                self._request("DELETE", path)
            except urllib.error.HTTPError as exc:
                if exc.code != HTTPStatus.SERVICE_UNAVAILABLE:
                    raise
                return False
            return True

        if not poll_until(try_to_delete):
            raise TimeoutError(f"{path} still exists")

    def task_runs(self, flow_run_id: str, *, at_least: int = 0) -> list[dict[str, Any]]:
        """Return all task runs of a flow run, once `at_least` are recorded and the last state of each is recorded, too."""
        found: list[dict[str, Any]] = []

        def settled() -> bool:
            found[:] = self._task_runs(flow_run_id)
            return len(found) >= at_least and all(run["end_time"] and run["state"] for run in found)

        poll_until(settled, timeout_s=_RECORDED_S)
        return found

    def states(self, task_run_id: str) -> list[str]:
        """Types of the states of a task run, once the final state is recorded."""
        found: list[str] = []

        def settled() -> bool:
            found[:] = [state["type"] for state in self.get(f"/task_run_states/?task_run_id={task_run_id}")]
            return bool(found) and found[-1] in _ENDED

        poll_until(settled, timeout_s=_RECORDED_S)
        return found

    def edges(self, flow_run_id: str) -> set[tuple[str, str]]:
        """Edges of the run's graph, as pairs of task run names."""
        nodes = [node for _, node in self.get(f"/flow_runs/{flow_run_id}/graph-v2")["nodes"]]
        names = {node["id"]: node["label"] for node in nodes}
        return {(names[node["id"]], names[child["id"]]) for node in nodes for child in node["children"]}

    def deployment(self, name: str) -> dict[str, Any]:
        """Deployment with the same name as its flow."""
        found: dict[str, Any] = self.get(f"/deployments/name/{name}/{name}")
        return found

    def start(self, name: str, parameters: dict[str, Any]) -> str:
        """Create a run of a deployment, for its worker to pick up; return its id."""
        key = uuid.uuid4().hex  # a repeated request creates no second run
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}, "idempotency_key": key}
        return str(self.post(f"/deployments/{self.deployment(name)['id']}/create_flow_run", body)["id"])

    def wait_for_end(self, flow_run_id: str) -> dict[str, Any]:
        """Wait until a flow run has ended, and return its final state.

        Raises:
            TimeoutError: the run does not end in time.
        """
        if not poll_until(lambda: self._state(flow_run_id)["type"] in _ENDED):
            raise TimeoutError(f"flow run {flow_run_id} is still {self._state(flow_run_id)}")
        return self._state(flow_run_id)

    def logs(self, flow_run_id: str) -> list[str]:
        """Log lines of a flow run and its tasks."""
        body = {"logs": {"flow_run_id": {"any_": [flow_run_id]}}, "sort": "TIMESTAMP_ASC", "limit": _PAGE}
        return [log["message"] for log in self.post("/logs/filter", body)]

    def _state(self, flow_run_id: str) -> dict[str, Any]:
        state: dict[str, Any] = self.get(f"/flow_runs/{flow_run_id}")["state"]
        return state

    def _request(self, method: str, path: str, body: bytes | None = None) -> Any:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if self.auth is not None:
            headers["Authorization"] = f"Basic {base64.b64encode(self.auth.encode()).decode()}"
        request = urllib.request.Request(self.url + path, data=body, headers=headers, method=method)
        bodies: list[bytes] = []

        def send() -> bool:
            """Send the request. Return False if the server is silent or its database is locked, for a retry."""
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    bodies.append(answer.read())
            except urllib.error.HTTPError as exc:
                if exc.code != HTTPStatus.SERVICE_UNAVAILABLE:
                    raise
            except TimeoutError:
                return False
            return bool(bodies)

        assert poll_until(send), f"{method} {path}: still busy"
        return json.loads(bodies[0]) if bodies[0] else None

    def _task_runs(self, flow_run_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            body = {"flow_runs": {"id": {"any_": [flow_run_id]}}, "limit": _PAGE, "offset": len(found)}
            page = self.post("/task_runs/filter", body)
            found += page
            if len(page) < _PAGE:
                return found


@contextmanager
def prefect_server(home: Path, *, auth: str | None = None, **more: str) -> Iterator[PrefectServer]:
    """`prefect server start` on the database in `home`, for the length of a `with` block.

    With `auth`, the server requires this user and password. `more` are settings, as environment variables.
    """
    home.mkdir(parents=True, exist_ok=True)
    port = free_port()
    url = f"http://{LOOPBACK}:{port}/api"
    settings = _SETTINGS | {"PREFECT_HOME": str(home), "PREFECT_UI_API_URL": url} | more
    if (home / "prefect.db").exists():  # a copy of a migrated database: the check takes a second of CPU time
        settings["PREFECT_API_DATABASE_MIGRATE_ON_START"] = "false"
    if auth is not None:
        settings["PREFECT_SERVER_API_AUTH_STRING"] = auth
    argv = [sys.executable, "-m", "prefect", "server", "start", "--host", LOOPBACK, "--port", str(port)]
    with running(argv, ready=lambda: _answers(url), log=home / "server.log", env=settings):
        yield PrefectServer(url, auth)


def migrate_database(home: Path) -> Path:
    """Create an empty database in the new directory `home`, and return its path."""
    home.mkdir()
    argv = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
    subprocess.run(argv, env={**os.environ, **_SETTINGS, "PREFECT_HOME": str(home)}, check=True, capture_output=True)
    with closing(sqlite3.connect(home / "prefect.db")) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # a copy of the file is complete
    return home / "prefect.db"


@contextmanager
def process_worker(server: PrefectServer, pool: str, home: Path, *, project: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `prefect worker start` for a process work pool for the length of a `with` block.

    The pool is created if it is missing. The worker runs in the directory `project`, from which it and its flow runs
    also import modules.
    """
    home.mkdir(parents=True, exist_ok=True)
    settings = _SETTINGS | {"PREFECT_API_URL": server.url, "PREFECT_HOME": str(home), "PREFECT_WORKER_QUERY_SECONDS": "2"}
    settings |= {"PYTHONPATH": str(project)}
    argv = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process", "--name", home.name]

    def polls() -> bool:
        try:
            workers = server.post(f"/work_pools/{pool}/workers/filter", {})
        except OSError:
            return False
        return any(one["name"] == home.name and one["status"] == "ONLINE" for one in workers)

    with running(argv, ready=polls, log=home / "worker.log", env=settings, cwd=project) as worker:
        yield worker


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
