"""The command `fetch`: the flow of that name, run and shown here."""

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any
from uuid import UUID

from cli import inputs, tables
from cli.context import Context
from cli.display import Display, display
from cli.prefect_api import PrefectApi, prefect_api
from flows.progress import listening
from flows.report import ImageReport, RunReport
from ocispec.units import size
from tasks import stopping


def run(
    context: Context,
    references: Sequence[str],
    platforms: Sequence[str],
    *,
    concurrency: int,
    retries: int,
    read_timeout: float,
    plain_http: bool,
) -> int:
    """Fetch images; 1 if any is not complete."""
    parameters: dict[str, Any] = {
        "references": [str(inputs.reference(text)) for text in references],
        "store": inputs.lasting(context.store),
        "platforms": [str(platform) for platform in inputs.platforms(platforms) or ()] or "all",
        "plain_http": plain_http,
        "concurrency": concurrency,
        "retries": retries,
        "connect_timeout": context.connect_timeout_s,
        "read_timeout": read_timeout,
    }
    inputs.store(context.store).prepare()  # what cannot be written is refused before anything is started
    with display(quiet=context.output == "json") as shown:
        shown.note("starting Prefect")
        with prefect_api(connect_timeout_s=context.connect_timeout_s, debug=context.debug, load=_load) as api, listening(shown):
            report, flow_run_id = _run(api, parameters, shown)
            address = api.address(flow_run_id)
    if context.output == "json":
        tables.json(report.to_json(str(flow_run_id)))
    else:
        _show(report, address)
    for line in report.errors():
        print("dist:", line, file=sys.stderr)  # noqa: T201
    return 1 if report.failed else 0


def _load() -> Any:
    from flows.fetch import fetch

    return fetch


def _run(api: PrefectApi, parameters: dict[str, Any], shown: Display) -> tuple[RunReport, UUID]:
    """The report of the run, once Prefect has recorded it.

    Raises:
        Exception: what ended the run before it could report.
    """
    ending = stopping.current().heard(lambda: shown.note("ending; once more leaves at once"))
    with api.recording(), ending, ThreadPoolExecutor(1) as elsewhere:  # in the main thread Prefect takes SIGTERM for itself
        run = partial(_load(), **parameters, return_state=True)
        state = elsewhere.submit(copy_context().run, run).result()
    report = state.result(raise_on_failure=False)
    if not isinstance(report, RunReport):
        raise report
    api.settle(state.state_details.flow_run_id, ended=report.tasks)
    return report, state.state_details.flow_run_id


def _show(report: RunReport, address: str) -> None:
    heads = ("IMAGE", "STATUS", "FETCHED", "EXISTED", "FAILED", "BYTES", "DIGEST")
    tables.columns(heads, [_row(image) for image in report.images])
    tables.lines([report.summary(), address])


def _row(image: ImageReport) -> tuple[str, ...]:
    counts = (str(image.fetched), str(image.existed), str(image.failed))
    return image.name, image.status, *counts, size(image.transferred), str(image.root.digest) if image.root else "-"
