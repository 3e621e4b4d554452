"""Reports as Markdown, for the artifacts of a run."""

import re
from collections.abc import Iterator

from prefect_dist.mirror.report import RunReport
from prefect_dist.ocispec.units import duration, size

# Characters that Markdown may interpret within a line. An underscore within a word is plain text.
_MARKUP = re.compile(r"[\\`*\[\]<>|~]")
_BYTES = "_bytes"
_LABELS = {
    "existed": "existed before the run",
    "stored": "in the store before the run",
    "mounted": "mounted from another repository",
    "unowned": "orphaned tags without an entry",
    "orphaned": "orphaned tags",
    "held": "orphaned tags held back by prune.most",
    "unreferenced": "unreferenced blobs",
    "unchecked": "unchecked tags",
}


def facts(report: RunReport) -> dict[str, str]:
    """Return the nonzero counts of a run by label, the duration and the rate."""
    transferred = sum(report.counts.get(key, 0) for key in ("fetched_bytes", "sent_bytes", "hashed_bytes"))
    rate = {"rate": f"{size(transferred / max(report.seconds, 0.001))}/s"} if transferred else {}
    return {**dict(_count_facts(report)), "store": report.store, "duration": duration(report.seconds), **rate}


def summary_markdown(report: RunReport) -> str:
    """Return the facts of a run as a table."""
    rows = (f"| {label} | {value} |" for label, value in facts(report).items())
    return "\n".join([f"| {report.flow} | {report.status} |", "|---|---|", *rows])


def failures_markdown(report: RunReport, most: int) -> str:
    """Return at most `most` errors of a run as a numbered list. A table would cut long lines."""
    lines = [f"{number}. {_escape(str(error))}" for number, error in enumerate(report.errors[:most], 1)]
    more = len(report.errors) - most
    return "\n".join([*lines, *([f"\n… and {more} more, which are not shown"] if more > 0 else [])])


def _count_facts(report: RunReport) -> Iterator[tuple[str, str]]:
    """Yield a label and a text for each number. A number of objects and the number of bytes share a text."""
    for key, count in report.counts.items():
        if not count:
            continue
        stem = key.removesuffix(_BYTES)
        if stem == key:
            amount = report.counts.get(f"{key}{_BYTES}")
            yield _label(key), str(count) if amount is None else f"{count} ({size(amount)})"
        elif stem not in report.counts:
            yield _label(stem), size(count)


def _label(key: str) -> str:
    return _LABELS.get(key, key.replace("_", " "))


def _escape(text: str) -> str:
    """Return text that Markdown shows unchanged. Parts of the text may come from a registry."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))
