"""The Prefect API of a run: the configured API, or the API of the local server."""

import contextlib
import gc
import logging
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from posixpath import expanduser
from typing import TypeVar, cast
from uuid import UUID

from prefect_dist.cli import local_process, local_server, signals
from prefect_dist.cli.inputs import BadInput
from prefect_dist.ocispec.errors import DistError, Unavailable

R = TypeVar("R")

_RECORDED_S = 120
_PROBE_S = 1.0
# Time without an answer of the API, after the work of the run is done, until the command stops waiting.
_SILENT_S = 15.0
_ONE_BY_ONE = (
    "hint: this Prefect server records task runs one by one; start it with "
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE=200 (docs/how-to/schedule-and-limit.md)"
)
_REMEDY = "PREFECT_API_URL must point to a running Prefect 3 server"
_LOCAL_REMEDY = "the local server has ended or does not answer; run the command again"
ENVIRONMENT = {
    # The command prints its own progress. The API still gets every line of the log.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_HANDLERS_DEBUG_LEVEL": "CRITICAL",
    # "Finished in state Completed()" repeats the state of each task, and costs a quarter of its time.
    "PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL": "CRITICAL",
    "DO_NOT_TRACK": "1",
}


class Unrecorded(Unavailable):
    """The work of a run is done, but the Prefect API does not record the end of the run."""


@dataclass(frozen=True, slots=True)
class PrefectApi:
    """The API at `url`, for runs in the block of `prefect_api`. `local` is the local server, or None for a configured API."""

    url: str
    local: local_server.LocalServer | None = None

    def address(self, flow_run_id: UUID) -> str:
        """Return a line with the URL of the run. On a terminal, the URL also logs the browser in to the local server."""
        from prefect.utilities.urls import url_for

        if self.local is None:
            return f"run: {url_for('flow-run', obj_id=flow_run_id)}"
        return self.local.describe_address(f"/runs/flow-run/{flow_run_id}", is_terminal=sys.stdout.isatty())

    @contextlib.contextmanager
    def record_events(self) -> Iterator[None]:
        """Wait at the end of the block until the API has the events of the run, or does not answer.

        Raises:
            Unavailable: the API does not record the run.
        """
        from prefect.events.worker import EventsWorker

        try:
            yield
        except DistError:
            raise
        except Exception as exc:
            # The state of the run has its own failures. This is a failure of Prefect, most likely of its API.
            raise Unavailable(f"Prefect API {self.url}: {exc}; {_LOCAL_REMEDY if self.local else _REMEDY}") from exc
        finally:
            deadline = time.monotonic() + _RECORDED_S
            drained = cast("tuple[set[Future[bool]], set[Future[bool]]]", EventsWorker.drain_all(timeout=_PROBE_S))
            pending = drained[1]
            while pending and time.monotonic() < deadline and self.check_answer() is None:
                pending = wait(pending, timeout=_PROBE_S).not_done
            if pending:
                signals.abandon_threads()

    def wait_for_state(self, run: Future[R], *, is_done: Callable[[], bool], is_urgent: Callable[[], bool]) -> R:
        """Wait for a flow run, and return the final state.

        `is_done` returns True when the work is done and Prefect only has to record the end of the run. From then on, the API
        must answer within some seconds, or at once if `is_urgent` returns True.

        Raises:
            Unrecorded: the work is done, but the API does not answer.
        """
        silent_since: float | None = None
        while not wait([run], timeout=_PROBE_S).done:
            reason = self.check_answer() if is_done() else None
            if reason is None:
                silent_since = None
                continue
            silent_since = silent_since or time.monotonic()
            if is_urgent() or time.monotonic() - silent_since > _SILENT_S:
                raise Unrecorded(self._describe_loss(reason))
        try:
            return run.result()
        except Exception as exc:
            if is_done() and not isinstance(exc, DistError):
                raise Unrecorded(self._describe_loss(str(exc))) from exc
            raise

    def settings_hint(self) -> str | None:
        """Return a hint if the server records task runs without batches, which is much slower, or None."""
        from prefect.client.orchestration import get_client

        if self.local is not None:
            return None
        try:
            with get_client(sync_client=True) as client:
                settings = client.request("GET", "/admin/settings").json()
            size = settings["server"]["services"]["task_run_recorder"]["batch_size"]
        except Exception:  # noqa: BLE001 - some servers, such as Prefect Cloud, do not show their settings
            return None
        return _ONE_BY_ONE if size == 1 else None

    def check_answer(self) -> str | None:
        """Return the reason if the API does not answer, or None."""
        return _check_answer(self.url, _PROBE_S)

    def _describe_loss(self, reason: str) -> str:
        return f"Prefect API {self.url} does not answer: {reason}; the end of this run is not recorded there"


