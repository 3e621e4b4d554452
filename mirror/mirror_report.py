"""The report of a mirror run: the plan, and the result at each target."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeGuard, get_args

from prefect_dist.mirror.causes import Cause, group_lines
from prefect_dist.mirror.plan import OrphanTag, Plan, TargetAction, Unnamed
from prefect_dist.mirror.plan_cost import PlanCost
from prefect_dist.mirror.plan_text import plan_to_json, summarize_plan, tabulate_plan
from prefect_dist.mirror.run_report import Figures, Status, describe_pieces, gather_failures, is_cancellation, pace
from prefect_dist.ocispec import Digest, Reference
from prefect_dist.ocispec.units import duration, size
from prefect_dist.remotes import Quota
from prefect_dist.transfer.removal import Removed
from prefect_dist.transfer.stats import TransferStats

Result = Literal["added", "changed", "same", "vetoed", "failed", "planned"]
_SHOWN: tuple[Result, ...] = get_args(Result)
_ALWAYS = ("added", "changed", "same")
_DONE: Mapping[str, Result] = {"add": "added", "change": "changed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorResults:
    """The results of images. `failures` and `vetoes` are the reasons why targets do not have the planned image.

    `referrers` are those that came along, with their tags, for each target that was published. A published target has failed
    if some of its referrers are not listed. `begun` are targets whose publication was begun and did not succeed: the tag may
    have been set.
    """

    failures: Mapping[Reference, str] = field(default_factory=dict)
    vetoes: Mapping[Reference, str] = field(default_factory=dict)
    referrers: Mapping[Reference, Mapping[Digest, str | None]] = field(default_factory=dict)
    begun: frozenset[Reference] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorReport:
    """The result of a mirror run: the plan, the results of images (`results`), and those of tags (`removed`).

    `name` is what people call the run. A dry run has done nothing. `more` are failures of no target; `stopped` says why the run
    was ended early.
    """

    name: str
    store: str
    plan: Plan
    dry_run: bool
    tasks: int = 0
    results: MirrorResults = field(default_factory=MirrorResults)
    removed: Mapping[Reference, Removed | str] = field(default_factory=dict)
    stats: TransferStats = field(default_factory=TransferStats)
    more: tuple[str, ...] = ()
    seconds: float = 0
    stopped: str | None = None
    quotas: Mapping[str, Quota] = field(default_factory=dict)

    @property
    def status(self) -> Status:
        """Return `complete` if every target has its image, or in a dry run if the plan has no errors."""
        if self.stopped:
            return "stopped"
        if self.errors():
            return "failed"
        return "vetoed" if self.results.vetoes else "complete"

    def result(self, action: TargetAction) -> Result:
        """Return the result of an action."""
        if action.change == "failed" or action.target in self.results.failures:
            return "failed"
        if action.target in self.results.vetoes:
            return "vetoed"
        if action.change == "same":
            return "same"
        return "planned" if self.dry_run else _DONE[action.change]

    @property
    def _title(self) -> str:
        """Return the name of the run, without a repeated word if the configuration is named like the flow (mirror.yaml)."""
        flow, _, configuration = self.name.partition(" ")
        return flow if flow == configuration else self.name

    def unfinished(self) -> list[str]:
        """Return the images that failed for at least one target, without vetoed ones: their gate would veto them again."""
        failed = (action.item.source for action in self.plan.actions if self.result(action) == "failed")
        return list(dict.fromkeys(map(str, (*failed, *(one.source for one in self.plan.unnamed)))))

    def summary(self) -> str:
        """Return one line that counts."""
        if self.dry_run:
            return f"plan of {self._title}: {summarize_plan(self.plan)}"
        counts = self.counts()
        parts = [f"{counts[result]} {result}" for result in _SHOWN if counts[result] or result in _ALWAYS]
        parts += [f"{len(self.plan.problems)} cannot be told"] if self.plan.problems else []
        parts += [f"{self._gone} of {len(self.removed)} removed"] if self.removed else []
        unowned = len(self.plan.unowned_orphans)
        left = len(self.plan.orphans) - unowned - len(self.removed)
        held = sum(orphan.target not in self.removed for orphan in self.plan.held_orphans)
        parts += [f"{left} no longer wanted" + (f" ({held} held back by prune.most)" if held else "")] if left else []
        parts += [f"{unowned} of no entry"] if unowned else []
        stats = self.stats
        passed = f"{size(stats.received)} fetched, {size(stats.sent)} sent"
        spared = f" ({stats.mounted} mounted, {stats.existed} there already)" if stats.mounted or stats.existed else ""
        left_of_quotas = "".join(f"; {host} allows {one.remaining} of {one.limit} more" for host, one in self.quotas.items())
        return f"{self._title} {self.status}: {', '.join(parts)}; {passed}{spared} in {duration(self.seconds)}{left_of_quotas}"

    def counts(self) -> dict[Result, int]:
        """Return the number of targets by result."""
        counts = dict.fromkeys(_SHOWN, 0) | {"same": self.plan.settled, "failed": len(self.plan.unnamed)}
        for action in self.plan.actions:
            counts[self.result(action)] += 1
        return counts

    def facts(self) -> dict[str, str | int]:
        """Return the counts for people. A dry run counts the planned actions."""
        stats, counts = self.stats, self.counts()
        # Manifests are in the store because the plan was made with them.
        content = {d.digest: d.size for image in self.plan.due for d in image.content if not d.is_manifest}
        to_fetch = PlanCost(self.plan).to_fetch
        held = [count for digest, count in content.items() if digest not in to_fetch]
        return {
            **{result: count for result, count in counts.items() if count or result in _ALWAYS},
            "tags removed": self._gone,
            "store": self.store,
            "bytes fetched": size(stats.received),
            "bytes sent": size(stats.sent),
            "in the store already": describe_pieces(len(held), sum(held)),
            "at a target already": describe_pieces(stats.existed, stats.existed_bytes),
            "mounted from elsewhere in a registry": describe_pieces(stats.mounted, stats.mounted_bytes),
            **pace(stats.received + stats.sent, self.seconds),
        }

    def totals(self) -> dict[str, int]:
        """Return the number of targets by result, of removed tags, and of transferred bytes."""
        stats = self.stats
        return {
            **{str(result): count for result, count in self.counts().items()},
            "removed": self._gone,
            "mounted": stats.mounted,
            "existed": stats.existed,
            "fetched_bytes": stats.received,
            "sent_bytes": stats.sent,
        }

    def figures(self) -> Figures:
        """Return the totals for metrics."""
        counts, stats = self.counts(), self.stats
        return Figures(
            pending=sum(counts[result] for result in ("vetoed", "failed", "planned")),
            failed=counts["failed"],
            vetoed=counts["vetoed"],
            received=stats.received,
            sent=stats.sent,
        )

    @property
    def _gone(self) -> int:
        return sum(isinstance(outcome, Removed) and outcome.status == "removed" for outcome in self.removed.values())

    def errors(self) -> list[str]:
        """Return one line per failure, and one for all targets that were not reached because the run was cancelled."""
        unremoved = (outcome for outcome in self.removed.values() if isinstance(outcome, str))
        lines = dict.fromkeys((*self.plan.errors, *self.results.failures.values(), *unremoved, *self.more))
        return gather_failures(lines, self.stopped)

    def causes(self) -> list[Cause]:
        """Return the failures, grouped by their cause."""
        return group_lines(self.errors())

    def notes(self) -> list[str]:
        """Return further notes: entries that select nothing, vetoes, and tags that could not be removed as planned."""
        kept = (f"{target}: not removed: {outcome.why}" for target, outcome in self.removed.items() if _is_kept(outcome))
        return [*self.plan.idle, *self.results.vetoes.values(), *kept]

    def to_json(self, flow_run_id: str) -> dict[str, Any]:
        """Return the JSON output of the command line."""
        stats = self.stats
        return {
            "flow_run_id": flow_run_id,
            "status": self.status,
            "seconds": round(self.seconds, 3),
            "dry_run": self.dry_run,
            "plan": plan_to_json(self.plan),
            "images": [
                *map(self._action_json, self.plan.actions),
                *map(_unnamed_json, self.plan.unnamed),
            ],
            "removed": [
                {
                    "target": str(target),
                    "result": "failed" if isinstance(outcome, str) else outcome.status,
                    "note": _note_of(outcome),
                }
                for target, outcome in self.removed.items()
            ],
            "fetched_bytes": stats.received,
            "sent_bytes": stats.sent,
            "quotas": {host: asdict(quota) for host, quota in self.quotas.items()},
            "mounted": stats.mounted,
            "existed": stats.existed,
            "notes": self.notes(),
            "errors": self.errors(),
        }

    def table(self) -> list[dict[str, str | int]]:
        """Return one row per target, failed ones first, then one per orphan tag.

        Unchanged targets, and those that were not reached before the run was ended, are only counted.
        """
        if self.dry_run:
            return tabulate_plan(self.plan)
        changed = (action for action in self.plan.actions if self.result(action) != "same")
        actions = [
            action for action in changed if not is_cancellation(self.results.failures.get(action.target, ""), self.stopped)
        ]
        rows = [self._row(action) for action in sorted(actions, key=lambda one: self.result(one) != "failed")]
        return [*map(_unnamed_row, self.plan.unnamed), *rows, *(self._orphan_row(orphan) for orphan in self.plan.orphans)]

    def _action_json(self, action: TargetAction) -> dict[str, Any]:
        return {
            "source": str(action.item.source),
            "target": str(action.target),
            "digest": action.new and str(action.new.digest),
            "result": self.result(action),
            "note": self._note(action),
        }

    def _row(self, action: TargetAction) -> dict[str, str | int]:
        return {
            "image": str(action.item.source),
            "target": str(action.target),
            "result": self.result(action),
            "from": action.old.digest.short if action.old else "",
            "to": action.new.digest.short if action.new else "",
            "note": action.without_names(self._note(action) or ""),
        }

    def _orphan_row(self, orphan: OrphanTag) -> dict[str, str | int]:
        outcome = self.removed.get(orphan.target)
        unwanted = "unwanted" if orphan.since is not None else "not owned"
        result = unwanted if outcome is None else "failed" if isinstance(outcome, str) else outcome.status
        return {
            "image": orphan.record.source,
            "target": str(orphan.target),
            "result": result,
            "from": orphan.record.digest.short,
            "to": "",
            "note": orphan.note if outcome is None else _note_of(outcome) or "",
        }

    def _note(self, action: TargetAction) -> str | None:
        return self.results.failures.get(action.target) or self.results.vetoes.get(action.target) or action.note


def _unnamed_json(unnamed: Unnamed) -> dict[str, Any]:
    return {"source": str(unnamed.source), "target": None, "digest": None, "result": "failed", "note": str(unnamed.error)}


def _unnamed_row(unnamed: Unnamed) -> dict[str, str | int]:
    note = str(unnamed.error)
    return {"image": str(unnamed.source), "target": "", "result": "failed", "from": "", "to": "", "note": note}


def _is_kept(outcome: Removed | str) -> TypeGuard[Removed]:
    return isinstance(outcome, Removed) and outcome.status != "removed"


def _note_of(outcome: Removed | str) -> str | None:
    return outcome if isinstance(outcome, str) else outcome.why
