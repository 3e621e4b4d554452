"""Carries out a run in the current flow run, with a task run for each unit of work."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from prefect import get_run_logger

from prefect_dist.flows.api import stop_without_api
from prefect_dist.flows.fetch_parts import FetchParts
from prefect_dist.flows.final_state import tabulate
from prefect_dist.flows.image_tasks import ImagePool, ImageTasks
from prefect_dist.flows.limits import lease_slots
from prefect_dist.flows.mirror_parts import MirrorParts
from prefect_dist.flows.pool import PrefectPool
from prefect_dist.flows.prefect_events import Reason, emit_failure, emit_mirrored
from prefect_dist.flows.progress_artifact import publish_run_progress
from prefect_dist.mirror.division import ShardRunner
from prefect_dist.mirror.metrics import push_metrics
from prefect_dist.mirror.plan import Plan, TargetAction
from prefect_dist.mirror.render.plans import plan_summary, plan_table
from prefect_dist.mirror.report import RunReport
from prefect_dist.mirror.run_spec import RunContext, RunSpec
from prefect_dist.mirror.scopes import RunScopes
from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import DistError
from prefect_dist.storage.runs import RunFiles
from prefect_dist.transfer.cancellation import CancelToken, Stopped
from prefect_dist.transfer.events import Notify
from prefect_dist.transfer.pool import Grain
from prefect_dist.transfer.session import Session, SessionSpec, open_session


def run(
    spec: RunSpec,
    *,
    grain: Grain | None = None,
    shards: Callable[[Notify], ShardRunner] | None = None,
    is_sending: bool = True,
) -> RunReport:
    """Carry out a run in the current flow run. `grain` replaces the grain of the specification.

    `shards` returns the means to carry out a mirror run in other processes; None in this process. A run without `is_sending`
    sends no request to a registry, and so needs no slots of the limits of registries.

    Raises:
        Stopped: the run was cancelled before it began.
        DistError: the run could not begin, such as without a store or with a damaged lock file.
    """
    log, job = get_run_logger(), spec.job
    for warning in spec.warnings:
        log.warning("%s", warning)
    hosts = job.list_hosts(spec.session) if is_sending else frozenset[str]()
    with (
        publish_run_progress(planning=job.planning) as notify,
        ExitStack() as slots,
        open_session(_lease_slots(spec, hosts, notify, slots), notify=notify) as session,
        _open_pool(spec, session, grain or spec.grain) as (pool, scopes),
    ):
        observer = MirrorEvents(session.cancel)
        lease = partial(_lease_slots, spec, hosts, notify, slots)
        runner = None if shards is None else _ReleasingRunner(shards(notify), slots, lease)
        report = job.run(RunContext(pool=pool, scopes=scopes, notify=notify, observer=observer, shards=runner))
    push_metrics(report, log=log)
    return report


def _lease_slots(spec: RunSpec, hosts: Collection[str], notify: Notify, slots: ExitStack) -> SessionSpec:
    """Return the specification of the session with the slots of the run, which `slots` releases."""
    leased = lease_slots(spec.session, hosts, workers=spec.window, notify=notify)
    return slots.enter_context(leased)


class _ReleasingRunner:
    """Carries out shards after releasing the slots of this run. Otherwise the shards would wait for these slots forever.

    `lease` takes the slots again.
    """

    def __init__(self, runner: ShardRunner, slots: ExitStack, lease: Callable[[], object]) -> None:
        self._runner, self._slots, self._lease = runner, slots, lease
        self.run, self.workers = runner.run, runner.workers

    def find_submitted(self) -> Mapping[int, Digest]:
        """Return the submitted shards, see `ShardRunner`."""
        return self._runner.find_submitted()

    def prepare_planning(self) -> None:
        """Take the slots again. The plan has as many requests in flight as the session has slots."""
        self._lease()

    def carry_out(self, shards: Mapping[int, Digest], files: RunFiles) -> Iterator[tuple[int, DistError | None]]:
        """Yield each shard as it ends, see `ShardRunner`."""
        self._slots.close()
        yield from self._runner.carry_out(shards, files)

    def read_result(self, number: int, files: RunFiles) -> bytes | None:
        """Return the result of a shard, see `ShardRunner`."""
        return self._runner.read_result(number, files)


@contextmanager
def _open_pool(spec: RunSpec, session: Session, grain: Grain) -> Iterator[tuple[PrefectPool, RunScopes]]:
    """Open the pool for a grain, and the scopes of the pool."""
    if grain == "descriptor":
        pool = PrefectPool(session, window=spec.window, retries=spec.retries)
        yield pool, ChildFlowRuns(pool)
        return
    with ImagePool(session, window=spec.window, retries=spec.retries) as images:
        yield images, ImageTaskRuns(images)


class ChildFlowRuns:
    """Divides large runs into child flow runs, see `flows.parts`."""

    def __init__(self, pool: PrefectPool) -> None:
        self._pool = pool

    def open_fetch(self) -> FetchParts:
        """Return the parts of a fetch."""
        return FetchParts(self._pool)

    def open_mirror(self, name: str, /) -> MirrorParts:
        """Return the parts of the mirror run `name`."""
        return MirrorParts(name, self._pool)


class ImageTaskRuns:
    """Opens a task run for each image, and divides large runs into child flow runs."""

    def __init__(self, pool: ImagePool) -> None:
        self._pool = pool

    def open_fetch(self) -> ImageTasks:
        """Return the task runs of a fetch."""
        return ImageTasks(FetchParts(self._pool), self._pool)

    def open_mirror(self, name: str, /) -> ImageTasks:
        """Return the task runs of the mirror run `name`."""
        return ImageTasks(MirrorParts(name, self._pool), self._pool)


class MirrorEvents:
    """Shows a mirror run in Prefect: the plan as an artifact, and an event for the result at each target."""

    def __init__(self, cancel: CancelToken) -> None:
        self._cancel = cancel

    def on_begin(self) -> None:
        """Stop the run if Prefect's API does not answer: Prefect has to record each task run."""
        stop_without_api(self._cancel)

    def on_plan(self, plan: Plan, *, is_dry: bool) -> None:
        """Show the plan. Unless the run is dry, emit the failures of images without a plan."""
        tabulate(plan_table(plan), key="plan", description=plan_summary(plan))
        for action in () if is_dry else plan.actions:
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
