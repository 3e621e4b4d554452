"""Runs a mirror job in the current flow run."""

from collections.abc import Sequence

from prefect_dist.flows.api import stop_without_api
from prefect_dist.flows.final_state import tabulate
from prefect_dist.flows.limits import lease_slots
from prefect_dist.flows.mirror_parts import MirrorParts
from prefect_dist.flows.pool import PrefectPool
from prefect_dist.flows.prefect_events import Reason, emit_failure, emit_mirrored
from prefect_dist.flows.progress_artifact import publish_run_progress
from prefect_dist.mirror.plan import Plan, TargetAction
from prefect_dist.mirror.render import plan_summary, plan_table
from prefect_dist.mirror.report import RunReport
from prefect_dist.mirror.run import MirrorJob, run_mirror
from prefect_dist.ocispec.errors import DistError
from prefect_dist.transfer.cancellation import CancelToken, Stopped
from prefect_dist.transfer.session import SessionSpec, open_session


def run(job: MirrorJob, spec: SessionSpec, *, concurrency: int, retries: int) -> RunReport:
    """Carry out a job in the current flow run.

    Raises:
        InvalidInput: the lock file is damaged.
        DistError: the store cannot be used, or the lock file cannot be read.
    """
    hosts = job.target_hosts | (frozenset() if spec.offline else job.source_hosts)
    with (
        publish_run_progress(planning=1 if job.is_dry else 0.1) as notify,
        lease_slots(spec, hosts, workers=concurrency, notify=notify) as bounded,
        open_session(bounded, notify=notify) as session,
    ):
        pool = PrefectPool(session, window=concurrency, retries=retries)
        return run_mirror(job, pool, MirrorParts(job.name, pool), notify, MirrorEvents(session.cancel, is_dry=job.is_dry))


class MirrorEvents:
    """Shows a mirror run in Prefect: the plan as an artifact, and an event for the result at each target."""

    def __init__(self, cancel: CancelToken, *, is_dry: bool = False) -> None:
        self._cancel, self._is_dry = cancel, is_dry

    def on_begin(self) -> None:
        """Stop the run if Prefect's API does not answer: Prefect has to record each task run."""
        stop_without_api(self._cancel)

    def on_plan(self, plan: Plan) -> None:
        """Show the plan, and emit the failures of images without a plan."""
        tabulate(plan_table(plan), key="plan", description=plan_summary(plan))
        for action in () if self._is_dry else plan.actions:
            if action.error is not None:
                self.on_failed(action, (action.error,))

    def on_mirrored(self, action: TargetAction) -> None:
        """Emit the publication of an image at a target."""
        if action.new is not None:
            previous = action.old.digest if action.old else None
            reason = _reason(action)
            emit_mirrored(action.item.source, action.target, reason=reason, digest=action.new.digest, previous=previous)

    def on_failed(self, action: TargetAction, errors: Sequence[DistError]) -> None:
        """Emit the failure of an image at a target, unless the run only ended before the end of the image."""
        if found := [error for error in errors if not isinstance(error, Stopped)]:
            digest = action.new.digest if action.new else None
            emit_failure(action.item.source, action.target, digest=digest, errors=found)


def _reason(action: TargetAction) -> Reason:
    if action.change == "change":
        is_other = action.old is not None and action.new is not None and action.old.digest != action.new.digest
        return "changed" if is_other else "referrers"
    return "repaired" if action.change == "repair" else "added"
