"""What a person sees of a run while it goes: a live table on a terminal, plain lines elsewhere, all on standard error."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flows.progress import waiting_for
from flows.report import Ended
from ocispec import Descriptor
from ocispec.units import counted, duration, size
from tasks.session import Untold
from tasks.transfer import Receipt

_FRAMES_PER_S = 8
_BAR_CELLS = 30
# Lines that a frame needs beside its rows.
_MARGIN = 4
Doing = Literal["downloading", "uploading", "mirroring"]
_UNDER_WAY = get_args(Doing)
_STYLES = {"failed": "red", "exists": "cyan", "done": "green", "waiting": "dim"}


@dataclass(slots=True)
class _Row:
    """One reference or descriptor: its state, and how many of its bytes are there. A reference has none."""

    label: str
    state: str
    total: int | None = None
    offset: int = 0

    @property
    def over(self) -> bool:
        return self.is_there or self.state == "failed"

    @property
    def is_there(self) -> bool:
        return self.state in ("done", "exists")

    @property
    def rank(self) -> int:
        """Where it comes when there is no room for all: what moves, then what failed, what is to come, what is over."""
        if self.state == "failed":
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
        self._waits: dict[str, tuple[float, str]] = {}

    def note(self, text: str) -> None:
        """Say what is being waited for."""
        self._note = text

    def planned(self, count: int, total: int) -> None:
        """Show how far planning is."""
        self._begin()
        self._note = f"looked into {count} of {counted(total, 'image')}"

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
        self._set(descriptor.content, _Row(_label(descriptor), "waiting", descriptor.size))

    def advanced(self, descriptor: Descriptor, offset: int, gained: int) -> None:
        """Show how far a transfer is."""
        with self._guard:
            self._moved += gained
            row = self._rows.get(descriptor.content)  # what is read to make a plan has none
            if row is not None and not row.is_there:  # what is there may still be sent on, to one place after another
                row.state, row.offset = self._doing, max(offset, row.offset if self._doing == "mirroring" else 0)

    def ended(self, descriptor: Descriptor, receipt: Receipt) -> None:
        """Show content that is in the store."""
        state = "exists" if receipt.status == "existed" else "done"
        self._set(descriptor.content, _Row(_label(descriptor), state, descriptor.size, descriptor.size))

    def failed(self, descriptor: Descriptor, message: str) -> None:  # noqa: ARG002 - the report tells why
        """Show content that could not be had."""
        with self._guard:
            self._rows[descriptor.content].state = "failed"

    def did(self, name: str, what: str) -> None:
        """The row of the image says when all is done."""

    def left_alone(self, server: str, seconds: float) -> None:
        """Show for how long a server is not asked, until that is over."""
        with self._guard:
            self._waits[server] = (time.monotonic() + seconds, waiting_for(server, seconds))

    def finished(self, image: Ended) -> None:
        """Show an image that could not be had, or of which all was there."""
        with self._guard:
            row = self._rows[image.name]
            row.state = "failed" if image.failures else "done" if image.moved else "exists"

    def __rich__(self) -> RenderableType:
        with self._guard:
            rows, moved = list(self._rows.values()), self._moved
            shown = [(row.label, row.state, row.offset, row.total) for row in _fitting(rows, self._console.height - _MARGIN)]
            waits = [text for until, text in self._waits.values() if until > time.monotonic()]
        seconds = time.monotonic() - self._started
        table = Table.grid(padding=(0, 1))
        for label, state, offset, total in shown:
            table.add_row(Text(label, overflow="ellipsis", no_wrap=True), *_cells(state, offset, total))
        footer = [duration(seconds)]
        if rows:
            footer = [_counts(rows), *footer, size(moved), f"{size(moved / max(seconds, 0.001))}/s"]
        return Group(
            table, *(Text(text, style="yellow") for text in waits), Text("  ".join([*footer, self._note]), style="dim")
        )

    def _begin(self) -> None:
        """Start the clock of the run with the first thing that happens."""
        if not self._begun:
            self._begun, self._started = True, time.monotonic()
        self._note = ""

    def _set(self, key: object, row: _Row) -> None:
        with self._guard:
            self._rows[key] = row


class PlainLines:
    """One line per image, and one per failure: for logs of other programs."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def note(self, text: str) -> None:
        """Say what is being waited for."""
        self._say(text)

    def planned(self, count: int, total: int) -> None:
        """Say how far planning is."""
        self._say(f"looked into {count} of {counted(total, 'image')}")

    def untold(self, name: str, what: Untold) -> None:
        """The report says why."""

    def resolving(self, name: str) -> None:
        """Nothing to say yet."""

    def resolved(self, name: str, root: Descriptor) -> None:
        """Say what a reference stands for."""
        self._say(f"{name} is {root}")

    def waiting(self, descriptor: Descriptor) -> None:
        """Nothing to say yet."""

    def advanced(self, descriptor: Descriptor, offset: int, gained: int) -> None:
        """A log is no place for every piece."""

    def ended(self, descriptor: Descriptor, receipt: Receipt) -> None:
        """Say how content came to be there."""
        if receipt.status == "existed":
            self._say(f"{descriptor} exists")
        else:
            self._say(f"{descriptor} {receipt.status}, {size(receipt.transferred)} in {duration(receipt.seconds)}")

    def failed(self, descriptor: Descriptor, message: str) -> None:
        """Say what went wrong."""
        self._say(f"{descriptor} failed: {message}")

    def did(self, name: str, what: str) -> None:
        """Say what was done."""
        self._say(f"{name} {what}")

    def left_alone(self, server: str, seconds: float) -> None:
        """Say for how long a server is not asked."""
        self._say(waiting_for(server, seconds))

    def finished(self, image: Ended) -> None:
        """Say how an image came out."""
        self._say(f"{image.name} {image.status}: {image.told()}")

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)


