"""The report of a check of a mirror."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from prefect_dist.mirror.causes import Cause, group_lines
from prefect_dist.mirror.run_report import Figures, Status, gather_failures, is_cancellation
from prefect_dist.ocispec import Descriptor, Reference
from prefect_dist.ocispec.units import duration, format_count, size
from prefect_dist.transfer.stats import TransferStats

Result = Literal["damaged", "repaired", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audits:
    """The results: how many targets are right, the faults of the damaged ones, and why others could not be audited.

    `roots` has what the tags of damaged targets resolve to. `unaudited` are those that no entry wants any more.
    """

    right: int = 0
    damaged: Mapping[Reference, tuple[str, ...]] = field(default_factory=dict)
    roots: Mapping[Reference, Descriptor | None] = field(default_factory=dict)
    unresolved: Mapping[Reference, str] = field(default_factory=dict)
    unaudited: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """The result of a check: the audits before repairs (`first`) and after them (`again`, None without repairs).

    `failures` say why targets could not be repaired. `stopped` says why the run was ended early.
    """

    name: str
    first: Audits
    again: Audits | None = None
    failures: Mapping[Reference, str] = field(default_factory=dict)
    stats: TransferStats = field(default_factory=TransferStats)
    tasks: int = 0
    seconds: float = 0
    stopped: str | None = None

    @property
    def status(self) -> Status:
        """Return `complete` if all targets are right now."""
        if self.stopped:
            return "stopped"
        return "failed" if self.errors() else "complete"

    def result(self, target: Reference) -> Result:
        """Return the result for a target that was damaged or could not be audited."""
        if self.again is None or target in self.first.unresolved:
            return "damaged" if target in self.first.damaged else "failed"
        is_still = target in self.failures or target in self.again.damaged or target in self.again.unresolved
        return "failed" if is_still else "repaired"

    def summary(self) -> str:
        """Return one line with the counts."""
        found = self.first
        parts = [f"{found.right} right", f"{len(found.damaged)} damaged"]
        parts += [f"{len(found.unresolved)} cannot be told"] if found.unresolved else []
        if self.again is not None:
            parts += [f"{sum(self.result(target) == 'repaired' for target in found.damaged)} repaired"]
            parts += [f"{size(self.stats.sent)} sent"]
        left = f"; {format_count(found.unaudited, 'tag')} that no entry wants not looked into" if found.unaudited else ""
        return f"check of {self.name} {self.status}: {', '.join(parts)} in {duration(self.seconds)}{left}"

    def facts(self) -> dict[str, str | int]:
        """Return the counts for people."""
        found = self.first
        return {
            "targets right": found.right,
            "damaged": len(found.damaged),
            "repaired": sum(self.result(target) == "repaired" for target in found.damaged),
            "cannot be told": len(found.unresolved),
            "wanted by no entry, not looked into": found.unaudited,
            "bytes fetched": size(self.stats.received),
            "bytes sent": size(self.stats.sent),
            "took": duration(self.seconds),
        }

    def totals(self) -> dict[str, int]:
        """Return the number of targets by result, and what a repair moved."""
        found = self.first
        return {
            "right": found.right,
            "damaged": len(found.damaged),
            "repaired": sum(self.result(target) == "repaired" for target in found.damaged),
            "untold": len(found.unresolved),
            "unlooked": found.unaudited,
            "fetched_bytes": self.stats.received,
            "sent_bytes": self.stats.sent,
        }

    def figures(self) -> Figures:
        """Return the totals for metrics."""
        unrepaired = sum(self.result(target) != "repaired" for target in self.first.damaged)
        wrong = unrepaired + len(self.first.unresolved)
        return Figures(pending=wrong, failed=wrong, received=self.stats.received, sent=self.stats.sent)

    def errors(self) -> list[str]:
        """Return one line per failure, and one for all targets that were not audited because the run was cancelled."""
        lines = list(self.first.unresolved.values())
        for target, faults in self.first.damaged.items():
            if self.result(target) != "repaired":
                lines.append(self._failure_line(target, faults))
        return gather_failures(lines, self.stopped)

    def causes(self) -> list[Cause]:
        """Return the failures, grouped by their cause."""
        return group_lines(self.errors())

    def to_json(self, flow_run_id: str) -> dict[str, Any]:
        """Return the JSON output of the command line."""
        return {
            "flow_run_id": flow_run_id,
            "status": self.status,
            "seconds": round(self.seconds, 3),
            "right": self.first.right,
            "targets": [
                {"target": str(target), "result": self.result(target), "faults": list(faults), "error": self._error(target)}
                for target, faults in self.first.damaged.items()
            ],
            "untold": {str(target): why for target, why in self.first.unresolved.items()},
            "unlooked": self.first.unaudited,
            "fetched_bytes": self.stats.received,
            "sent_bytes": self.stats.sent,
            "errors": self.errors(),
        }

    def table(self) -> list[dict[str, str | int]]:
        """Return one row per target that is or was not right."""
        found = [(target, "; ".join(faults)) for target, faults in self.first.damaged.items()]
        unresolved = ((target, why) for target, why in self.first.unresolved.items() if not is_cancellation(why, self.stopped))
        rows = [*found, *((target, why.removeprefix(f"{target}: ")) for target, why in unresolved)]
        return [{"target": str(target), "result": self.result(target), "faults": text} for target, text in rows]

    def _failure_line(self, target: Reference, faults: tuple[str, ...]) -> str:
        error = self._error(target)
        return error or f"{target}: {'; '.join(faults)}"

    def _error(self, target: Reference) -> str | None:
        """Return why a target could not be repaired."""
        if self.again is None:
            return None
        if target in self.failures:
            return self.failures[target]
        if target in self.again.unresolved:
            return self.again.unresolved[target]
        faults = self.again.damaged.get(target)
        return None if faults is None else f"{target}: after it was repaired: {'; '.join(faults)}"
