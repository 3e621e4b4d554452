"""Renders a plan: as one line, as JSON, and as the rows of a table."""

from typing import Any

from prefect_dist.mirror.plan import OrphanTag, Plan, TargetAction, Unnamed
from prefect_dist.mirror.plan_cost import PlanCost
from prefect_dist.ocispec import Descriptor
from prefect_dist.ocispec.units import format_count, size


def summarize_plan(plan: Plan) -> str:
    """Return one line with the counts of a plan."""
    cost = PlanCost(plan)
    parts = [f"{plan.count('add')} to add, {plan.count('change')} to change, {plan.count('same')} same"]
    parts += [f"{failed} cannot be told"] if (failed := plan.count("failed") + len(plan.problems)) else []
    orphans, unowned = len(plan.orphans) - len(plan.unowned_orphans), len(plan.unowned_orphans)
    parts += [f"{orphans} extra, {len(plan.to_prune)} to remove"] if orphans else []
    parts += [f"{unowned} of no entry"] if unowned else []
    parts += [f"{len(plan.held_orphans)} held back by prune.most"] if plan.held_orphans else []
    moved = f"{size(cost.fetched_bytes)} to fetch, at most {size(cost.sent_bytes)} to send"
    moved += f", about {format_count(cost.requests, 'request')}"
    moved += ", beside referrers" if any(image.item.related for image in plan.due) else ""
    return f"{', '.join(parts)}; {moved}" + "".join(f"; {_describe_quota(plan, cost, host)}" for host in plan.quotas)


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Return the plan in the JSON output of the command line."""
    cost = PlanCost(plan)
    return {
        "images": [*map(_action_json, plan.actions), *map(_unnamed_json, plan.unnamed)],
        "extra": [
            {
                "target": str(orphan.target),
                "digest": str(orphan.record.digest),
                "since": orphan.since and orphan.since.isoformat(),
                "remove": orphan.is_due,
                "held": orphan.is_held,
            }
            for orphan in plan.orphans
        ],
        "settled": plan.settled,
        "problems": list(plan.problems.values()),
        "fetch": {"objects": len(cost.to_fetch), "bytes": cost.fetched_bytes},
        "send": {"objects": len(cost.to_send), "bytes": cost.sent_bytes},
        "requests": cost.requests,
        "quotas": {
            host: {"needed": cost.pulls_from(host), "remaining": quota.remaining, "limit": quota.limit}
            for host, quota in plan.quotas.items()
        },
    }


def tabulate_plan(plan: Plan) -> list[dict[str, str | int]]:
    """Return one row per failed action, due action and orphaned tag, in this order. Unchanged targets have no row."""
    actions = sorted((one for one in plan.actions if one.change != "same"), key=lambda one: one.change != "failed")
    return [*map(_unnamed_row, plan.unnamed), *map(_action_row, actions), *map(_orphan_row, plan.orphans)]


def _describe_quota(plan: Plan, cost: PlanCost, host: str) -> str:
    quota, needed = plan.quotas[host], cost.pulls_from(host)
    if needed is None:
        return f"{host}: still allows {format_count(quota.remaining, 'pull')}"
    short = "; too few" if needed > quota.remaining else ""
    return f"{host}: {needed} of the {format_count(quota.remaining, 'pull')} that it still allows{short}"


def _digest(descriptor: Descriptor | None) -> str | None:
    return None if descriptor is None else str(descriptor.digest)


def _action_json(action: TargetAction) -> dict[str, Any]:
    return {
        "source": str(action.item.source),
        "target": str(action.target),
        "change": action.change,
        "old": _digest(action.old),
        "new": _digest(action.new),
        "note": action.note,
    }


def _unnamed_json(unnamed: Unnamed) -> dict[str, Any]:
    source, note = str(unnamed.source), str(unnamed.error)
    return {"source": source, "target": None, "change": "failed", "old": None, "new": None, "note": note}


def _action_row(action: TargetAction) -> dict[str, str | int]:
    return {
        "image": str(action.item.source),
        "target": str(action.target),
        "change": action.change,
        "from": action.old.digest.short if action.old else "",
        "to": action.new.digest.short if action.new else "",
        "note": action.without_names(action.note or ""),
    }


def _unnamed_row(unnamed: Unnamed) -> dict[str, str | int]:
    note = str(unnamed.error)
    return {"image": str(unnamed.source), "target": "", "change": "failed", "from": "", "to": "", "note": note}


def _orphan_row(orphan: OrphanTag) -> dict[str, str | int]:
    return {
        "image": orphan.record.source,
        "target": str(orphan.target),
        "change": "remove" if orphan.is_due else "extra" if orphan.since is not None else "not owned",
        "from": orphan.record.digest.short,
        "to": "",
        "note": orphan.note,
    }
