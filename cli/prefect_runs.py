"""Runs a flow in the process of a command, with the Prefect API that is configured or with the local server."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import Any, TypeVar
from uuid import UUID

from prefect_dist.cli.options import Context
from prefect_dist.cli.prefect_api import PrefectApi, Unrecorded, prefect_api
from prefect_dist.cli.run_table import RUNS
from prefect_dist.cli.signals import abandon_threads, note_stop
from prefect_dist.mirror.progress import collected_reports, notify_also
from prefect_dist.mirror.report import FlowName, RunReport
from prefect_dist.mirror.run_result import RunFailed
from prefect_dist.transfer.cancellation import current_token
from prefect_dist.transfer.events import Note, Notify

T = TypeVar("T")
# Number of task runs from which the settings of the Prefect server matter.
_MANY_TASKS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The record of a run in Prefect.

    `address` is a line with the URL of the flow run. `loss` is the reason if Prefect has not recorded the end of the run.
    """

    flow_run_id: str
    address: str
    loss: str | None


def run_flow(
    context: Context, flow: FlowName, parameters: Mapping[str, Any], notify: Notify, *, workers: int
) -> tuple[RunReport, Record]:
    """Run a flow, and return the report and the record. With several `workers`, other processes share the run.

    Raises:
        Stopped: the run stopped before it had a report.
        Exception: another error of a run without a report.
    """
    load = RUNS[flow].load_flow
    notify(Note("starting Prefect"))
    with (
        prefect_api(
            connect_timeout_s=context.connect_timeout_s,
            debug=context.debug,
            load=load,
            notify=lambda text: notify(Note(text)),
        ) as api,
        notify_also(notify),
        _use_workers(workers, api, is_dry=parameters.get("dry_run", False)) as divided,
    ):
        report, flow_run_id, loss = _run(api, partial(load(), **parameters, **divided, return_state=True), notify)
        address = api.address(flow_run_id)
        if loss is None and report.tasks >= _MANY_TASKS and (hint := api.settings_hint()):
            notify(Note(hint))
    return report, Record(flow_run_id=str(flow_run_id), address=address, loss=loss)


@contextmanager
def _use_workers(count: int, api: PrefectApi, *, is_dry: bool) -> Iterator[dict[str, Any]]:
    """Yield the parameters of a run that several workers share. Without a configured API, they run on this machine.

    A dry run has no shards, and so needs no worker.
    """
    if count == 1:
        yield {}
    elif api.local is None or is_dry:
        yield {"workers": count}
    else:
        from prefect_dist.cli.local_workers import run_worker

        with run_worker(count, api.local) as deployment:
            yield {"workers": count, "worker_deployment": deployment}


def _run(api: PrefectApi, flow: Callable[[], Any], notify: Notify) -> tuple[RunReport, UUID, str | None]:
    """Run a flow, and return the report, the run id, and the reason if Prefect has not recorded the end."""
    stop = current_token()
    with collected_reports() as reports, note_stop(notify):
        try:
            with api.record_events():
                run = _in_thread(flow)
                state = api.wait_for_state(run, is_done=lambda: bool(reports), is_urgent=lambda: stop.reason is not None)
        except Unrecorded as exc:
            abandon_threads()
            return reports[-1][1], reports[-1][0], str(exc)
    if reports and not state.is_final():  # cancelled at the end of the work, and Prefect then accepts only the end Cancelled
        return reports[-1][1], reports[-1][0], f"Prefect shows the run as {state.name}: it was cancelled when its work was done"
    result = state.result(raise_on_failure=False)
    report: Any = result.report if isinstance(result, RunFailed) else result
    if isinstance(report, BaseException):
        raise report
    return report, state.state_details.flow_run_id, None


def _in_thread(flow: Callable[[], T]) -> Future[T]:
    """Run a flow in a new thread. In the main thread, Prefect would replace the handler of SIGTERM.

    The process can exit without waiting for a daemon thread.
    """
    run, context = Future[T](), copy_context()

    def work() -> None:
        try:
            run.set_result(context.run(flow))
        except BaseException as exc:  # noqa: BLE001 - `Future.result` raises it again
            run.set_exception(exc)

    Thread(target=work, name="flow", daemon=True).start()
    return run
