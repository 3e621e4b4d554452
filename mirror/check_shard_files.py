"""The files of a divided check in the content store: the targets of a shard, and the results, as JSON.

The names of the files are those of every divided run, see `mirror.mirror_shard_files`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal, Self, get_args

from prefect_dist.mirror.checking import CheckResults
from prefect_dist.mirror.lock import Locked, Records
from prefect_dist.mirror.report import AuditRow
from prefect_dist.mirror.shard_format import (
    dump,
    error_json,
    parse,
    parse_errors,
    parse_quotas,
    parse_stats,
    refuse_damage,
    work_json,
)
from prefect_dist.ocispec import Reference, fields
from prefect_dist.ocispec.errors import InvalidInput, quote_text
from prefect_dist.remotes import Quota
from prefect_dist.transfer.stats import TransferStats

_Outcome = Literal["damaged", "repaired", "failed", "unresolved"]
_OUTCOMES: Mapping[str, _Outcome] = {outcome: outcome for outcome in get_args(_Outcome)}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckShardInput:
    """The targets of a shard, with their records in the lock file. The worker reads the entries in the configuration."""

    records: Records
    is_repairing: bool

    @property
    def targets(self) -> frozenset[Reference]:
        """Return the targets of the shard."""
        return frozenset(self.records)

    def list_hosts(self, *, is_offline: bool) -> frozenset[str]:
        """Return the target registries, and for a repair the source registries unless the run is offline."""
        sources = {Reference.parse(record.source).host for record in self.records.values()} if self.is_repairing else set[str]()
        return frozenset({target.host for target in self.records} | (set() if is_offline else sources))

    def parse_result(self, raw: bytes, *, at: str) -> "CheckShardResult":
        """Return the result in a file, see `CheckShardResult.from_json`."""
        return CheckShardResult.from_json(raw, targets=self.targets, at=at)

    def to_json(self) -> bytes:
        """Return the content of the file."""
        records = {str(target): record.to_json() for target, record in self.records.items()}
        return dump({"kind": "check", "records": records, "repair": self.is_repairing})

    @classmethod
    def from_json(cls, raw: bytes, *, at: str) -> Self:
        """Return the targets in a file.

        Raises:
            InvalidInput, Unsupported: the file is damaged, or from another version of this program.
        """
        with refuse_damage(at):
            document = parse(raw, at=at)
            records = fields.require(document, "records", dict, at=at)
            return cls(
                records={
                    Reference.parse(target): Locked.from_json(record, at=f"{at}.records") for target, record in records.items()
                },
                is_repairing=fields.require(document, "repair", bool, at=at),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckShardResult:
    """The results of a shard, the counts of its transfers, the number of its units of work, and the last reported quotas.

    `is_stopped` is true if the shard was stopped before its end.
    """

    results: CheckResults
    is_stopped: bool = False
    stats: TransferStats = field(default_factory=TransferStats)
    tasks: int = 0
    quotas: Mapping[str, Quota] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """Return the content of the file."""
        rows = [
            {
                "target": str(row.target),
                "outcome": row.outcome,
                "faults": row.faults,
                "errors": [error_json(error) for error in row.errors],
            }
            for row in self.results.rows
        ]
        return dump(
            {
                "ok": self.results.ok,
                "rows": rows,
                "stopped": self.is_stopped,
                **work_json(self.stats, self.tasks, self.quotas),
            }
        )

    @classmethod
    def from_json(cls, raw: bytes, *, targets: Collection[Reference], at: str) -> Self:
        """Return the results in a file, for a shard with these targets.

        Raises:
            InvalidInput, Unsupported: the file is damaged, or its results are not those of the targets.
        """
        with refuse_damage(at):
            document = parse(raw, at=at)
            stats, tasks = parse_stats(document, at=at), fields.require(document, "tasks", int, at=at)
            quotas, is_stopped = parse_quotas(document, at=at), fields.require(document, "stopped", bool, at=at)
            rows = tuple(_parse_row(one, at=where) for where, one in fields.objects(document, "rows", at=at))
            results = CheckResults(ok=fields.require(document, "ok", int, at=at), rows=rows)
        named = {row.target for row in rows}
        if foreign := sorted(map(str, named.difference(targets))):
            raise InvalidInput(f"expected only targets of the shard, got {quote_text(foreign[0])}", subject=at)
        if results.ok + len(named) != len(targets):
            raise InvalidInput(f"expected results for {len(targets)} targets, got {results.ok + len(named)}", subject=at)
        return cls(results=results, is_stopped=is_stopped, stats=stats, tasks=tasks, quotas=quotas)


def _parse_row(document: fields.Json, *, at: str) -> AuditRow:
    return AuditRow(
        target=Reference.parse(fields.require(document, "target", str, at=at)),
        outcome=_OUTCOMES[fields.require(document, "outcome", str, at=at)],
        faults=fields.strings(document, "faults", at=at),
        errors=parse_errors(document, "errors", at=at),
    )
