"""Progress of a run on standard error: a live table on a terminal, plain lines elsewhere."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Self, TextIO, cast, get_args

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from prefect_dist.cli.options import Output
from prefect_dist.cli.output import ErrorStream
from prefect_dist.mirror.progress import describe_hashing, describe_throttling
from prefect_dist.ocispec import Descriptor
from prefect_dist.ocispec.errors import DistError
from prefect_dist.ocispec.units import duration, format_count, size
from prefect_dist.transfer.cancellation import Stopped
from prefect_dist.transfer.events import (
    BlobsHashed,
    ContentAdvanced,
    ContentFailed,
    ContentFinished,
    ContentFound,
    Event,
    ImageEnded,
    ImageResolved,
    ImageResolving,
    Note,
    Notify,
    Planned,
    Recording,
    StepDone,
    Throttled,
    ignore_event,
)
from prefect_dist.transfer.image_report import ImageReport

_FRAMES_PER_S = 8
# Largest and smallest width of a bar. With less room, bars are left out.
_BAR_CELLS, _MIN_BAR_CELLS = 30, 5
# Widths of the longest size and state, such as "1023.9 MiB" and "downloading". With fixed widths, columns do not move.
_SIZE_CELLS, _STATE_CELLS = 10, 11
# A terminal echoes Ctrl-C as "^C" after the footer. Without room for the echo, the terminal would add a line to the frame.
_ECHO_CELLS = 2
# Lines of a frame in addition to its rows.
_MARGIN = 4
Doing = Literal["downloading", "uploading", "mirroring"]
_MOVING = get_args(Doing)
_ENDED_EARLY = ("failed", "interrupted")
_STYLES = {"failed": "red", "interrupted": "yellow", "exists": "cyan", "done": "green", "waiting": "dim"}


@dataclass(slots=True)
class _Row:
    """The state of a reference or descriptor. `total` and `offset` count the bytes of a descriptor."""

    label: str
    state: str
    total: int | None = None
    offset: int = 0

    @property
    def is_finished(self) -> bool:
        return self.is_present or self.state in _ENDED_EARLY

    @property
    def is_present(self) -> bool:
        return self.state in ("done", "exists")

    @property
    def rank(self) -> int:
        """Sort key: in flight, failed, not started, done. A small terminal does not show the last rows."""
        if self.state in _ENDED_EARLY:
            return 1
        if self.total is None:
            return 4 if self.is_finished else 0 if self.state == "resolving" else 2
        return 4 if self.is_finished else 3 if self.state == "waiting" else 0


class LiveDisplay:
    """A row per reference and descriptor, and a footer with the totals of the run. Thread-safe."""

    def __init__(self, console: Console, doing: Doing) -> None:
        self._console, self._doing = console, doing
        self._guard = threading.Lock()
        self._rows: dict[object, _Row] = {}
        self._begun, self._started = False, time.monotonic()
        self._moved = 0
        self._note = ""
        self._is_recording = False
        self._waits: dict[str, tuple[float, str]] = {}

    def __call__(self, event: Event) -> None:
        """Show an event in the next frame."""
        if isinstance(event, Note):  # a signal handler may send a note in the thread that holds the lock
            self._note = event.text
            return
        with self._guard:
            if isinstance(event, ContentAdvanced):  # the most frequent event
                self._advance(event.descriptor, event.offset, event.gained)
            else:
                self._show(event)

    def __rich__(self) -> RenderableType:
        width = self._console.width
        with self._guard:
            rows, moved = list(self._rows.values()), self._moved
            counts, columns = _counts(rows, done="" if self._is_recording else " done"), _Columns.of(rows, width)
            shown = _fit_rows(rows, self._console.height - _MARGIN)
            cells = [columns.cells(row) for row in shown]
            waits = [text for until, text in self._waits.values() if until > time.monotonic()]
        table = columns.table()
        for row in cells:
            table.add_row(*row)
        seconds = time.monotonic() - self._started
        figures = [size(moved), f"{size(moved / max(seconds, 0.001))}/s"] if rows else []
        footer = _footer([*counts, duration(seconds), *figures], self._note, width - _ECHO_CELLS)
        return Group(table, *(Text(text, style="yellow") for text in waits), footer)

    def _show(self, event: Event) -> None:
        match event:
            case Planned(count, total):
                self._begin()
                self._note = f"{count} of {format_count(total, 'image')} compared"
            case BlobsHashed():
                self._begin()
                self._note = describe_hashing(event)
            case ImageResolving(name) | ImageResolved(name):
                self._begin()
                self._show_image(name, "resolving" if isinstance(event, ImageResolving) else "in progress")
            case ContentFound(descriptor):
                self._rows[descriptor.key] = _Row(_label(descriptor), "waiting", descriptor.size)
            case ContentFinished(descriptor, receipt):
                state = "exists" if receipt.status == "existed" else "done"
                self._rows[descriptor.key] = _Row(_label(descriptor), state, descriptor.size, descriptor.size)
            case ContentFailed(descriptor, error):
                # A manifest that the store has gets its first row here if the list of its referrers failed.
                row = self._rows.setdefault(descriptor.key, _Row(_label(descriptor), "", descriptor.size))
                row.state = _failed_state([error])
            case Throttled(server, seconds):
                self._waits[server] = (time.monotonic() + seconds, describe_throttling(server, seconds))
            case ImageEnded(image):
                self._end(image)
            case Recording():  # an image counts as done only after its result is recorded
                self._is_recording, self._note = True, "recording results"

    def _begin(self) -> None:
        """Start the clock of the run with the first event."""
        if not self._begun:
            self._begun, self._started = True, time.monotonic()
        self._note = ""

    def _advance(self, descriptor: Descriptor, offset: int, gained: int) -> None:
        self._moved += gained
        row = self._rows.get(descriptor.key)  # content that is read for the plan has no row
        if row is not None and not row.is_present:  # existing content may be uploaded to several targets
            row.state, row.offset = self._doing, max(offset, row.offset if self._doing == "mirroring" else 0)

    def _end(self, image: ImageReport) -> None:
        if image.failures:
            self._show_image(image.name, _failed_state([failure.error for failure in image.failures]))
        else:
            self._show_image(image.name, "done" if image.has_moved else "exists")

    def _show_image(self, name: str, state: str) -> None:
        """Set the state of an image. An image that failed for one target stays failed, although others may follow."""
        row = self._rows.setdefault(name, _Row(name, state))
        if row.state != "failed":
            row.state = state


class PlainLines:
    """Prints a line per finished image and per wait, for logs. The report prints the causes of failures."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._done: dict[str, list[str]] = {}

    def __call__(self, event: Event) -> None:
        """Print the line of an event. Some events have no line."""
        match event:
            case Note(text):
                self._print(text)
            case Planned(count, total):
                self._print(f"{count} of {format_count(total, 'image')} compared")
            case BlobsHashed():
                self._print(describe_hashing(event))
            case StepDone(name, text):
                self._done.setdefault(name, []).append(text)  # for the line of the image
            case Throttled(server, seconds):
                self._print(describe_throttling(server, seconds))
            case ImageEnded(image):
                done = "".join(f", {text}" for text in self._done.pop(image.name, ()))
                self._print(f"{image.name} {'failed' if image.failures else 'complete'}: {image.describe_counts()}{done}")

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False, markup=False, emoji=False)


