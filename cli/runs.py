"""Commands that are Prefect runs: a flow is run and shown here, and its report printed."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from threading import Thread
from typing import Any, TypeVar
from uuid import UUID

from prefect_dist.cli import inputs, tables
from prefect_dist.cli.context import Context
from prefect_dist.cli.display import Doing, display
from prefect_dist.cli.ending import abandon_threads
from prefect_dist.cli.errors import tell
from prefect_dist.cli.options import RunNetworkOptions
from prefect_dist.cli.prefect_api import PrefectApi, Unrecorded, prefect_api
from prefect_dist.mirror.causes import Cause
from prefect_dist.mirror.progress import collected_reports, notify_also
from prefect_dist.mirror.run_report import Report, Status
from prefect_dist.mirror.run_result import RunFailed
from prefect_dist.transfer.cancellation import Stopped, current_token
from prefect_dist.transfer.events import Note, Notify

R = TypeVar("R", bound=Report)
T = TypeVar("T")
_MOST_CAUSES, _MOST_OBJECTS = 20, 10
"""Failures that are printed: more would only push these off the screen."""
# From so many task runs on, the settings of the Prefect server matter.
_MANY_TASKS = 100
_EXIT_CODES: Mapping[Status, int] = {"complete": 0, "failed": 1, "stopped": 1, "vetoed": 3}


def run(
    context: Context,
    load: Callable[[], Callable[..., Any]],
    parameters: Mapping[str, Any],
    show: Callable[[R], None],
    *,
    notes: Callable[[R], Sequence[str]] = lambda _report: (),
    store: str | None = None,
    doing: Doing = "downloading",
) -> int:
    """Run the flow that `load` imports, and print its report with `show`; `store` is its store if no parameter names it.

    `notes` are lines about the report that a person reads also with `--quiet`.

    Returns the exit code: 0 complete, 1 failed or stopped, 3 nothing failed but a gate vetoed an image.
    """
    place = store or parameters["store"]
    with display(context.output, quiet=context.quiet, doing=doing) as notify:
        notify(Note("starting Prefect"))
        with (
            prefect_api(connect_timeout_s=context.connect_timeout_s, debug=context.debug, load=load) as api,
            notify_also(notify),
        ):
            report: R
            try:
                report, flow_run_id, unrecorded = _run(api, partial(load(), **parameters, return_state=True), notify)
            except Stopped as exc:  # before it had begun anything that it could report
                tell(str(exc))
                return 1
            address = api.address(flow_run_id)
            if unrecorded is None and report.tasks >= _MANY_TASKS and (hint := api.settings_hint()):
                notify(Note(hint))
    if context.output == "json":
        tables.json({**report.to_json(str(flow_run_id)), "store": place})
    elif context.quiet:
        tables.lines([report.summary()])
    else:
        show(report)
        tables.lines([report.summary(), f"store: {place}", address])
    if context.output == "text":
        for note in notes(report):
            tell(note)
    _tell_failures(report.causes())
    if unrecorded is not None:
        tell(unrecorded)
        return _EXIT_CODES[report.status] or 1
    return _EXIT_CODES[report.status]


def _tell_failures(causes: Sequence[Cause]) -> None:
    """Print each cause once, and below it what failed for it."""
    for cause in causes[:_MOST_CAUSES]:
        tell(cause.text, *cause.object_lines(_MOST_OBJECTS))
    if len(causes) > _MOST_CAUSES:
        tell(f"and {len(causes) - _MOST_CAUSES} more causes: --output json and the artifacts of the run list all failures")


def store_parameters(context: Context) -> dict[str, Any]:
    """The parameters by which every flow knows the store."""
    return {"store": inputs.absolute_location(context.store), "store_options": context.store_options}


def common(context: Context, network: RunNetworkOptions) -> dict[str, Any]:
    """The parameters of every flow that reaches registries."""
    inputs.hosts(network)  # refused before anything is started
    told: dict[str, Any] = {
        "plain_http": network.plain_http,
        "connect_timeout": context.connect_timeout_s,
        "read_timeout": network.read_timeout,
        "insecure": list(network.insecure),
        "credentials": list(network.credentials),
    }
    files = {key: inputs.absolute_location(path) for key in ("hosts", "ca_file") if (path := getattr(network, key)) is not None}
    return {**store_parameters(context), "network": told | files}


def _run(api: PrefectApi, flow: Callable[[], Any], notify: Notify) -> tuple[Any, UUID, str | None]:
    """Run a flow, and return its report and id, and why Prefect has not recorded it (None if it has).

    Raises:
        Exception: what ended the run before it could report.
    """
    stop = current_token()
    noted = stop.on_cancel(lambda: notify(Note("ending; once more leaves at once")))
    with collected_reports() as reports, noted:
        try:
            with api.record_events():
                run = _in_thread(flow)
                state = api.outcome(run, is_done=lambda: bool(reports), is_urgent=lambda: stop.reason is not None)
        except Unrecorded as exc:
            abandon_threads()
            flow_run_id, report = reports[-1]
            return report, flow_run_id, str(exc)
    ended = state.result(raise_on_failure=False)
    report = ended.report if isinstance(ended, RunFailed) else ended
    if isinstance(report, BaseException):
        raise report
    api.settle(state.state_details.flow_run_id, ended=report.tasks)
    return report, state.state_details.flow_run_id, None


def _in_thread(flow: Callable[[], T]) -> Future[T]:
    """Run a flow in a thread of its own: in the main thread Prefect would take over SIGTERM.

    A daemon thread, which a process that has to end does not wait for.
    """
    run, context = Future[T](), copy_context()

    def work() -> None:
        try:
            run.set_result(context.run(flow))
        except BaseException as exc:  # noqa: BLE001 - raised again where the result is wanted
            run.set_exception(exc)

    Thread(target=work, name="flow", daemon=True).start()
    return run
