"""Output for people and for programs: aligned columns, plain lists, JSON."""

import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from prefect_dist.ocispec import units

_GAP, _INDENT = "  ", "    "


def columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows under their heads, aligned, on a terminal within its width; nothing is cut, and a pipe gets a line per row."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    lines(laid_out([heads, *rows], width))


def laid_out(rows: Sequence[Sequence[str]], width: int | None) -> Iterator[str]:
    """The lines of rows, each column as wide as its widest cell.

    Where that is more than `width`, a row continues in further, indented lines: with its last cell, if the other columns have
    room, or else with each cell that has none. Columns are not aligned then, so that `-` marks an empty cell before others.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    is_aligned = width is None or sum(widths[:-1]) + len(_GAP) * (len(widths) - 2) <= width
    for row in rows:
        yield from _fold(map(str.ljust, row, widths) if is_aligned else _mark_empty(row), width)


def _mark_empty(row: Sequence[str]) -> Iterator[str]:
    """The cells of a row up to the last one that is not empty, with `-` for empty ones."""
    last = max((index for index, cell in enumerate(row) if cell), default=-1)
    return (cell or "-" for cell in row[: last + 1])


def _fold(cells: Iterable[str], width: int | None) -> Iterator[str]:
    """One row: as many cells in a line as find room there, at least one."""
    line = None
    for cell in cells:
        longer = cell if line is None else line + _GAP + cell
        if line is None or width is None or len(longer.rstrip()) <= width:
            line = longer
        else:
            yield line.rstrip()
            line = _INDENT + cell
    if line is not None:
        yield line.rstrip()


def lines(texts: Iterable[str]) -> None:
    """One text per line, each when it comes."""
    sys.stdout.writelines(f"{text}\n" for text in texts)


def age(moment: datetime) -> str:
    """How long ago something was."""
    return units.age((datetime.now(UTC) - moment).total_seconds())


def json(document: Any) -> None:
    """One JSON document on one line."""
    sys.stdout.write(orjson.dumps(document).decode() + "\n")
