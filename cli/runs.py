"""Runs a flow for a command, or the same run without Prefect. Shows the progress and prints the report."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefect_dist.cli import inputs, output
from prefect_dist.cli.display import Doing, display
from prefect_dist.cli.inputs import BadInput
from prefect_dist.cli.options import Context, Grain, RunNetworkOptions
from prefect_dist.cli.output import print_error
from prefect_dist.mirror import render
from prefect_dist.mirror.report import FlowName, RunReport, Status
from prefect_dist.transfer.cancellation import Stopped

if TYPE_CHECKING:
    from prefect_dist.cli.prefect_runs import Record
    from prefect_dist.transfer.events import Notify

# Printed causes, and objects of a cause. More lines would push these off the screen.
_MAX_CAUSES, _MAX_OBJECTS = 20, 10
_EXIT_CODES: Mapping[Status, int] = {"complete": 0, "failed": 1, "stopped": 1, "vetoed": 3}


def run(
    context: Context,
    flow: FlowName,
    parameters: Mapping[str, Any],
    *,
    doing: Doing = "downloading",
    quiet: bool,
    direct: bool,
    grain: Grain | None = None,
    workers: int = 1,
) -> int:
    """Run a flow, and print the report. If `quiet`, print only the summary, the notes and the failures.

    A `direct` run takes place in threads of this process, without Prefect. `grain` is a parameter of the flow. More than one of
    `workers` share the run.

    Returns the exit code: 0 complete, 1 failed or stopped, 3 nothing failed, but a gate vetoed an image.
    """
    if grain is not None:
        if direct:
            raise BadInput("--grain is for Prefect runs; leave out --grain or --direct")
        parameters = {**parameters, "grain": grain}
    if workers > 1 and direct:
        raise BadInput("--workers is for Prefect runs; leave out --workers or --direct")
    carry_out = _prepare(context, flow, parameters, direct=direct, workers=workers)
    with display(context.output, quiet=quiet, doing=doing) as notify:
        try:
            report, record = carry_out(notify)
        except Stopped as exc:  # the run stopped before it had a report
            print_error(str(exc))
            return 1
    _print_report(context, report, record, quiet=quiet)
    code = _EXIT_CODES[report.status]
    if record is not None and record.loss is not None:
        print_error(record.loss)
        return code or 1
    return code


def _prepare(
    context: Context, flow: FlowName, parameters: Mapping[str, Any], *, direct: bool, workers: int
) -> "Callable[[Notify], tuple[RunReport, Record | None]]":
    """Return the function that carries out the run, and returns the report and Prefect's record of the run.

    Only the chosen way is imported: Prefect takes a second to import.
    """
    if direct:
        from prefect_dist.cli.direct import make_run, run_direct

        spec = make_run(flow, parameters)
        return lambda notify: (run_direct(spec, notify), None)
    from prefect_dist.cli.prefect_runs import run_flow

    return lambda notify: run_flow(context, flow, parameters, notify, workers=workers)


def _print_report(context: Context, report: RunReport, record: "Record | None", *, quiet: bool) -> None:
    if context.output == "json":
        output.print_json(render.to_json(report, None if record is None else record.flow_run_id))
    elif quiet:
        output.print_lines([render.summary_line(report)])
    else:
        # Errors are printed below, once for each cause.
        output.print_rows(
            [{head: cell for head, cell in row.items() if head != "error"} for row in render.table(report).list_cells()]
        )
        addresses = () if record is None else (record.address,)
        output.print_lines([render.summary_line(report), f"store: {report.store}", *addresses])
    if context.output == "text":
        for note in report.notes:
            print_error(note)
    _print_failures(render.group_causes(report.errors), is_recorded=record is not None)


def _print_failures(causes: Sequence[render.Cause], *, is_recorded: bool) -> None:
    """Print each cause once, followed by the failed objects. Prefect has all failures of a recorded run."""
    for cause in causes[:_MAX_CAUSES]:
        print_error(cause.text, *cause.object_lines(_MAX_OBJECTS))
    if len(causes) > _MAX_CAUSES:
        lists = "--output json and the artifacts of the run list" if is_recorded else "--output json lists"
        print_error(f"and {len(causes) - _MAX_CAUSES} more causes: {lists} all failures")


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