@contextlib.contextmanager
def prefect_api(
    *, connect_timeout_s: float, debug: bool, load: Callable[[], object], notify: Callable[[str], None]
) -> Iterator[PrefectApi]:
    """Yield the configured Prefect API, or the API of the local server. `load` imports the flow while a server starts.

    Raises:
        BadInput: the user has no home directory.
        Unavailable: the configured API does not answer, or the local server does not start.
    """
    if expanduser("~") == "~":
        raise BadInput("Prefect requires a home directory, and the user has none; set HOME, or use --direct")
    logging.raiseExceptions = debug  # else Prefect prints an error for each batch of log lines that it cannot send
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ and not debug})
    _bypass_proxies_for_loopback()

    def use_server(home: Path) -> local_server.LocalServer:
        return stack.enter_context(local_server.use_server(home, answer_s=connect_timeout_s, notify=notify))

    with contextlib.ExitStack() as stack:
        # The import of Prefect's settings takes half a second, in which the server can already start.
        server = use_server(home) if (home := local_process.guess_home()) else None
        with _pause_collector():
            from prefect.settings import PREFECT_API_URL, PREFECT_HOME

        if url := PREFECT_API_URL.value():
            stack.close()
            _require_answer(url, connect_timeout_s)
            with _pause_collector():
                load()
            yield PrefectApi(url)
            return
        server = server or use_server(PREFECT_HOME.value())
        stack.enter_context(_use_settings(server))
        with _pause_collector():
            load()
        server.wait_until_ready()
        yield PrefectApi(server.url, server)


@contextlib.contextmanager
def _pause_collector() -> Iterator[None]:
    """Import without garbage collection, which would pass over all loaded modules again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _use_settings(server: local_server.LocalServer) -> contextlib.AbstractContextManager[object]:
    from prefect.settings import (
        PREFECT_API_AUTH_STRING,
        PREFECT_API_KEY,
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        temporary_settings,
    )

    return temporary_settings(
        {
            PREFECT_API_URL: server.url,
            PREFECT_API_AUTH_STRING: server.secret,
            PREFECT_API_KEY: None,
            # Heartbeats have no reader here, and their thread delays the end of each run by a second.
            PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
        }
    )


def _bypass_proxies_for_loopback() -> None:
    """Make Prefect's client connect to loopback addresses without a proxy, like `remotes.proxies` and the clients of Go."""
    for name in ("NO_PROXY", "no_proxy"):
        if any(variable.lower().endswith("_proxy") for variable in os.environ):
            os.environ[name] = ",".join(filter(None, (os.environ.get(name), "localhost", "127.0.0.1", "::1")))


def _require_answer(url: str, timeout_s: float) -> None:
    if (reason := _check_answer(url, timeout_s)) is not None:
        raise Unavailable(
            f"Prefect API {url} does not answer: {reason}; start it with 'prefect server start', or unset PREFECT_API_URL"
        )


def _check_answer(url: str, timeout_s: float) -> str | None:
    """Return the reason if an API does not answer, or None. A server error does not count as an answer, as in `flows.api`."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=timeout_s):  # noqa: S310 - the user configured the URL
            pass
    except urllib.error.HTTPError as exc:
        # Any other status is an answer. The requests of the run show if they are allowed.
        return f"HTTP {exc.code} {exc.reason}" if exc.code >= HTTPStatus.INTERNAL_SERVER_ERROR else None
    except (urllib.error.URLError, OSError, ValueError) as exc:
        reason = getattr(exc, "reason", exc)
        if isinstance(reason, TimeoutError):
            return f"no answer within {timeout_s:g} s"
        return str(reason)
    return None
