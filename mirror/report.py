"""The report of a run: one type for the runs of all flows.

A report has values only. `mirror.render` makes text, tables and JSON of a report.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Literal, Protocol, Self, TypeVar

from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.errors import DistError
from prefect_dist.ocispec.units import format_count
from prefect_dist.remotes import Quota
from prefect_dist.transfer.cancellation import Stopped
from prefect_dist.transfer.image_report import ImageReport
from prefect_dist.transfer.pool import Pool

if TYPE_CHECKING:
    from prefect_dist.mirror.plan import Change, Plan

FlowName = Literal["fetch", "pull", "push", "copy", "mirror", "seed", "check", "verify", "gc"]
Status = Literal["complete", "failed", "stopped", "vetoed"]
"""How a run ended. `vetoed`: nothing failed, and a gate kept at least one image from its targets."""
TargetOutcome = Literal["added", "changed", "repaired", "unchanged", "vetoed", "failed", "planned"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunError:
    """An error of a run.

    `object` names the image, target, blob or file of the error, None for an error of the whole run.
    """

    object: str | None
    error: DistError
    descriptor: Descriptor | None = None

    def __str__(self) -> str:
        """Return a line that begins with the name of the object."""
        if self.object is None:
            return str(self.error)
        return f"{self.object}: {self.error.message if self.error.subject in self.object.split() else self.error}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRow:
    """The outcome for an image at one target of a mirror.

    Attributes:
        target: None if the name of the target is invalid.
        action: the planned action, None if no action is needed or possible.
        old: the root at the target before the run.
        new: the planned root.
    """

    source: Reference
    target: Reference | None
    action: "Change | None" = None
    outcome: TargetOutcome
    old: Descriptor | None = None
    new: Descriptor | None = None
    note: str | None = None
    errors: tuple[DistError, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OrphanRow:
    """The outcome for an orphaned tag of a mirror.

    Attributes:
        since: the time when a run first found the tag orphaned.
        outcome: `kept` tags are not due; `held` tags exceed `prune.most`; `unowned` tags were created by no entry of the run;
            the dry run left `planned` tags, which a real run removes; see `transfer.removal.Removed` for `gone`, `changed`
            and `shared`.
    """

    source: str
    target: Reference
    digest: Digest
    since: datetime | None
    outcome: Literal["kept", "held", "unowned", "planned", "removed", "gone", "changed", "shared", "failed"]
    note: str | None = None
    errors: tuple[DistError, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """The outcome for a damaged or unresolved target in the audit of a mirror."""

    target: Reference
    outcome: Literal["damaged", "repaired", "failed", "unresolved"]
    faults: tuple[str, ...] = ()
    errors: tuple[DistError, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRow:
    """The outcome for a blob of the store. A corrupt blob is in quarantine."""

    digest: Digest
    outcome: Literal["corrupt", "removed", "planned"]
    size: int | None = None
    committed: datetime | None = None
    errors: tuple[DistError, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftoverRow:
    """The outcome for a file of a crashed run in the store."""

    path: str
    outcome: Literal["removed", "planned"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NameRow:
    """The outcome for a store name with incomplete content. `note` describes the fault of a repaired name."""

    name: str
    outcome: Literal["damaged", "repaired"]
    note: str | None = None
    errors: tuple[DistError, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackRow:
    """An unpacked image: directory, manifest, number of layers, and the chain ID, None without layers."""

    directory: str
    manifest: Digest
    layers: int
    chain_id: Digest | None


R = TypeVar("R")
Row = ImageReport | TargetRow | OrphanRow | AuditRow | BlobRow | LeftoverRow | NameRow | UnpackRow


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryState:
    """The state of a target registry at the end of a run.

    Attributes:
        failed: the number of failed targets, and of entries for the registry whose images are unknown.
        pending: the number of targets without the selected image: failed or vetoed.
        is_success: true if nothing failed at the registry, and the run was not cut short.
        lag_s: the age of the oldest known change that the registry does not serve, in seconds; 0 without such a change, None if
            the run does not know.
    """

    host: str
    failed: int
    pending: int
    is_success: bool
    lag_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """The result of a run.

    Attributes:
        store: the path or URL of the content store.
        configuration: the name of the mirror's configuration, None for a run without one.
        tasks: the number of task runs.
        rows: the outcome for each object of the run, in the order of the request.
        counts: numbers of objects by name, and bytes under names that end in `_bytes`. docs/how-to/library.md lists the names.
        errors: the distinct errors of the run. The unfinished objects of a stopped run share an error. If an error ended the
            run, that error comes first and covers the unfinished objects.
        notes: further lines for people, such as vetoes and entries that select no image.
        stopped: the reason of a stop by a signal, a time-out, a person or Prefect. None if an error ended the run.
        quotas: the last reported quota of each registry, by host.
        registries: the state of each target registry of a configuration.
        plan: the plan of a mirror, seed, copy or push. `repr` omits the plan: it has all descriptors. The images of a run with
            several workers have no content.
    """

    flow: FlowName
    status: Status
    store: str
    tasks: int
    seconds: float
    rows: tuple[Row, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    errors: tuple[RunError, ...] = ()
    notes: tuple[str, ...] = ()
    stopped: Stopped | None = None
    quotas: Mapping[str, Quota] = field(default_factory=dict)
    configuration: str | None = None
    registries: tuple[RegistryState, ...] = ()
    plan: "Plan | None" = field(default=None, repr=False)
    is_dry: bool = False

    def select(self, kind: type[R]) -> list[R]:
        """Return the rows of one type."""
        return [row for row in self.rows if isinstance(row, kind)]

    def with_error(self, error: RunError) -> Self:
        """Return the report with a further error."""
        return replace(self, errors=(*self.errors, error), status=_status((error,), self.stopped))


class ReportBuilder:
    """Builds the report of a run of `flow` on a pool. The run starts when the builder is made."""

    def __init__(self, flow: FlowName, pool: Pool) -> None:
        self.flow, self._pool = flow, pool
        self._started = time.monotonic()

    def build(
        self,
        rows: Iterable[Row],
        counts: Mapping[str, int],
        *,
        errors: Iterable[RunError] = (),
        is_vetoed: bool = False,
        is_stopped: bool = True,
        notes: tuple[str, ...] = (),
        configuration: str | None = None,
        plan: "Plan | None" = None,
        is_dry: bool = False,
    ) -> RunReport:
        """Return the report. `errors` are errors of no row.

        Without `is_stopped`, a cancelled run is complete if the work was finished before the stop.
        """
        session, found = self._pool.session, tuple(rows)
        noun = "target" if self.flow in ("push", "copy", "mirror", "seed", "check") else "image"
        failure = session.cancel.failure
        of_run = [*errors] if failure is None else [RunError(object=None, error=failure), *errors]
        failures = collect_errors((*of_run, *(error for row in found for error in row_errors(row))), noun)
        stopped = session.cancel.error if failure is None and (is_stopped or failures) else None
        return RunReport(
            flow=self.flow,
            status="vetoed" if is_vetoed and not failures and stopped is None else _status(failures, stopped),
            store=session.spec.store,
            tasks=self._pool.runs,
            seconds=time.monotonic() - self._started,
            rows=found,
            counts=counts,
            errors=failures,
            stopped=stopped,
            quotas=session.remotes.registries.quotas(),
            notes=notes,
            configuration=configuration,
            plan=plan,
            is_dry=is_dry,
        )


def row_errors(row: Row) -> list[RunError]:
    """Return the errors of a row, with the name of the object."""
    if isinstance(row, ImageReport):
        return [RunError(object=row.name, error=one.error, descriptor=one.descriptor) for one in row.failures]
    if isinstance(row, LeftoverRow | UnpackRow):
        return []
    return [RunError(object=_object_name(row), error=error) for error in row.errors]


def collect_errors(errors: Iterable[RunError], noun: str) -> tuple[RunError, ...]:
    """Return distinct errors. The last error covers the unfinished objects of a stopped run.

    If an error ended the run, that error also covers the unfinished objects. `noun` is the word for an unfinished object.
    """
    distinct, unfinished = dict[tuple[str | None, str], RunError](), dict[str | None, RunError]()
    for one in errors:
        if isinstance(one.error, Stopped):
            unfinished.setdefault(one.object, one)
        else:
            distinct.setdefault((one.object, str(one.error)), one)
    for name in {one.object for one in distinct.values()}:
        unfinished.pop(name, None)
    last = next(iter(unfinished.values()), None)
    if last is None or any(one.error is last.error.__cause__ for one in distinct.values()):
        return tuple(distinct.values())
    if len(unfinished) > 1:
        last = RunError(object=None, error=Stopped(f"{format_count(len(unfinished), noun)} not finished: {last.error}"))
    return (*distinct.values(), last)


class RowWithOutcome(Protocol):
    """A row whose outcome is counted."""

    @property
    def outcome(self) -> str:
        """Return the outcome."""


def count_outcomes(rows: Sequence[RowWithOutcome], outcomes: Iterable[str]) -> dict[str, int]:
    """Return the number of rows with each outcome."""
    return {outcome: sum(row.outcome == outcome for row in rows) for outcome in outcomes}


def _status(errors: Sequence[RunError], stopped: Stopped | None) -> Status:
    if stopped is not None:
        return "stopped"
    return "failed" if errors else "complete"


def _object_name(row: TargetRow | OrphanRow | AuditRow | BlobRow | NameRow) -> str:
    if isinstance(row, TargetRow):
        return str(row.source) if row.target is None else f"{row.source} to {row.target}"
    if isinstance(row, OrphanRow):
        return f"orphaned tag {row.target}"
    if isinstance(row, AuditRow):
        return str(row.target)
    return row.name if isinstance(row, NameRow) else f"blob {row.digest}"
