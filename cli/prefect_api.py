"""The Prefect API that a run uses, the configured one or an embedded server's: waits until the API has recorded the run."""

import contextlib
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar, cast
from uuid import UUID

from prefect_dist.cli import embedded, ending
from prefect_dist.ocispec.errors import DistError, Unavailable

R = TypeVar("R")

_ENDED = ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]
_LOOK_AGAIN_S = 0.05
_RECORDED_S = 120
_PROBE_S = 1.0
# How long the API may be silent after the work of the run is done, while the user waits.
_SILENT_S = 5.0
_ONE_BY_ONE = (
    "hint: this Prefect server records task runs one by one; start it with "
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE=200 (docs/how-to/schedule-and-limit.md)"
)
ENVIRONMENT = {
    # We say ourselves what happens; the API still gets every line.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_HANDLERS_DEBUG_LEVEL": "CRITICAL",
    # "Finished in state Completed()" for each task says nothing that its state does not, and costs a quarter of its time.
    "PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL": "CRITICAL",
    "DO_NOT_TRACK": "1",
}


class Unrecorded(Unavailable):
    """The work of a run is done, but Prefect's API does not record how the run ended."""


@dataclass(frozen=True, slots=True)
class PrefectApi:
    """The API at `endpoint` that flows started in the block use. `url` is None for an embedded server."""

    url: str | None
    endpoint: str

    def address(self, flow_run_id: UUID) -> str:
        """One line that says where the run can be seen."""
        from prefect.utilities.urls import url_for

        if self.url is not None:
            return f"run: {url_for('flow-run', obj_id=flow_run_id)}"
        return f"run: start 'prefect server start', then open http://127.0.0.1:4200/runs/flow-run/{flow_run_id}"

    @contextlib.contextmanager
    def record_events(self) -> Iterator[None]:
        """Have the events of a run arrive at the API, also when the run is interrupted; given up if the API does not answer.

        Raises:
            Unavailable: the API does not record the run.
        """
        from prefect.events.worker import EventsWorker

        try:
            yield
        except DistError:
            raise
        except Exception as exc:
            # A failure of the run itself is in its state. This is Prefect's own trouble, most likely with its API.
            raise Unavailable(
                f"Prefect API {self.url or '(embedded)'}: {exc}; is it a Prefect server, and does it run?"
            ) from exc
        finally:
            deadline = time.monotonic() + _RECORDED_S
            drained = cast("tuple[set[Future[bool]], set[Future[bool]]]", EventsWorker.drain_all(timeout=_PROBE_S))
            pending = drained[1]
            while pending and time.monotonic() < deadline and self.silence() is None:
                pending = wait(pending, timeout=_PROBE_S).not_done
            if pending:
                ending.abandon_threads()

    def outcome(self, run: Future[R], *, is_done: Callable[[], bool], is_urgent: Callable[[], bool]) -> R:
        """Wait for a flow run, and return its final state.

        `is_done` says that the work is done, so that only Prefect has to record it. From then on the API has to answer:
        within some seconds, or at once if it `is_urgent` to end.

        Raises:
            Unrecorded: the work is done, but the API does not answer.
        """
        silent_since: float | None = None
        while not wait([run], timeout=_PROBE_S).done:
            reason = self.silence() if is_done() else None
            if reason is None:
                silent_since = None
                continue
            silent_since = silent_since or time.monotonic()
            if is_urgent() or time.monotonic() - silent_since > _SILENT_S:
                raise Unrecorded(self._lost(reason))
        try:
            return run.result()
        except Exception as exc:
            if is_done() and not isinstance(exc, DistError):
                raise Unrecorded(self._lost(str(exc))) from exc
            raise

    def settings_hint(self) -> str | None:
        """Return a hint for a server that records task runs one by one, which costs it much more; None for any other."""
        from prefect.client.orchestration import get_client

        if self.url is None:
            return None
        try:
            with get_client(sync_client=True) as client:
                settings = client.request("GET", "/admin/settings").json()
            size = settings["server"]["services"]["task_run_recorder"]["batch_size"]
        except Exception:  # noqa: BLE001 - a server that does not show its settings, such as Prefect Cloud
            return None
        return _ONE_BY_ONE if size == 1 else None

    def silence(self) -> str | None:
        """Return why the API does not answer; None if it does."""
        return _silence(self.endpoint, _PROBE_S)

    def _lost(self, reason: str) -> str:
        return f"Prefect API {self.endpoint} does not answer: {reason}; it does not show how this run ended"

    def settle(self, flow_run_id: UUID, *, ended: int) -> None:
        """Wait until `ended` task runs of a run and of its parts are recorded as ended; a lasting server does so by itself.

        Raises:
            Unavailable: that took too long.
        """
        from prefect.client.orchestration import get_client

        if self.url is not None:
            return
        it = {"any_": [str(flow_run_id)]}
        body = {
            "flow_runs": {"operator": "or_", "id": it, "parent_flow_run_id": it},
            "task_runs": {"state": {"type": {"any_": _ENDED}}},
        }
        deadline = time.monotonic() + _RECORDED_S
        with get_client(sync_client=True) as client:
            while client.request("POST", "/task_runs/count", json=body).json() < ended:
                if time.monotonic() > deadline:
                    raise Unavailable(f"run {flow_run_id}: Prefect's embedded server did not record all {ended} task runs")
                time.sleep(_LOOK_AGAIN_S)


