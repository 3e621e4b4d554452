"""The flow `mirror`: what targets lack is planned, then brought: fetched once, sent once to each registry, published last."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from pydantic import Field

from flows.blocks import credentials_in
from flows.conclusion import concluded
from flows.mirroring.applying import Applying
from flows.mirroring.config import Mirror, load
from flows.mirroring.lock import Lock
from flows.mirroring.planning import Planning
from flows.mirroring.report import MirrorReport, confirmed, dropped, intended
from flows.parameters import Concurrency, Network, Retries, StoreOptions, session_spec
from flows.progress import LogListener, told
from flows.results import keep_no_results
from flows.runner import RUNNER
from ocispec.errors import DistError, InvalidInput
from storage.statefile import StateFile
from tasks._task import RETRIES
from tasks.session import Session, SessionSpec, open_session


def _run_name() -> str:
    what = "plan mirror" if flow_run.parameters["dry_run"] else "mirror"
    return f"{what} {Path(flow_run.parameters['config']).name}"


@flow(name="mirror", flow_run_name=_run_name, task_runner=RUNNER, persist_result=False)
def mirror(
    config: Annotated[str, Field(description="The mirror's configuration: a YAML file, where the run is")],
    store: Annotated[str | None, Field(description="The content store; otherwise the one that the configuration names")] = None,
    *,
    dry_run: Annotated[bool, Field(description="Only plan")] = False,
    store_options: StoreOptions = {},  # noqa: B006 - Prefect shows it in the form and copies it
    network: Network = Network(),
    concurrency: Concurrency = 8,
    retries: Retries = RETRIES,
) -> State[Any]:
    """Bring what a configuration wants to its targets: changed images alone, each piece of content once per registry."""
    started = time.monotonic()
    keep_no_results()
    wanted = load(config)
    log = get_run_logger()
    for warning in wanted.warnings:
        log.warning("%s", warning)
    listener = told(LogListener(log))
    with open_session(_spec(wanted, store, store_options, network), observer=listener) as session:
        lock = Lock(StateFile(wanted.lock))
        locked = lock.read()
        planning = Planning(session, listener, locked, keep=not dry_run, workers=concurrency, retries=retries)
        plan = planning.plan(wanted.entries)
        create_table_artifact(plan.table(), key="plan", description=plan.summary())
        report = MirrorReport(name=wanted.name, plan=plan, dry_run=dry_run, tasks=planning.tasks)
        if not dry_run:
            lock.update(intended(plan, locked))
            applying = Applying(session, listener, name=wanted.name, workers=concurrency, retries=retries)
            report = replace(report, brought=applying.bring(plan, planning.origins), removed=applying.remove(plan.pruned))
            report = replace(report, tasks=planning.tasks + applying.tasks)
            lock.update(confirmed(report, locked), dropped=dropped(report))
            report = _listed(session, report)
        ended = replace(report, seconds=time.monotonic() - started, stopped=session.stopping.reason)
    return concluded("mirror", ended)


def _spec(wanted: Mirror, store: str | None, store_options: dict[str, Any], network: Network) -> SessionSpec:
    """What the run's session is opened from: what the configuration says, and beside it what the run was told, which wins."""
    place = store or wanted.store
    if place is None:
        raise InvalidInput(f"{wanted.path}: store: missing, and the run was given none; say where images are kept on their way")
    spec = session_spec(place, store_options or dict(wanted.store_options), network)
    told = spec.registries.hosts
    hosts = replace(told, named={**wanted.hosts.named, **told.named})
    return replace(
        spec,
        registries=replace(spec.registries, hosts=hosts),
        credentials={**wanted.credentials, **credentials_in(wanted.credential_blocks), **spec.credentials},
    )


def _listed(session: Session, report: MirrorReport) -> MirrorReport:
    """The report, once `index.json` of the store lists what came into it."""
    try:
        session.store.update_index()
    except DistError as exc:
        return replace(report, more=(*report.more, str(exc)))
    return report
