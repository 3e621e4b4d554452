"""Output for people and for programs: aligned columns, plain lists, JSON."""

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from ocispec import units


def columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows under their heads, each column as wide as its widest cell; nothing is cut, so that it can be piped on."""
    lines = [tuple(heads), *map(tuple, rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(heads))]
    for line in lines:
        sys.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n")


def lines(texts: Iterable[str]) -> None:
    """One text per line, each when it comes."""
    sys.stdout.writelines(f"{text}\n" for text in texts)


def age(moment: datetime) -> str:
    """How long ago something was."""
    return units.age((datetime.now(UTC) - moment).total_seconds())


def json(document: Any) -> None:
    """One JSON document on one line."""
    sys.stdout.write(orjson.dumps(document).decode() + "\n")
