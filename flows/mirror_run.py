"""A run that brings images to targets: what is wanted is looked into, planned, brought, and written into the lock file."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from prefect_dist.flows.api import stop_without_api
from prefect_dist.flows.final_state import tabulate
from prefect_dist.flows.mirror_events import MirrorEvents
from prefect_dist.flows.mirror_parts import MirrorParts
from prefect_dist.flows.pool import PrefectPool
from prefect_dist.flows.progress_artifact import watched
from prefect_dist.flows.slots import leased
from prefect_dist.mirror.applying import Applying
from prefect_dist.mirror.bookkeeping import concluded, intended
from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.lock import Lock, Locked, Records
from prefect_dist.mirror.mirror_report import MirrorReport
from prefect_dist.mirror.plan import Image, Plan, Step
from prefect_dist.mirror.planning import Planning
from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import DistError
from prefect_dist.transfer.cancellation import Stopping
from prefect_dist.transfer.listening import Listener
from prefect_dist.transfer.session import Session, SessionSpec, open_session


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be brought, and how. `name` is what people call it; without a `lock` nothing is remembered.

    `others` are further entries of the configuration, which share the lock file and which another flow carries out.
    """

    name: str
    entries: Sequence[Entry]
    lock: str | None
    dry_run: bool
    concurrency: int
    retries: int
    others: Sequence[Entry] = ()


def run(job: Job, spec: SessionSpec) -> MirrorReport:
    """Carry out a job in the current flow run, or with `dry_run` only plan it.

    Raises:
        InvalidInput: the lock file is damaged.
        DistError: the store cannot be used, or the lock file cannot be read.
    """
    started = time.monotonic()
    hosts = {host for entry in job.entries for host in entry.target_hosts}
    hosts |= set() if spec.offline else {entry.source_host for entry in job.entries}
    with (
        watched(planning=1 if job.dry_run else 0.1) as listener,
        leased(spec, hosts, workers=job.concurrency, listener=listener) as bounded,
        open_session(bounded, observer=listener) as session,
    ):
        lock = Lock(job.lock)
        locked = lock.read()
        pool = PrefectPool(session, window=job.concurrency, retries=job.retries)
        parts = MirrorParts(job.name, session.stopping)
        applying = Applying(pool, parts, listener, MirrorEvents())
        carried = _Carried(job, lock, locked, applying, session.stopping)
        Planning(
            session,
            listener,
            locked,
            loop=applying.walk,
            receiver=carried,
            keep=not job.dry_run,
            workers=job.concurrency,
        ).begin(job.entries, job.others)
        brought = applying.run()
        plan = carried.plan
        report = MirrorReport(name=job.name, store=spec.store, plan=plan, dry_run=job.dry_run)
        if not job.dry_run:
            listener.recording()
            plan = plan.keeping(brought.referrers)
            known = plan.known_tags(locked, brought.referrers)
            report = replace(report, plan=plan, brought=brought, removed=applying.remove(plan.extras, known))
            report = _recorded(lock, report, carried.replaced, listener)
            report = _listed(session, report, listener)
        return replace(
            report,
            tally=session.tally,
            tasks=pool.runs + parts.count,
            seconds=time.monotonic() - started,
            stopped=session.stopping.reason,
            quotas=session.registries.quotas(),
        )


class _Carried:
    """Takes the plan as it is made, and has it carried out, unless the run is dry.

    `replaced` are the records in the lock file in place of which the run wrote its intentions.
    """

    def __init__(self, job: Job, lock: Lock, locked: Records, applying: Applying, stopping: Stopping) -> None:
        self._job, self._lock, self._locked, self._applying, self._stopping = job, lock, locked, applying, stopping
        self.plan = Plan(images=())
        self.replaced = dict[Reference, Locked]()

    def planned(self, images: Sequence[Image], origins: Mapping[Image, object], /) -> None:
        """Have images brought; the lock file names them before. If it cannot, the run stops and publishes none of them."""
        if self._job.dry_run:
            return
        if any(step.is_due or self._is_wanted_again(step) for image in images for step in image.steps):
            try:
                self._lock.update(partial(self._intended, Plan(images=tuple(images))))
            except DistError as exc:
                self._stopping.set(str(exc))
        if needed := [image for image in images if image.is_needed]:
            stop_without_api(self._stopping)
            self._applying.add(needed, origins)

    def _intended(self, plan: Plan, locked: Records) -> Records:
        """Return the records with the intentions of a plan, and keep those that they replace.

        This may be called again for one plan, if another run changed the file meanwhile.
        """
        for step in plan.steps:
            if step.target in locked:
                self.replaced[step.target] = locked[step.target]
            else:
                self.replaced.pop(step.target, None)
        return intended(plan, locked)

    def _is_wanted_again(self, step: Step) -> bool:
        record = self._locked.get(step.target)
        return record is not None and record.unwanted is not None

    def completed(self, plan: Plan, /) -> None:
        """Show the whole plan."""
        self.plan = plan
        tabulate(plan.table(), key="plan", description=plan.summary())
        if not self._job.dry_run:
            MirrorEvents().failed_in(plan)


def _recorded(lock: Lock, report: MirrorReport, before: Records, listener: Listener) -> MirrorReport:
    """Return the report, once the lock file has its results."""
    try:
        lock.update(partial(concluded, report, before))
    except DistError as exc:
        listener.fell_short(str(exc))
        return replace(report, more=(*report.more, f"results are not in the lock file: {exc}"))
    return report


def _listed(session: Session, report: MirrorReport, listener: Listener) -> MirrorReport:
    """The report, once `index.json` of the store lists what came into it."""
    try:
        session.store.update_index()
    except DistError as exc:
        listener.fell_short(str(exc))
        return replace(report, more=(*report.more, str(exc)))
    return report