@contextlib.contextmanager
def display(output: Output, *, quiet: bool, doing: Doing = "downloading") -> Iterator[Notify]:
    """Yield a listener for progress: a live table on a terminal, otherwise lines. `quiet` and JSON output have no progress."""
    console = Console(file=cast("TextIO", ErrorStream()))
    if quiet or not console.is_terminal:
        yield ignore_event if quiet or output == "json" else PlainLines(console)
        return
    live = LiveDisplay(console, doing)
    vanishes = doing == "mirroring"  # the table of all images, which follows, has the same facts
    with Live(
        live,
        console=console,
        refresh_per_second=_FRAMES_PER_S,
        transient=vanishes,
        redirect_stdout=False,
        redirect_stderr=False,
    ):
        yield live


def _label(descriptor: Descriptor) -> str:
    return f"{descriptor.kind:<8} {descriptor.digest.short}"


def _failed_state(errors: Sequence[DistError]) -> str:
    """Return the state of an object with `errors`."""
    return "interrupted" if all(isinstance(error, Stopped) for error in errors) else "failed"


def _counts(rows: Sequence[_Row], *, done: str) -> list[str]:
    """Return the counts of present and failed images, and of present descriptors. `done` follows the count of images."""
    images, descriptors = [row for row in rows if row.total is None], [row for row in rows if row.total is not None]
    of_images = [f"{sum(row.is_present for row in images)}/{format_count(len(images), 'image')}{done}"] if images else []
    of_images += [f"{count} {state}" for state in _ENDED_EARLY if (count := sum(row.state == state for row in images))]
    of_descriptors = f"{sum(row.is_present for row in descriptors)}/{format_count(len(descriptors), 'descriptor')}"
    return [*([", ".join(of_images)] if of_images else []), *([of_descriptors] if descriptors else [])]