class Silence(PlainLines):
    """Nothing: the one JSON object at the end says all."""

    def _say(self, text: str) -> None:
        pass


Display = LiveDisplay | PlainLines


@contextlib.contextmanager
def display(*, quiet: bool, doing: Doing = "downloading") -> Iterator[Display]:
    """The display that fits standard error; `quiet` leaves out what is not for a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Silence(console) if quiet else PlainLines(console)
        return
    live = LiveDisplay(console, doing)
    gone = doing == "mirroring"  # its last rows say nothing that the table of all images, which follows, does not
    with Live(
        live, console=console, refresh_per_second=_FRAMES_PER_S, transient=gone, redirect_stdout=False, redirect_stderr=False
    ):
        yield live


def _label(descriptor: Descriptor) -> str:
    return f"{descriptor.kind:<8} {descriptor.digest.short}"


def _counts(rows: Sequence[_Row]) -> str:
    """How much is there, of images and of descriptors, and how many images failed."""
    parts = {"image": [row for row in rows if row.total is None], "descriptor": [row for row in rows if row.total is not None]}
    told = [f"{sum(row.is_there for row in part)} of {counted(len(part), what)}" for what, part in parts.items() if part]
    failed = sum(row.state == "failed" for row in parts["image"])
    return f"{', '.join(told)} done" + (f", {counted(failed, 'image')} failed" if failed else "")


def _cells(state: str, offset: int, total: int | None) -> tuple[RenderableType, ...]:
    style = _STYLES.get(state, "bold")
    amount = f"{size(offset):>10}/{size(total)}" if total and state in _UNDER_WAY else f"{size(total):>10}" if total else ""
    bar = ProgressBar(total=total, completed=offset, width=_BAR_CELLS) if state in _UNDER_WAY and total else ""
    return Text(state, style=style), Text(amount, no_wrap=True), bar


def _fitting(rows: list[_Row], height: int) -> list[_Row]:
    """As many rows as a frame has room for, in their order."""
    if len(rows) <= height:
        return rows
    kept = set(map(id, sorted(rows, key=lambda row: row.rank)[: max(height, 1)]))
    return [row for row in rows if id(row) in kept]
