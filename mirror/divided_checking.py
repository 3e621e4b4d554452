"""Checks targets in shards: other processes check the targets, and this process merges the results."""

from collections.abc import Mapping, Sequence

from prefect_dist.mirror.check_shard_files import CheckShardInput
from prefect_dist.mirror.checking import Checking, CheckResults, make_unresolved_row
from prefect_dist.mirror.division import Division, ShardRunner
from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.lock import Records
from prefect_dist.mirror.mirror_policy import MirrorObserver
from prefect_dist.mirror.report import AuditRow
from prefect_dist.mirror.scopes import MirrorScopes
from prefect_dist.mirror.shards import divide_targets
from prefect_dist.ocispec.errors import DistError
from prefect_dist.ocispec.units import format_count
from prefect_dist.remotes import Quota
from prefect_dist.transfer.events import Notify, Planned
from prefect_dist.transfer.pool import Pool
from prefect_dist.transfer.stats import TransferStats


class DividedChecking(Checking):
    """Checks targets of `entries` in shards. This process sends no request to a registry."""

    def __init__(
        self,
        pool: Pool,
        scopes: MirrorScopes,
        notify: Notify,
        observer: MirrorObserver,
        entries: Sequence[Entry],
        *,
        is_repairing: bool,
        runner: ShardRunner,
    ) -> None:
        super().__init__(pool, scopes, notify, observer, entries, is_repairing=is_repairing)
        self._division = Division(pool, runner, notify)

    @property
    def stats(self) -> TransferStats:
        """The counts of the transfers of all shards."""
        return self._division.stats

    @property
    def quotas(self) -> Mapping[str, Quota]:
        """The last reported quota of each registry, by host."""
        return {**super().quotas, **self._division.quotas}

    def check(self, wanted: Records) -> CheckResults:
        """Check selected targets in shards. The targets of a shard without a result are unresolved."""
        self._division.finish_earlier()
        divided = divide_targets(tuple(wanted), workers=self._division.workers)
        shards = [
            CheckShardInput(records={target: wanted[target] for target in targets}, is_repairing=self._is_repairing)
            for targets in divided
        ]
        ok, rows, lost, ended = 0, list[AuditRow](), list[AuditRow](), 0
        for place, result in self._division.carry_out(shards, format_count(len(wanted), "target")):
            ended += len(divided[place])
            self._notify(Planned(ended, len(wanted)))
            if isinstance(result, DistError):
                lost += (make_unresolved_row(target, result) for target in divided[place])
            else:
                ok, rows = ok + result.results.ok, [*rows, *result.results.rows]
        if not lost and self._session.cancel.reason is None:
            self._division.remove_files()
        order = {target: number for number, target in enumerate(wanted)}
        rows = sorted((*rows, *lost), key=lambda row: (row.outcome == "unresolved", order[row.target]))
        return CheckResults(ok=ok, rows=tuple(rows))
