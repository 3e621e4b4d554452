"""Renderers of run reports: text, tables, Markdown and JSON.

A renderer reads only the values of a report.
"""

from prefect_dist.mirror.render.causes import Cause, group_causes
from prefect_dist.mirror.render.document import to_json
from prefect_dist.mirror.render.lines import message_line, next_step, summary_line
from prefect_dist.mirror.render.markdown import facts, failures_markdown, summary_markdown
from prefect_dist.mirror.render.table import Table, table

__all__ = [
    "Cause",
    "Table",
    "facts",
    "failures_markdown",
    "group_causes",
    "message_line",
    "next_step",
    "summary_line",
    "summary_markdown",
    "table",
    "to_json",
]