@contextlib.contextmanager
def prefect_api(*, connect_timeout_s: float, debug: bool, load: Callable[[], object]) -> Iterator[PrefectApi]:
    """Prefect as this user has it configured, ready for runs. `load` imports what the run needs, while a server starts.

    Raises:
        Unavailable: the configured API does not answer, or the embedded server does not start.
    """
    logging.raiseExceptions = debug  # or Prefect writes to standard error for each batch of log lines that it cannot send
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ and not debug})
    _spare_loopback()
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, PREFECT_HOME, temporary_settings

    url = PREFECT_API_URL.value()
    if url:
        _check(url, connect_timeout_s)
        load()
        yield PrefectApi(url, url)
        return
    with (
        embedded.run_server(PREFECT_HOME.value()) as server,
        # No heartbeats: nobody watches for them here, and their thread holds up the end of each run by a second.
        temporary_settings({PREFECT_API_URL: server.url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        load()
        server.ready()
        yield PrefectApi(None, server.url)


def _spare_loopback() -> None:
    """Have Prefect's client reach this machine without a proxy, too, as `remotes.proxies` does and Go's clients do."""
    for name in ("NO_PROXY", "no_proxy"):
        if any(variable.lower().endswith("_proxy") for variable in os.environ):
            os.environ[name] = ",".join(filter(None, (os.environ.get(name), "localhost", "127.0.0.1", "::1")))


def _check(url: str, timeout_s: float) -> None:
    if (reason := _silence(url, timeout_s)) is not None:
        raise Unavailable(
            f"Prefect API {url} does not answer: {reason}; start it with 'prefect server start', or unset PREFECT_API_URL"
        )


def _silence(url: str, timeout_s: float) -> str | None:
    """Return why an API does not answer; None if it does. A server error is no answer, as in `flows.api`."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=timeout_s):  # noqa: S310 - the user's own setting
            pass
    except urllib.error.HTTPError as exc:
        # Any other status is an answer: the run finds out whether its requests are allowed.
        return f"HTTP {exc.code} {exc.reason}" if exc.code >= HTTPStatus.INTERNAL_SERVER_ERROR else None
    except (urllib.error.URLError, OSError, ValueError) as exc:
        reason = getattr(exc, "reason", exc)
        if isinstance(reason, TimeoutError):
            return f"nothing came within {timeout_s:g} s"
        return str(reason)
    return None
