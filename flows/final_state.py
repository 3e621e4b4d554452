"""How every run ends: its artifacts show what was done and what failed, the message of its final state is its summary."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger
from prefect.artifacts import Artifact, MarkdownArtifact, TableArtifact
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.states import Cancelled, Completed, Failed

from prefect_dist.flows.background import submit
from prefect_dist.flows.results import data_of_state
from prefect_dist.mirror.progress import collect
from prefect_dist.mirror.run_report import Report, Status, in_one_line
from prefect_dist.mirror.run_result import RunFailed, RunStopped
from prefect_dist.ocispec.units import format_count

if TYPE_CHECKING:
    from prefect.filesystems import WritableFileSystem

# What a page of Prefect's can show.
_MOST_ROWS = 500
_MOST_LOGGED = 20
# What could be more than text in a line of Markdown; an underscore within a word is not.
_MARKS = re.compile(r"[\\`*\[\]<>|~]")
_STATES: Mapping[Status, Callable[..., State[Any]]] = {
    "complete": Completed,
    "vetoed": partial(Completed, name="Vetoed"),
    "failed": Failed,
    "stopped": Cancelled,
}
_ERRORS: Mapping[Status, type[RunFailed]] = {"failed": RunFailed, "stopped": RunStopped}
# What to do once the causes are gone, which the lines themselves say.
_NEXT = {
    "verify": "To fetch again what is not whole, run verify with `repair`; what was corrupt stays in quarantine meanwhile.",
    "check": "To send again what is missing, run check with `repair`.",
}
_AGAIN = "Put right what the lines below say, then run it again: what is done is kept, and what arrived is not fetched twice."
_ON = "The run was ended before it had done all. Run it again to go on with what is missing: what is done is kept."


def finish(key: str, report: Report, storage: "WritableFileSystem | None" = None) -> State[Any]:
    """Return the final state of the current flow run. `key` names the flow and its table, `storage` keeps results.

    The data of the state is the report, or the error that the call of the flow raises.
    """
    message, errors = in_one_line(report), report.errors()
    tabulate(report.table(), key=key, description=message)
    _show(MarkdownArtifact(markdown=_summary(key, report), key="summary", description=report.summary()))
    if errors:
        then = _ON if report.status == "stopped" else _NEXT.get(key, _AGAIN)
        _log_failures(report)
        told = f"{format_count(len(errors), 'failure')}. {then}"
        _show(MarkdownArtifact(markdown=_failures(errors), key="failures", description=told))
    context = FlowRunContext.get()
    if context is not None and context.flow_run:
        collect(context.flow_run.id, report)
    error = _ERRORS.get(report.status)
    return _STATES[report.status](message=message, data=data_of_state(error(report) if error else report, storage))


def _log_failures(report: Report) -> None:
    """Have the end of the run's log begin with its failures, grouped by their cause."""
    log, causes = get_run_logger(), report.causes()
    log.error("%s; %s:", report.summary(), format_count(len(causes), "cause"))
    for cause in causes[:_MOST_LOGGED]:
        log.error("%s", "\n".join((cause.text, *(f"  {line}" for line in cause.object_lines(_MOST_LOGGED)))))
    if len(causes) > _MOST_LOGGED:
        log.error("and %s: the artifact failures has them all", format_count(len(causes) - _MOST_LOGGED, "more cause"))


def tabulate(rows: Sequence[Mapping[str, str | int]], *, key: str, description: str) -> None:
    """Have an artifact of the current flow run show rows, of very many the first."""
    left = len(rows) - _MOST_ROWS
    more = f" (and {left} more rows, which are not shown)" if left > 0 else ""
    shown = [dict(row) for row in rows[:_MOST_ROWS]]
    _show(TableArtifact(table=shown, key=key, description=f"{description}{more}"))


def _show(artifact: Artifact) -> None:
    submit(f"the artifact {artifact.key}", artifact.create)


def _summary(key: str, report: Report) -> str:
    """The facts as a table in Markdown; what there is none of is left out."""
    facts = ((name, value) for name, value in report.facts().items() if value not in (0, "nothing"))
    return "\n".join([f"| {key} | {report.status} |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts)])


def _failures(errors: Sequence[str]) -> str:
    """A numbered list in Markdown, of very many failures the first. No table: those cut what does not fit into their width."""
    left = len(errors) - _MOST_ROWS
    more = [f"\n… and {left} more, which are not shown"] if left > 0 else []
    return "\n".join([*(f"{number}. {_literal(error)}" for number, error in enumerate(errors[:_MOST_ROWS], 1)), *more])


def _literal(text: str) -> str:
    """Text that Markdown shows as it is: some of it is what a registry says."""
    return _MARKS.sub(r"\\\g<0>", " ".join(text.split()))
