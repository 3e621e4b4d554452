"""Plans of mirror runs as text, tables and JSON."""

from collections import Counter
from typing import Any

from prefect_dist.mirror.plan import Plan
from prefect_dist.mirror.render.lines import list_nonzero
from prefect_dist.mirror.render.table import Table
from prefect_dist.mirror.results import plan_rows
from prefect_dist.ocispec.units import format_count, size


def plan_table(plan: Plan) -> Table:
    """Return the table of a plan, without unchanged targets."""
    return Table.of(plan_rows(plan))


def plan_summary(plan: Plan) -> str:
    """Return a line with the counts and the cost of a plan."""
    found = Counter(action.change for action in plan.actions)
    parts = [f"{found['add']} to add, {found['change']} to change, {found['unchanged'] + plan.trusted} unchanged"]
    parts += list_nonzero(
        (found["failed"] + len(plan.unnamed), "failed"),
        (len(plan.problems), "unresolved"),
        (len(plan.orphans) - len(plan.unowned_orphans), "orphaned"),
        (len(plan.to_prune), "to remove"),
        (len(plan.held_orphans), "held back by prune.most"),
        (len(plan.unowned_orphans), "orphaned without an entry"),
    )
    moved = f"{size(plan.cost.fetched_bytes)} to fetch, at most {size(plan.cost.sent_bytes)} to send"
    moved += f", about {format_count(plan.requests, 'request')}"
    moved += ", plus referrers" if any(image.item.related for image in plan.due) else ""
    return "; ".join([", ".join(parts), moved, *(_planned_pulls(plan, host) for host in plan.quotas)])


def plan_json(plan: Plan) -> dict[str, Any]:
    """Return the cost of a plan as a JSON object."""
    return {
        "fetch": {"descriptors": plan.cost.fetched, "bytes": plan.cost.fetched_bytes},
        "send": {"descriptors": plan.cost.sent, "bytes": plan.cost.sent_bytes},
        "requests": plan.requests,
        "trusted": plan.trusted,
        "quotas": {
            host: {"needed": plan.pulls_from(host), "remaining": quota.remaining, "limit": quota.limit}
            for host, quota in plan.quotas.items()
        },
    }


def _planned_pulls(plan: Plan, host: str) -> str:
    """Return the number of planned pulls from a registry with a quota."""
    quota, needed = plan.quotas[host], plan.pulls_from(host)
    if needed is None:
        return f"{host}: {format_count(quota.remaining, 'pull')} left"
    return f"{host}: {needed} of {format_count(quota.remaining, 'pull')} left{'; too few' if needed > quota.remaining else ''}"
