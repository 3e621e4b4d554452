"""Checks targets: audits each target, and repairs damaged targets on request."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from prefect_dist.mirror.applying import Applying
from prefect_dist.mirror.auditing import Auditing, Audits
from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.lock import Records
from prefect_dist.mirror.mirror_policy import MirrorObserver
from prefect_dist.mirror.plan import Plan, TargetAction
from prefect_dist.mirror.report import AuditRow
from prefect_dist.mirror.scopes import MirrorScopes
from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import Denied, DistError
from prefect_dist.remotes import Quota
from prefect_dist.transfer.audit import Finding
from prefect_dist.transfer.events import Notify
from prefect_dist.transfer.pool import Pool
from prefect_dist.transfer.stats import TransferStats

_Errors = Mapping[Reference, Sequence[DistError]]


class DamagedTarget(DistError):
    """A target of a mirror lacks content, or the tag resolves to a wrong digest. The text lists the faults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResults:
    """The number of targets without faults, and a row for each other target."""

    ok: int
    rows: tuple[AuditRow, ...]


class Checking:
    """Checks targets of `entries` in this process."""

    def __init__(
        self,
        pool: Pool,
        scopes: MirrorScopes,
        notify: Notify,
        observer: MirrorObserver,
        entries: Sequence[Entry],
        *,
        is_repairing: bool,
    ) -> None:
        self._pool, self._session, self._scopes, self._notify = pool, pool.session, scopes, notify
        self._observer, self._is_repairing = observer, is_repairing
        self._auditing = Auditing(pool, notify, entries)

    @property
    def stats(self) -> TransferStats:
        """The counts of the transfers so far."""
        return self._session.stats

    @property
    def quotas(self) -> Mapping[str, Quota]:
        """The last reported quota of each registry, by host."""
        return self._session.remotes.registries.quotas()

    def select(self, locked: Records) -> Records:
        """Return the records of published targets that an entry selects."""
        return self._auditing.select(locked)

    def check(self, wanted: Records) -> CheckResults:
        """Audit selected targets, and repair damaged targets if the run repairs."""
        first = self._auditing.audit(wanted)
        if self._is_repairing and first.damaged:
            repairs = _Repairs(self._observer)
            rows = self._repair(first, wanted, repairs)
            repairs.report(rows)
        else:
            rows = [_damaged_row(target, found) for target, found in first.damaged.items()]
        unresolved = [make_unresolved_row(target, error) for target, error in first.unresolved.items()]
        return CheckResults(ok=first.ok, rows=(*rows, *unresolved))

    def _repair(self, first: Audits, wanted: Records, repairs: "_Repairs") -> list[AuditRow]:
        """Upload the missing content of damaged targets, and audit the targets again. Return their rows."""
        located, lost = self._auditing.locate(first, wanted)
        applying = Applying(self._pool, self._scopes, self._notify, repairs)
        applying.add(tuple(located), located)
        results = applying.run()
        vetoed = {target: (Denied(str(veto)),) for target, veto in results.vetoes.items()}
        failures = {**{target: (error,) for target, error in lost.items()}, **results.failures, **vetoed}
        again = self._auditing.audit({target: wanted[target] for target in first.damaged if target not in lost})
        return list(_repaired_rows(first, again, failures))


class _Repairs:
    """Passes the result of a repair to `observer`. A publication becomes a result only after the audit that follows."""

    def __init__(self, observer: MirrorObserver) -> None:
        self._observer = observer
        self._published: dict[Reference, TargetAction] = {}

    def on_begin(self) -> None:
        """Report the begin."""
        self._observer.on_begin()

    def on_plan(self, plan: Plan, *, is_dry: bool) -> None:
        """Report the plan."""
        self._observer.on_plan(plan, is_dry=is_dry)

    def on_mirrored(self, action: TargetAction) -> None:
        """Keep the action of a published target for `report`."""
        self._published[action.target] = action

    def on_failed(self, action: TargetAction, errors: Sequence[DistError]) -> None:
        """Report the failure."""
        self._published.pop(action.target, None)
        self._observer.on_failed(action, errors)

    def report(self, rows: Sequence[AuditRow]) -> None:
        """Report the published targets: a target that is still damaged has failed."""
        for row in rows:
            if (action := self._published.get(row.target)) is None:
                continue
            if row.errors:
                self._observer.on_failed(action, row.errors)
            else:
                self._observer.on_mirrored(action)


def make_unresolved_row(target: Reference, error: DistError) -> AuditRow:
    """Return the row of a target whose audit failed."""
    return AuditRow(target=target, outcome="unresolved", errors=(error,))


def _damaged_row(target: Reference, found: Finding) -> AuditRow:
    error = DamagedTarget("; ".join(found.faults))
    return AuditRow(target=target, outcome="damaged", faults=found.faults, errors=(error,))


def _repaired_rows(first: Audits, again: Audits, failures: _Errors) -> Iterator[AuditRow]:
    """Yield the rows of the damaged targets of the first audit; `again` is the audit after the repair."""
    for target, found in first.damaged.items():
        errors = tuple(failures.get(target, ()))
        if not errors and target in again.unresolved:
            errors = (again.unresolved[target],)
        elif not errors and target in again.damaged:
            errors = (DamagedTarget(f"after the repair: {'; '.join(again.damaged[target].faults)}"),)
        yield AuditRow(target=target, outcome="failed" if errors else "repaired", faults=found.faults, errors=errors)
