"""Output of commands: aligned columns, lists and JSON on standard output, errors on standard error."""

import contextlib
import io
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from prefect_dist.ocispec import units

_GAP, _INDENT = "  ", "    "


def print_columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows below heads. On a terminal, long rows are folded; in a pipe, each row is a line. No cell is cut."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print_lines(format_rows([heads, *rows], width))


def print_rows(rows: Sequence[Mapping[str, str | int]]) -> None:
    """Print rows as columns. Each row maps heads to cells. A column without any content is left out."""
    if heads := [head for head in (rows[0] if rows else ()) if any(row[head] != "" for row in rows)]:
        print_columns([head.upper() for head in heads], [[str(row[head]) for head in heads] for row in rows])


def format_rows(rows: Sequence[Sequence[str]], width: int | None) -> Iterator[str]:
    """Yield the lines of rows, with each column as wide as its widest cell.

    A row that is wider than `width` continues in indented lines: with the last cell if the preceding columns fit,
    otherwise cell by cell. In the second case the columns are not aligned, and `-` marks an empty cell before filled cells.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    is_aligned = width is None or sum(widths[:-1]) + len(_GAP) * (len(widths) - 2) <= width
    for row in rows:
        yield from _fold(map(str.ljust, row, widths) if is_aligned else _mark_empty(row), width)


def _mark_empty(row: Sequence[str]) -> Iterator[str]:
    """Return the cells up to the last filled cell, with `-` in the place of empty cells."""
    last = max((index for index, cell in enumerate(row) if cell), default=-1)
    return (cell or "-" for cell in row[: last + 1])


def _fold(cells: Iterable[str], width: int | None) -> Iterator[str]:
    """Yield the lines of a row, with as many cells per line as fit."""
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


def print_lines(texts: Iterable[str]) -> None:
    """Print a line per text, as soon as the iterator yields the text."""
    sys.stdout.writelines(f"{escape(text)}\n" for text in texts)


def escape(text: str) -> str:
    """Return text with escapes for control characters other than line breaks.

    Text of others, such as a media type of an image, must not control the terminal.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def format_age(moment: datetime) -> str:
    """Return the time since `moment`, such as `3 days`."""
    return units.age((datetime.now(UTC) - moment).total_seconds())


def print_json(document: Any) -> None:
    """Print a JSON document on one line."""
    sys.stdout.write(orjson.dumps(document).decode() + "\n")


class ErrorStream(io.TextIOBase):
    """Standard error. Text is lost if its reader has left or the disk is full, since that must not stop a run."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of standard error."""
        return sys.stderr.encoding

    def isatty(self) -> bool:
        """Return True if standard error is a terminal."""
        return sys.stderr.isatty()

    def write(self, text: str) -> int:
        """Write text if possible. Return its length."""
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """Write the buffer of standard error if possible."""
        with contextlib.suppress(OSError):
            sys.stderr.flush()


def print_error(message: object, *objects: str) -> None:
    """Print a message on standard error as a single line, followed by an indented line per object."""
    lines = (f"dist: {escape(' '.join(str(message).split()))}", *(f"{_INDENT}{escape(name)}" for name in objects))
    ErrorStream().write("".join(f"{line}\n" for line in lines))
