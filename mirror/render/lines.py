"""Reports and plans as lines of text."""

from collections.abc import Callable, Mapping

from prefect_dist.mirror.report import FlowName, RunReport, UnpackRow
from prefect_dist.ocispec.units import duration, format_count, size

_NEXT = {
    "verify": "To fetch incomplete images again, run verify with `repair`. Corrupt blobs stay in quarantine.",
    "check": "To upload missing content again, run check with `repair`.",
}
_RUN_AGAIN = "Fix the failures below, then run again. Finished work is kept, and content in the store is not fetched again."
_RESUME = "The run stopped before it finished. Run it again to resume. Finished work is kept."


def summary_line(report: RunReport) -> str:
    """Return a line with the counts of a run."""
    return _SUMMARIES[report.flow](report)


def message_line(report: RunReport) -> str:
    """Return a line with the summary and the first error of a run."""
    errors = report.errors
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{summary_line(report)}; {errors[0]}{more}" if errors else summary_line(report)


def next_step(report: RunReport) -> str:
    """Return the advice for a run with errors."""
    return _RESUME if report.status == "stopped" else _NEXT.get(report.flow, _RUN_AGAIN)


def list_nonzero(*counts: tuple[int, str]) -> list[str]:
    """Return the counts that are not zero, as text."""
    return [f"{count} {what}" for count, what in counts if count]


def _quotas(report: RunReport) -> str:
    return "".join(f"; {host}: {quota.remaining} of {quota.limit} pulls left" for host, quota in report.quotas.items())


def _summarize_fetch(report: RunReport) -> str:
    counts = report.counts
    of = f" of {counts['images']}" if counts["failed"] else ""
    noun = "image" if counts["images"] == 1 else "images"
    parts = [f"{counts['fetched']} fetched", f"{counts['existed']} existed"]
    parts += list_nonzero((counts["failed_descriptors"], "failed"))
    parts += [f"with {format_count(counts['referrers'], 'referrer')}"] if counts["referrers"] else []
    moved = f"{size(counts['fetched_bytes'])} in {duration(report.seconds)}"
    return f"{counts['images'] - counts['failed']}{of} {noun} complete: {', '.join(parts)}; {moved}{_quotas(report)}"


def _summarize_pull(report: RunReport) -> str:
    unpacked = (
        f"{row.layers} layers of {row.manifest} unpacked to {row.directory}, chain ID {row.chain_id}"
        for row in report.select(UnpackRow)
    )
    return "; ".join([_summarize_fetch(report), *unpacked])


def _summarize_mirror(report: RunReport) -> str:
    # A configuration is often named like the flow, by the file mirror.yaml.
    title = " ".join(dict.fromkeys(filter(None, (report.flow, report.configuration))))
    if report.is_dry and report.plan is not None:
        from prefect_dist.mirror.render.plans import plan_summary  # noqa: PLC0415 - a fetch needs no modules of plans

        return f"plan of {title}: {plan_summary(report.plan)}"
    counts = report.counts
    parts = [f"{counts[outcome]} {outcome}" for outcome in ("added", "changed", "unchanged")]
    parts += list_nonzero(*((counts[outcome], outcome) for outcome in ("vetoed", "failed", "unresolved", "removed")))
    parts += list_nonzero((counts["not_removed"], "not removed"))
    held = f" ({counts['held']} held back by prune.most)" if counts["held"] else ""
    parts += list_nonzero((counts["orphaned"], f"orphaned{held}"), (counts["unowned"], "orphaned without an entry"))
    moved = f"{size(counts['fetched_bytes'])} fetched, {size(counts['sent_bytes'])} sent"
    spared = list_nonzero((counts["mounted"], "mounted"), (counts["existed"], "existed"))
    moved += f" ({', '.join(spared)})" if spared else ""
    return f"{title} {report.status}: {', '.join(parts)}; {moved} in {duration(report.seconds)}{_quotas(report)}"


def _summarize_check(report: RunReport) -> str:
    counts = report.counts
    parts = [f"{counts['ok']} ok"]
    parts += list_nonzero(*((counts[outcome], outcome) for outcome in ("damaged", "repaired", "failed", "unresolved")))
    parts += [f"{size(counts['sent_bytes'])} sent"] if counts["sent_bytes"] else []
    unchecked = f"; {format_count(counts['unchecked'], 'tag')} without an entry not checked" if counts["unchecked"] else ""
    title = "check" if report.configuration is None else f"check of {report.configuration}"
    return f"{title} {report.status}: {', '.join(parts)} in {duration(report.seconds)}{unchecked}"


def _summarize_verify(report: RunReport) -> str:
    counts = report.counts
    parts = [f"{format_count(counts['ok'], 'blob')} ok, {size(counts['hashed_bytes'])}"]
    parts[0] += f", {counts['corrupt']} corrupt (now in quarantine)" if counts["corrupt"] else ""
    names = list_nonzero((counts["damaged"], "damaged"), (counts["repaired"], "repaired"))
    parts += [f"names: {', '.join(names)}"] if names else []
    unreferenced = counts.get("unreferenced", 0)
    parts += [f"{format_count(unreferenced, 'blob')} unreferenced"] if unreferenced else []
    return "; ".join([*parts, f"in {duration(report.seconds)}"])


def _summarize_gc(report: RunReport) -> str:
    counts, outcome = report.counts, "planned" if report.is_dry else "removed"
    removed = f"{format_count(counts[outcome], 'blob')} with {size(counts[f'{outcome}_bytes'])}"
    removed += f" and {format_count(counts['leftovers'], 'leftover')}" if counts["leftovers"] else ""
    would = "would be removed" if report.is_dry else "removed"
    return f"{removed} {would}, {format_count(counts['kept'], 'blob')} kept; in {duration(report.seconds)}"


_SUMMARIES: Mapping[FlowName, Callable[[RunReport], str]] = {
    "fetch": _summarize_fetch,
    "pull": _summarize_pull,
    "push": _summarize_mirror,
    "copy": _summarize_mirror,
    "mirror": _summarize_mirror,
    "seed": _summarize_mirror,
    "check": _summarize_check,
    "verify": _summarize_verify,
    "gc": _summarize_gc,
}
