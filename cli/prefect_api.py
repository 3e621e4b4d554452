"""The Prefect API that a run uses, the configured one or an embedded server's, and seeing to it that it records the run."""

import contextlib
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from cli import embedded
from ocispec.errors import DistError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

_ENDED = ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]
_LOOK_AGAIN_S = 0.05
_RECORDED_S = 120
_ENVIRONMENT = {
    # We say ourselves what happens; the API still gets every line.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_HANDLERS_DEBUG_LEVEL": "CRITICAL",
    # "Finished in state Completed()" for each task says nothing that its state does not, and costs a quarter of its time.
    "PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL": "CRITICAL",
    "DO_NOT_TRACK": "1",
}


@dataclass(frozen=True, slots=True)
class PrefectApi:
    """The API that flows started in the block use. `url` is None for an embedded server, which ends with the command."""

    url: str | None

    def address(self, flow_run_id: UUID) -> str:
        """One line that says where the run can be seen."""
        from prefect.utilities.urls import url_for

        if self.url is not None:
            return f"run: {url_for('flow-run', obj_id=flow_run_id)}"
        return f"run: start 'prefect server start', then open http://127.0.0.1:4200/runs/flow-run/{flow_run_id}"

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Have what a run told Prefect arrive there, also when it is interrupted.

        Raises:
            Unavailable: the API refuses to take the run.
        """
        from prefect.events.worker import EventsWorker

        try:
            yield
        except DistError:
            raise
        except Exception as exc:
            # What a run itself raises is in its state. This is Prefect's own trouble, most likely with its API.
            raise Unavailable(
                f"Prefect API {self.url or '(embedded)'}: {exc}; is it a Prefect server, and does it run?"
            ) from exc
        finally:
            EventsWorker.drain_all(timeout=_RECORDED_S)

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
def prefect_api(*, connect_timeout_s: float, debug: bool, load: "Callable[[], object]") -> Iterator[PrefectApi]:
    """Prefect as this user has it configured, ready for runs. `load` imports what the run needs, while a server starts.

    Raises:
        Unavailable: the configured API does not answer, or the embedded server does not start.
    """
    os.environ.update({key: value for key, value in _ENVIRONMENT.items() if key not in os.environ and not debug})
    _spare_loopback()
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, PREFECT_HOME, temporary_settings

    url = PREFECT_API_URL.value()
    if url:
        _check(url, connect_timeout_s)
        load()
        yield PrefectApi(url)
        return
    with (
        embedded.running(PREFECT_HOME.value()) as server,
        # No heartbeats: nobody watches for them here, and their thread holds up the end of each run by a second.
        temporary_settings({PREFECT_API_URL: server.url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        load()
        server.ready()
        yield PrefectApi(None)


def _spare_loopback() -> None:
    """Have Prefect's client reach this machine without a proxy, too, as `remotes.proxies` does and Go's clients do."""
    for name in ("NO_PROXY", "no_proxy"):
        if any(variable.lower().endswith("_proxy") for variable in os.environ):
            os.environ[name] = ",".join(filter(None, (os.environ.get(name), "localhost", "127.0.0.1", "::1")))


def _check(url: str, timeout_s: float) -> None:
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=timeout_s):  # noqa: S310 - the user's own setting
            pass
    except urllib.error.HTTPError:
        pass  # it answers: whether this is allowed is for the run to find out
    except (urllib.error.URLError, OSError, ValueError) as exc:
        reason = getattr(exc, "reason", exc)
        if isinstance(reason, TimeoutError):
            reason = f"nothing came within the connect time-out of {timeout_s:g} s"
        raise Unavailable(
            f"Prefect API {url} does not answer: {reason}; start it with 'prefect server start', or unset PREFECT_API_URL"
        ) from exc
