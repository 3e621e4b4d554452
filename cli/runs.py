"""Runs a flow for a command, shows the progress and prints the report."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from importlib import import_module
from threading import Thread
from typing import Any, TypeVar
from uuid import UUID

from prefect_dist.cli import inputs, output
from prefect_dist.cli.display import Doing, display
from prefect_dist.cli.options import Context, RunNetworkOptions
from prefect_dist.cli.output import print_error
from prefect_dist.cli.prefect_api import PrefectApi, Unrecorded, prefect_api
from prefect_dist.cli.signals import abandon_threads
from prefect_dist.mirror import render
from prefect_dist.mirror.progress import collected_reports, notify_also
from prefect_dist.mirror.report import RunReport, Status
from prefect_dist.mirror.run_result import RunFailed
from prefect_dist.transfer.cancellation import Stopped, current_token
from prefect_dist.transfer.events import Note, Notify

T = TypeVar("T")
# Printed causes, and objects of a cause. More lines would push these off the screen.
_MAX_CAUSES, _MAX_OBJECTS = 20, 10
# Number of task runs from which the settings of the Prefect server matter.
_MANY_TASKS = 100
_EXIT_CODES: Mapping[Status, int] = {"complete": 0, "failed": 1, "stopped": 1, "vetoed": 3}


def run(
    context: Context,
    flow: str,
    parameters: Mapping[str, Any],
    *,
    doing: Doing = "downloading",
    quiet: bool,
) -> int:
    """Run the flow named `flow`, and print the report. If `quiet`, print only the summary, the notes and the failures.

    Returns the exit code: 0 complete, 1 failed or stopped, 3 nothing failed, but a gate vetoed an image.
    """
    load = partial(_import_flow, flow)
    with display(context.output, quiet=quiet, doing=doing) as notify:
        notify(Note("starting Prefect"))
        with (
            prefect_api(connect_timeout_s=context.connect_timeout_s, debug=context.debug, load=load) as api,
            notify_also(notify),
        ):
            try:
                report, flow_run_id, unrecorded = _run(api, partial(load(), **parameters, return_state=True), notify)
            except Stopped as exc:  # the run stopped before it had a report
                print_error(str(exc))
                return 1
            address = api.address(flow_run_id)
            if unrecorded is None and report.tasks >= _MANY_TASKS and (hint := api.settings_hint()):
                notify(Note(hint))
    _print_report(context, report, flow_run_id, address, quiet=quiet)
    if unrecorded is not None:
        print_error(unrecorded)
        return _EXIT_CODES[report.status] or 1
    return _EXIT_CODES[report.status]


def _print_report(context: Context, report: RunReport, flow_run_id: UUID, address: str, *, quiet: bool) -> None:
    if context.output == "json":
        output.print_json(render.to_json(report, str(flow_run_id)))
    elif quiet:
        output.print_lines([render.summary_line(report)])
    else:
        # Errors are printed below, once for each cause.
        output.print_rows([{head: cell for head, cell in row.items() if head != "error"} for row in render.table(report)])
        output.print_lines([render.summary_line(report), f"store: {report.store}", address])
    if context.output == "text":
        for note in report.notes:
            print_error(note)
    _print_failures(render.group_causes(report.errors))


def _import_flow(name: str) -> Callable[..., Any]:
    flow: Callable[..., Any] = getattr(import_module(f"prefect_dist.flows.{name}"), name)
    return flow


def _print_failures(causes: Sequence[render.Cause]) -> None:
    """Print each cause once, followed by the failed objects."""
    for cause in causes[:_MAX_CAUSES]:
        print_error(cause.text, *cause.object_lines(_MAX_OBJECTS))
    if len(causes) > _MAX_CAUSES:
        remaining = len(causes) - _MAX_CAUSES
        print_error(f"and {remaining} more causes: --output json and the artifacts of the run list all failures")


def store_parameters(context: Context) -> dict[str, Any]:
    """Return the parameters for the content store of a flow."""
    return {"store": inputs.make_absolute(context.store), "store_options": context.store_options}


def common_parameters(context: Context, network: RunNetworkOptions) -> dict[str, Any]:
    """Return the parameters for the store and the network of a flow. A wrong hosts file or CA bundle is refused here."""
    inputs.load_hosts(network)
    settings: dict[str, Any] = {
        "plain_http": network.plain_http,
        "connect_timeout": context.connect_timeout_s,
        "read_timeout": network.read_timeout,
        "insecure": list(network.insecure),
        "credentials": list(network.credentials),
    }
    files = {key: inputs.make_absolute(path) for key in ("hosts", "ca_file") if (path := getattr(network, key)) is not None}
    return {**store_parameters(context), "network": settings | files}


def _run(api: PrefectApi, flow: Callable[[], Any], notify: Notify) -> tuple[RunReport, UUID, str | None]:
    """Run a flow, and return the report, the run id, and the reason if Prefect has not recorded the end.

    Raises:
        Exception: the error of a run without a report.
    """
    stop = current_token()
    noted = stop.on_cancel(lambda: notify(Note("stopping; press Ctrl-C again to exit immediately")))
    with collected_reports() as reports, noted:
        try:
            with api.record_events():
                run = _in_thread(flow)
                state = api.wait_for_state(run, is_done=lambda: bool(reports), is_urgent=lambda: stop.reason is not None)
        except Unrecorded as exc:
            abandon_threads()
            return reports[-1][1], reports[-1][0], str(exc)
    result = state.result(raise_on_failure=False)
    report: Any = result.report if isinstance(result, RunFailed) else result
    if isinstance(report, BaseException):
        raise report
    api.wait_until_recorded(state.state_details.flow_run_id, ended=report.tasks)
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