def _footer(parts: Sequence[str], note: str, width: int) -> Text:
    """Return a line with as many of the first parts as fit, and the note."""
    lines = ("  ".join(filter(None, (*parts[:number], note))) for number in range(len(parts), -1, -1))
    line = next((line for line in lines if len(line) <= width), note)
    return Text(line, style="dim", no_wrap=True, overflow="ellipsis")


@dataclass(frozen=True, slots=True)
class _Columns:
    """Widths of the columns in cells. The widths depend on all rows, so columns do not move when the visible rows change."""

    label: int
    amount: int
    bar: int

    @classmethod
    def of(cls, rows: Sequence[_Row], width: int) -> Self:
        """Return the columns of a frame. In a narrow terminal, bars are shortened, then left out; then labels are cut."""
        label = max((len(row.label) for row in rows), default=0)
        totals = max((len(size(row.total)) for row in rows if row.total), default=0)
        amount = _SIZE_CELLS + 1 + totals
        left = width - _STATE_CELLS - amount - 2
        bar = min(_BAR_CELLS, left - label - 1)
        return cls(label=max(1, min(label, left)), amount=amount, bar=bar if bar >= _MIN_BAR_CELLS else 0)

    def table(self) -> Table:
        """Return a table without rows."""
        table = Table.grid(padding=(0, 1))
        for cells in (self.label, _STATE_CELLS, self.amount, *([self.bar] if self.bar else [])):
            table.add_column(width=cells, no_wrap=True)
        return table

    def cells(self, row: _Row) -> tuple[RenderableType, ...]:
        """Return the cells of a row. A label is cut at the beginning, since the tag at the end distinguishes images."""
        label = row.label if len(row.label) <= self.label else f"…{row.label[len(row.label) - self.label + 1 :]}"
        is_moving = row.state in _MOVING and row.total
        amount = f"{size(row.total):>{_SIZE_CELLS}}" if row.total else ""
        if is_moving:
            amount = f"{size(row.offset):>{_SIZE_CELLS}}/{size(row.total or 0)}"
        bar = ProgressBar(total=row.total, completed=row.offset, width=self.bar) if is_moving and self.bar else ""
        cells = (Text(label), Text(row.state, style=_STYLES.get(row.state, "bold")), Text(amount))
        return (*cells, bar) if self.bar else cells


def _fit_rows(rows: list[_Row], height: int) -> list[_Row]:
    """Return the most important rows for a frame of `height` lines, in the given order."""
    if len(rows) <= height:
        return rows
    kept = set(map(id, sorted(rows, key=lambda row: row.rank)[: max(height, 1)]))
    return [row for row in rows if id(row) in kept]
