"""What a person sees of a run while it goes: a live table on a terminal, plain lines elsewhere, all on standard error."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from prefect_dist.cli.context import Output
from prefect_dist.mirror.progress import waiting_for
from prefect_dist.ocispec import Descriptor
from prefect_dist.ocispec.errors import DistError
from prefect_dist.ocispec.units import duration, format_count, size
from prefect_dist.transfer.cancellation import Stopped
from prefect_dist.transfer.content import Receipt
from prefect_dist.transfer.image_report import ImageEnd
from prefect_dist.transfer.session import Untold

_FRAMES_PER_S = 8
# A bar is no wider, and with less room there is none.
_BAR_CELLS, _LEAST_BAR_CELLS = 30, 5
# The longest sizes and states, such as "1023.9 MiB" and "downloading": columns do not move with what stands in them.
_SIZE_CELLS, _STATE_CELLS = 10, 11
# A terminal shows Ctrl-C as "^C" behind the footer; were that to begin a line, the frame would be drawn beside its place.
_ECHO_CELLS = 2
# Lines that a frame needs beside its rows.
_MARGIN = 4
Doing = Literal["downloading", "uploading", "mirroring"]
_UNDER_WAY = get_args(Doing)
_BAD = ("failed", "interrupted")
_STYLES = {"failed": "red", "interrupted": "yellow", "exists": "cyan", "done": "green", "waiting": "dim"}


@dataclass(slots=True)
class _Row:
    """One reference or descriptor: its state, and how many of its bytes are there. A reference has none."""

    label: str
    state: str
    total: int | None = None
    offset: int = 0

    @property
    def over(self) -> bool:
        return self.is_there or self.state in _BAD

    @property
    def is_there(self) -> bool:
        return self.state in ("done", "exists")

    @property
    def rank(self) -> int:
        """Where it comes when there is no room for all: what moves, then what failed, what is to come, what is over."""
        if self.state in _BAD:
            return 1
        if self.total is None:
            return 4 if self.over else 0 if self.state == "resolving" else 2
        return 4 if self.over else 3 if self.state == "waiting" else 0


class LiveDisplay:
    """A row per reference and descriptor, and a footer with what this run has moved. Thread-safe."""

    def __init__(self, console: Console, doing: Doing) -> None:
        self._console, self._doing = console, doing
        self._guard = threading.Lock()
        self._rows: dict[object, _Row] = {}
        self._begun, self._started = False, time.monotonic()
        self._moved = 0
        self._note = ""
        self._is_recording = False
        self._waits: dict[str, tuple[float, str]] = {}

    def note(self, text: str) -> None:
        """Say what is being waited for."""
        self._note = text

    def planned(self, count: int, total: int) -> None:
        """Show how far planning is."""
        self._begin()
        self._note = f"looked into {count} of {format_count(total, 'image')}"

    def untold(self, name: str, what: Untold) -> None:
        """The report says why."""

    def resolving(self, name: str) -> None:
        """Show a reference that is being looked up."""
        self._begin()
        self._set(name, _Row(name, "resolving"))

    def resolved(self, name: str, root: Descriptor) -> None:  # noqa: ARG002 - its own row tells of it
        """Show that a reference is known, and what it names under way."""
        self._begin()
        self._set(name, _Row(name, "under way"))

    def waiting(self, descriptor: Descriptor) -> None:
        """Show content that was found."""
        self._set(descriptor.key, _Row(_label(descriptor), "waiting", descriptor.size))

    def advanced(self, descriptor: Descriptor, offset: int, gained: int) -> None:
        """Show how far a transfer is."""
        with self._guard:
            self._moved += gained
            row = self._rows.get(descriptor.key)  # what is read to make a plan has none
            if row is not None and not row.is_there:  # what is there may still be sent on, to one place after another
                row.state, row.offset = self._doing, max(offset, row.offset if self._doing == "mirroring" else 0)

    def ended(self, descriptor: Descriptor, receipt: Receipt) -> None:
        """Show content that is in the store."""
        state = "exists" if receipt.status == "existed" else "done"
        self._set(descriptor.key, _Row(_label(descriptor), state, descriptor.size, descriptor.size))

    def failed(self, descriptor: Descriptor, error: DistError) -> None:
        """Show content that could not be had, or of which could not be had what refers to it: that may have no row yet."""
        with self._guard:
            row = self._rows.setdefault(descriptor.key, _Row(_label(descriptor), "", descriptor.size))
            row.state = _bad([error])

    def fell_short(self, message: str) -> None:
        """The report says why."""

    def did(self, name: str, what: str) -> None:
        """The row of the image says when all is done."""

    def left_alone(self, server: str, seconds: float) -> None:
        """Show for how long a server is not asked, until that is over."""
        with self._guard:
            self._waits[server] = (time.monotonic() + seconds, waiting_for(server, seconds))

    def finished(self, image: ImageEnd) -> None:
        """Show how an image ended. One that was interrupted before it started has no row yet."""
        with self._guard:
            row = self._rows.setdefault(image.name, _Row(image.name, ""))
            if image.failures:
                row.state = _bad([failure.error for failure in image.failures])
            else:
                row.state = "done" if image.moved else "exists"

    def recording(self) -> None:
        """Say that the results are not recorded yet, and that no image is counted as done before."""
        self._is_recording, self._note = True, "recording results"

    def __rich__(self) -> RenderableType:
        width = self._console.width
        with self._guard:
            rows, moved = list(self._rows.values()), self._moved
            counts, columns = _counts(rows, done="" if self._is_recording else " done"), _Columns.of(rows, width)
            shown = _fitting(rows, self._console.height - _MARGIN)
            cells = [columns.cells(row) for row in shown]
            waits = [text for until, text in self._waits.values() if until > time.monotonic()]
        table = columns.table()
        for row in cells:
            table.add_row(*row)
        seconds = time.monotonic() - self._started
        figures = [size(moved), f"{size(moved / max(seconds, 0.001))}/s"] if rows else []
        footer = _footer([*counts, duration(seconds), *figures], self._note, width - _ECHO_CELLS)
        return Group(table, *(Text(text, style="yellow") for text in waits), footer)

    def _begin(self) -> None:
        """Start the clock of the run with the first thing that happens."""
        if not self._begun:
            self._begun, self._started = True, time.monotonic()
        self._note = ""

    def _set(self, key: object, row: _Row) -> None:
        with self._guard:
            self._rows[key] = row


class PlainLines:
    """One line per image when it is finished, and one for whatever is waited for: for logs of other programs.

    The causes of failures are printed once, with the report.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._done: dict[str, list[str]] = {}

    def note(self, text: str) -> None:
        """Say what is being waited for."""
        self._say(text)

    def planned(self, count: int, total: int) -> None:
        """Say how far planning is."""
        self._say(f"looked into {count} of {format_count(total, 'image')}")

    def untold(self, name: str, what: Untold) -> None:
        """The report says why."""

    def resolving(self, name: str) -> None:
        """Nothing to say yet."""

    def resolved(self, name: str, root: Descriptor) -> None:
        """Nothing to say yet."""

    def waiting(self, descriptor: Descriptor) -> None:
        """Nothing to say yet."""

    def advanced(self, descriptor: Descriptor, offset: int, gained: int) -> None:
        """A log is no place for every piece."""

    def ended(self, descriptor: Descriptor, receipt: Receipt) -> None:
        """The line of the image counts it."""

    def failed(self, descriptor: Descriptor, error: DistError) -> None:
        """The report says why."""

    def fell_short(self, message: str) -> None:
        """The report says why."""

    def did(self, name: str, what: str) -> None:
        """Keep it for the line of the image."""
        self._done.setdefault(name, []).append(what)

    def left_alone(self, server: str, seconds: float) -> None:
        """Say for how long a server is not asked."""
        self._say(waiting_for(server, seconds))

    def finished(self, image: ImageEnd) -> None:
        """Say how an image came out."""
        done = "".join(f", {what}" for what in self._done.pop(image.name, ()))
        self._say(f"{image.name} {image.status}: {image.told()}{done}")

    def recording(self) -> None:
        """Print nothing: the results are printed soon."""

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)


