"""A run that plans and mirrors images, and records the results in the lock file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from prefect_dist.mirror.applying import Applying
from prefect_dist.mirror.bookkeeping import record_results, settle_changes
from prefect_dist.mirror.dividing import DividedApplying
from prefect_dist.mirror.division import ShardRunner
from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.intentions import Intentions
from prefect_dist.mirror.lock import Lock, Pending, Records
from prefect_dist.mirror.mirror_policy import MirrorObserver
from prefect_dist.mirror.orphans import collect_known_tags, exclude_pushed
from prefect_dist.mirror.plan import Plan, PlannedImage
from prefect_dist.mirror.planning import Planning
from prefect_dist.mirror.registry_state import summarize_mirror
from prefect_dist.mirror.report import ReportBuilder, RunError, RunReport, TargetRow
from prefect_dist.mirror.results import MirrorResults, build_mirror_report
from prefect_dist.mirror.run_spec import RunContext
from prefect_dist.mirror.scopes import MirrorScopes
from prefect_dist.mirror.store_index import update_index
from prefect_dist.mirror.surveying import PlanRequest
from prefect_dist.ocispec.errors import DistError, InvalidInput, NotFound
from prefect_dist.ocispec.index_filter import select_image
from prefect_dist.ocispec.platform import Platforms
from prefect_dist.storage import presence
from prefect_dist.storage.statefile import StateFile
from prefect_dist.transfer.events import Notify, Recording, StepFailed
from prefect_dist.transfer.pool import Pool
from prefect_dist.transfer.repositories import NewRepositories
from prefect_dist.transfer.session import Session, SessionSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorJob:
    """The images to mirror. A job without a `lock` file records no results.

    `configuration` is the name of the configuration, None for images that parameters name. `others` are further entries of the
    configuration: another run with the same lock file mirrors the other entries. A dry run only makes the plan. `failed` is a
    file that receives the images that failed, as input for the next run.
    """

    flow: Literal["mirror", "seed", "copy", "push"]
    configuration: str | None
    entries: Sequence[Entry]
    lock: str | None
    is_dry: bool
    others: Sequence[Entry] = ()
    failed: str | None = None

    @property
    def name(self) -> str:
        """Return the name of the run."""
        return self.flow if self.configuration is None else f"{self.flow} {self.configuration}"

    @property
    def target_hosts(self) -> frozenset[str]:
        """Return the target registries."""
        return frozenset(host for entry in self.entries for host in entry.target_hosts)

    @property
    def source_hosts(self) -> frozenset[str]:
        """Return the source registries."""
        return frozenset(entry.source_host for entry in self.entries)

    @property
    def has_stored_source(self) -> bool:
        """Return whether all entries name images in the content store, so that the run has to be offline."""
        return all(entry.has_stored_source for entry in self.entries)

    @property
    def is_single(self) -> bool:
        """Return whether the job is a copy or push of one image: its only error is the error of the run."""
        return self.flow in ("copy", "push")

    @property
    def planning(self) -> float:
        """Return the share of planning in the work."""
        return 1 if self.is_dry else 0.1

    def list_hosts(self, session: SessionSpec, /) -> frozenset[str]:
        """Return the target registries, and the source registries unless the run is offline."""
        return self.target_hosts | (frozenset() if session.offline else self.source_hosts)

    def run(self, context: RunContext, /) -> RunReport:
        """Mirror the images, or make the plan."""
        scopes = context.scopes.open_mirror(self.name)
        report = run_mirror(self, context.pool, scopes, context.notify, context.observer, shards=context.shards)
        return report if self.failed is None else _write_failed_images(report, self.failed)


def run_mirror(
    job: MirrorJob,
    pool: Pool,
    scopes: MirrorScopes,
    notify: Notify,
    observer: MirrorObserver,
    *,
    shards: ShardRunner | None = None,
) -> RunReport:
    """Carry out a job. With `shards`, other processes mirror the images.

    Raises:
        InvalidInput: the lock file is damaged, or a target has the digest of another image than the store name.
        NotFound: the store does not have a store name, or lacks content of the image; no registry got a request.
        DistError: the store cannot be used, or the lock file cannot be read.
    """
    builder, session = ReportBuilder(job.flow, pool), pool.session
    entries = tuple(job.entries)
    if job.is_single and job.has_stored_source:
        entries = tuple(_check_stored(session, entry) for entry in entries)
    lock = Lock(job.lock, run=None if job.configuration is None else job.name)
    locked, pending = lock.read_with_pending()
    if job.lock is not None:
        # A run that was stopped before it set a tag has no record, but a pending change. It may have uploaded content.
        session.memo(NewRepositories).exclude(locked.keys() | pending)
    intentions = Intentions(lock, locked)
    applying, receiver = _open_applying(pool, scopes, notify, observer, shards=shards, intentions=intentions, is_dry=job.is_dry)
    applying.finish_earlier()
    request = PlanRequest(
        entries=entries,
        others=job.others,
        locked=locked,
        is_dry=job.is_dry,
        workers=pool.window,
        is_divided=shards is not None,
    )
    Planning(request, session, notify, applying.walk, receiver).begin()
    results = applying.run()
    end = _End(receiver.plan)
    if not job.is_dry:
        end = _finish(
            applying,
            receiver.plan,
            results,
            lock=lock,
            locked=locked,
            before=intentions.replaced,
            session=session,
            notify=notify,
        )
    applying.remove_shared_files()
    report = build_mirror_report(
        builder, end.plan, end.results, stats=applying.stats, errors=end.errors, configuration=job.configuration
    )
    return replace(report, registries=summarize_mirror(report, end.plan, entries, end.pending), quotas=applying.quotas)


@dataclass(frozen=True, slots=True)
class _End:
    """The end of a run. A dry run has only a plan.

    The `plan` has no orphaned tag under which the run pushed a referrer. `errors` are those of the lock file and of the index.
    `pending` are the changes that targets do not have; None without a file or a configuration, or after an error.
    """

    plan: Plan
    results: MirrorResults | None = None
    errors: tuple[RunError, ...] = ()
    pending: Pending | None = None


def _finish(
    applying: Applying,
    plan: Plan,
    results: MirrorResults,
    *,
    lock: Lock,
    locked: Records,
    before: Records,
    session: Session,
    notify: Notify,
) -> _End:
    """Remove the orphaned tags, and write the lock file and the index of the store.

    `locked` are the records at the start of the run, and `before` those that the run's own intentions have replaced.
    """
    notify(Recording())
    plan = exclude_pushed(plan, results.referrers)
    known = collect_known_tags(plan, locked, results.referrers)
    results = replace(results, removed=applying.remove(plan.orphans, known))
    errors, pending = _record(lock, plan, results, before, notify)
    return _End(plan, results, (*errors, *update_index(session, notify)), pending)


def _check_stored(session: Session, entry: Entry) -> Entry:
    """Check that the store has the image of an entry, and that no target has the digest of another image.

    Return the entry, a sparse entry with the platforms that the store has.

    Raises:
        NotFound: the store does not have the name, or lacks content of the image or of the referrers.
        InvalidInput: a target has the digest of another image.
    """
    store, record = session.store, session.store.names.get(entry.image.name)
    root = record.descriptor if entry.single is None else select_image(record.descriptor, entry.single, store.manifest)
    for target in entry.list_targets(entry.image):
        if not entry.rewrite_index and target.pinned_digest() not in (None, root.digest):
            raise InvalidInput(f"expected the digest of {record.name}, which is {root.digest}", subject=str(target))
    if entry.is_sparse:
        entry = replace(entry, platforms=presence.present_platforms(store, root)[0])
    roots = (root, *record.roots[1:]) if entry.referrers else (root,)
    found = presence.check(store, *roots, children=session.recorder.children(entry.platforms))
    if not found.is_complete:
        raise NotFound(f"{found.shortage}; {_name_remedy(entry, record.platforms)}", subject=record.name)
    return entry


def _name_remedy(entry: Entry, stored: Platforms) -> str:
    """Return the remedy for a stored image that lacks content."""
    which = "all platforms" if entry.platforms is None else ", ".join(map(str, entry.platforms))
    again = f"fetch the image again for {entry.single or which}, then push it"
    if stored is None or entry.platforms is not None or entry.single is not None:
        return again
    return f"{again}, or push one platform ({', '.join(map(str, stored))}), or push the index as it is, sparse"


class _PlanReceiver:
    """Takes the plan in parts, and has each part carried out, unless the run is dry."""

    def __init__(self, applying: Applying, intentions: Intentions, *, is_dry: bool) -> None:
        self._applying, self._intentions, self._is_dry = applying, intentions, is_dry
        self.plan = Plan(images=())

    def take_images(self, images: Sequence[PlannedImage], origins: Mapping[PlannedImage, object], /) -> None:
        """Record the images in the lock file, then have them mirrored. If recording fails, the run fails before publication."""
        if self._is_dry:
            return
        try:
            self._intentions.record(images)
        except DistError as exc:
            self._applying.fail(exc.with_traceback(None))
        if needed := [image for image in images if image.is_needed]:
            self._applying.add(needed, origins)

    def take_plan(self, plan: Plan, /) -> None:
        """Report the whole plan."""
        self.plan = plan
        self._applying.observer.on_plan(plan, is_dry=self._is_dry)


def _open_applying(
    pool: Pool,
    scopes: MirrorScopes,
    notify: Notify,
    observer: MirrorObserver,
    *,
    shards: ShardRunner | None,
    intentions: Intentions,
    is_dry: bool,
) -> tuple[Applying, _PlanReceiver | DividedApplying]:
    """Return the object that mirrors the images, and the object that receives the plan. With `shards`, both are the same."""
    if shards is None:
        applying = Applying(pool, scopes, notify, observer)
        return applying, _PlanReceiver(applying, intentions, is_dry=is_dry)
    divided = DividedApplying(pool, scopes, notify, observer, shards, intentions=intentions)
    return divided, divided


def _record(
    lock: Lock, plan: Plan, results: MirrorResults, before: Records, notify: Notify
) -> tuple[list[RunError], Pending | None]:
    """Write the results into the lock file.

    Return the error of a failed write, and the pending changes; None without a file or a configuration, or after an error.
    """
    settled: Pending | None = None

    def settle(pending: Pending) -> Pending:
        nonlocal settled
        settled = settle_changes(plan, results, pending)
        return settled

    try:
        lock.update(partial(record_results, plan, results, before), settle)
    except DistError as exc:
        notify(StepFailed(exc))
        return [RunError(object="results in the lock file", error=exc.with_traceback(None))], None
    return [], settled


def _write_failed_images(report: RunReport, url: str) -> RunReport:
    """Write the images that failed to a file that the next run can read. Return the report, with an error if that failed.

    Vetoed images are not written: their gate would veto them again.
    """
    failed = (str(row.source) for row in report.select(TargetRow) if row.outcome == "failed")
    try:
        StateFile(url).write("".join(f"{image}\n" for image in dict.fromkeys(failed)).encode())
    except DistError as exc:
        return report.with_error(RunError(object="list of failed images", error=exc.with_traceback(None)))
    return report