class Silence(PlainLines):
    """Nothing: the one JSON object at the end says all."""

    def _say(self, text: str) -> None:
        pass


Display = LiveDisplay | PlainLines


@contextlib.contextmanager
def display(output: Output, *, quiet: bool, doing: Doing = "downloading") -> Iterator[Display]:
    """The display that fits standard error: a live table on a terminal, lines elsewhere, nothing with `quiet` or for JSON."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield Silence(console) if quiet or output == "json" else PlainLines(console)
        return
    live = LiveDisplay(console, doing)
    gone = doing == "mirroring"  # its last rows say nothing that the table of all images, which follows, does not
    with Live(
        live, console=console, refresh_per_second=_FRAMES_PER_S, transient=gone, redirect_stdout=False, redirect_stderr=False
    ):
        yield live


def _label(descriptor: Descriptor) -> str:
    return f"{descriptor.kind:<8} {descriptor.digest.short}"


def _bad(errors: Sequence[DistError]) -> str:
    """Return the state of an object that failed with some errors."""
    return "interrupted" if all(isinstance(error, Stopped) for error in errors) else "failed"


def _counts(rows: Sequence[_Row], *, done: str) -> list[str]:
    """Return how many images and descriptors are there, and how many images failed; `done` follows the count of images."""
    images, descriptors = [row for row in rows if row.total is None], [row for row in rows if row.total is not None]
    there = [f"{sum(row.is_there for row in images)}/{format_count(len(images), 'image')}{done}"] if images else []
    there += [f"{count} {state}" for state in _BAD if (count := sum(row.state == state for row in images))]
    of_descriptors = f"{sum(row.is_there for row in descriptors)}/{format_count(len(descriptors), 'descriptor')}"
    return [*([", ".join(there)] if there else []), *([of_descriptors] if descriptors else [])]


def _footer(parts: Sequence[str], note: str, width: int) -> Text:
    """One line: a note, and before it as many parts, the first ones, as there is room for."""
    lines = ("  ".join(filter(None, (*parts[:number], note))) for number in range(len(parts), -1, -1))
    line = next((line for line in lines if len(line) <= width), note)
    return Text(line, style="dim", no_wrap=True, overflow="ellipsis")


@dataclass(frozen=True, slots=True)
class _Columns:
    """How many cells there are for labels, amounts and bars: for all rows, so that no row that comes or goes moves them."""

    label: int
    amount: int
    bar: int

    @classmethod
    def of(cls, rows: Sequence[_Row], width: int) -> Self:
        """The columns of a frame; with little room bars are short, then there are none, then labels are cut."""
        label = max((len(row.label) for row in rows), default=0)
        totals = max((len(size(row.total)) for row in rows if row.total), default=0)
        amount = _SIZE_CELLS + 1 + totals
        left = width - _STATE_CELLS - amount - 2
        bar = min(_BAR_CELLS, left - label - 1)
        return cls(label=max(1, min(label, left)), amount=amount, bar=bar if bar >= _LEAST_BAR_CELLS else 0)

    def table(self) -> Table:
        """A table without rows."""
        table = Table.grid(padding=(0, 1))
        for cells in (self.label, _STATE_CELLS, self.amount, *([self.bar] if self.bar else [])):
            table.add_column(width=cells, no_wrap=True)
        return table

    def cells(self, row: _Row) -> tuple[RenderableType, ...]:
        """What a row has in these columns; of a label that is cut the end stays, which tells tags apart."""
        label = row.label if len(row.label) <= self.label else f"…{row.label[len(row.label) - self.label + 1 :]}"
        moves = row.state in _UNDER_WAY and row.total
        amount = f"{size(row.total):>{_SIZE_CELLS}}" if row.total else ""
        if moves:
            amount = f"{size(row.offset):>{_SIZE_CELLS}}/{size(row.total or 0)}"
        bar = ProgressBar(total=row.total, completed=row.offset, width=self.bar) if moves and self.bar else ""
        told = (Text(label), Text(row.state, style=_STYLES.get(row.state, "bold")), Text(amount))
        return (*told, bar) if self.bar else told


def _fitting(rows: list[_Row], height: int) -> list[_Row]:
    """As many rows as a frame has room for, in their order."""
    if len(rows) <= height:
        return rows
    kept = set(map(id, sorted(rows, key=lambda row: row.rank)[: max(height, 1)]))
    return [row for row in rows if id(row) in kept]
