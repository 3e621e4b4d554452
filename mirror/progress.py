"""Who listens to a run while it goes.

A run writes to its log. A command line puts a listener of its own beside that with `listening`.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Lock
from uuid import UUID

from prefect_dist.mirror.run_report import Report
from prefect_dist.ocispec import Descriptor
from prefect_dist.ocispec.errors import DistError
from prefect_dist.ocispec.units import duration, format_count, size
from prefect_dist.transfer.content import Receipt
from prefect_dist.transfer.image_report import Failure, ImageEnd
from prefect_dist.transfer.listening import Listener, State
from prefect_dist.transfer.session import Untold


class LogListener:
    """Writes one line per event to a logger."""

    def __init__(self, logger: logging.Logger | logging.LoggerAdapter[logging.Logger]) -> None:
        self._log = logger

    def note(self, text: str) -> None:
        """Say it."""
        self._log.info("%s", text)

    def planned(self, count: int, total: int) -> None:
        """Say how far planning is."""
        self._log.info("looked into %d of %s", count, format_count(total, "image"))

    def untold(self, name: str, what: Untold) -> None:
        """The report says why."""

    def resolving(self, name: str) -> None:
        """Nothing to say yet."""

    def resolved(self, name: str, root: Descriptor) -> None:
        """Say what the name stands for."""
        self._log.info("%s is %s", name, root)

    def waiting(self, descriptor: Descriptor) -> None:
        """Nothing to say yet."""

    def advanced(self, descriptor: Descriptor, offset: int, gained: int) -> None:
        """A log is no place for every piece."""

    def ended(self, descriptor: Descriptor, receipt: Receipt) -> None:
        """Say how the content came to be there."""
        if receipt.status == "existed":
            self._log.info("%s existed, %s", descriptor, size(descriptor.size))
        else:
            moved, took = size(receipt.transferred), duration(receipt.seconds)
            self._log.info("%s %s, %s in %s", descriptor, receipt.status, moved, took)

    def failed(self, descriptor: Descriptor, error: DistError) -> None:
        """Say what went wrong."""
        self._log.error("%s failed: %s", descriptor, error)

    def did(self, name: str, what: str) -> None:
        """Say what was done."""
        self._log.info("%s %s", name, what)

    def fell_short(self, message: str) -> None:
        """Say what went wrong."""
        self._log.error("%s", message)

    def left_alone(self, server: str, seconds: float) -> None:
        """Say for how long nobody asks there."""
        self._log.warning("%s", waiting_for(server, seconds))

    def finished(self, image: ImageEnd) -> None:
        """Say how the image came out."""
        if image.failures:
            self._log.error(
                "%s failed with %s: %s", image.name, format_count(len(image.failures), "error"), _messages(image.failures)
            )
        else:
            self._log.info("%s complete: %s", image.name, image.told())

    def recording(self) -> None:
        """Log nothing: the results are logged soon."""


class Both:
    """Tells two listeners."""

    def __init__(self, one: Listener, other: Listener) -> None:
        self._listeners = (one, other)

    def note(self, text: str) -> None:
        """Pass it on."""
        for listener in self._listeners:
            listener.note(text)

    def planned(self, count: int, total: int) -> None:
        """Pass it on."""
        for listener in self._listeners:
            listener.planned(count, total)

    def untold(self, name: str, what: Untold) -> None:
        """Pass it on."""
        for listener in self._listeners:
            listener.untold(name, what)

    def resolving(self, name: str) -> None:
        """Pass it on."""
        for listener in self._listeners:
            listener.resolving(name)

    def resolved(self, name: str, root: Descriptor) -> None:
        """Pass it on."""
        for listener in self._listeners:
            listener.resolved(name, root)

    def waiting(self, descriptor: Descriptor) -> None:
        """Pass it on."""
        for listener in self._listeners:
            listener.waiting(descriptor)

    def advanced(self, descriptor: Descriptor, offset: int, gained: int) -> None:
        """Pass it on."""
        for listener in self._listeners:
            listener.advanced(descriptor, offset, gained)

    def ended(self, descriptor: Descriptor, receipt: Receipt) -> None:
        """Pass it on."""
        for listener in self._listeners:
            listener.ended(descriptor, receipt)

    def failed(self, descriptor: Descriptor, error: DistError) -> None:
        """Pass it on."""
        for listener in self._listeners:
            listener.failed(descriptor, error)

    def did(self, name: str, what: str) -> None:
        """Pass it on."""
        for listener in self._listeners:
            listener.did(name, what)

    def fell_short(self, message: str) -> None:
        """Pass it on."""
        for listener in self._listeners:
            listener.fell_short(message)

    def left_alone(self, server: str, seconds: float) -> None:
        """Pass it on."""
        for listener in self._listeners:
            listener.left_alone(server, seconds)

    def finished(self, image: ImageEnd) -> None:
        """Pass it on."""
        for listener in self._listeners:
            listener.finished(image)

    def recording(self) -> None:
        """Pass it on."""
        for listener in self._listeners:
            listener.recording()


@dataclass(slots=True)
class _Piece:
    """Some content, and how many of its bytes are there; `over` is what all was done with, also where it had no bytes."""

    size: int
    there: int = 0
    state: State = "open"


class Advance:
    """Counts how far a run is, of what is known to be done by now: that grows, so that the fraction may fall. Thread-safe.

    What failed is not done, and of its bytes those count that are there. `planning` is the share of the way that planning is,
    0 to 1.
    """

    # What asking for a piece of content, or an image, costs beside its bytes: about as much as so many more.
    _EACH_BYTES = 1024**2

    def __init__(self, *, planning: float = 0) -> None:
        self._share, self._guard = planning, Lock()
        self._planned = 0, 0
        self._asked = 0
        self._fell_short = False
        self._untold: dict[str, Untold] = {}
        self._images: dict[str, State] = {}
        self._content: dict[object, _Piece] = {}

    def fraction(self) -> float:
        """How much is done: 0 to 1. Of what cannot be told nobody knows the size: all else is the part of all that is told."""
        with self._guard:
            count, total = self._planned
            pieces = list(self._content.values())
            things = [*self._images.values(), *(piece.state for piece in pieces)]
            untold = list(self._untold.values())
            asked = max(self._asked, untold.count("image")) + untold.count("list")
        known = self._EACH_BYTES * len(things) + sum(piece.size for piece in pieces)
        over = self._EACH_BYTES * things.count("over") + sum(piece.there for piece in pieces)
        told = 1 - len(untold) / asked if untold else 1
        return told * (self._share * (count / total if total else 0) + (1 - self._share) * (over / known if known else 0))

    def words(self) -> str:
        """How far it is: images, content, bytes."""
        with self._guard:
            count, total = self._planned
            untold, images = len(self._untold), list(self._images.values())
            pieces = list(self._content.values())
        told = [f"looked into {count} of {format_count(total, 'image')}"] if total else []
        told += [f"{untold} cannot be told"] if untold else []
        told += [f"{images.count('over')} of {format_count(len(images), 'image')} finished{_failed(images)}"] if images else []
        if pieces:
            states, there, known = [p.state for p in pieces], sum(p.there for p in pieces), sum(p.size for p in pieces)
            told += [f"{states.count('over')} of {format_count(len(pieces), 'piece')} of content{_failed(states)}"]
            told += [f"{size(there)} of {size(known)}"]
        return ", ".join(told) or "nothing to do"

    def lacks(self) -> bool:
        """Whether something failed, or cannot be told."""
        with self._guard:
            states = {*self._images.values(), *(piece.state for piece in self._content.values())}
            return self._fell_short or bool(self._untold) or "failed" in states

    def note(self, text: str) -> None:
        """Nothing that is counted."""

    def planned(self, count: int, total: int) -> None:
        """Take note."""
        with self._guard:
            self._planned = count, total
            self._asked = max(self._asked, total)  # what was repaired is looked into again

    def untold(self, name: str, what: Untold) -> None:
        """Take note."""
        with self._guard:
            self._untold[name] = what

    def resolving(self, name: str) -> None:
        """One more image."""
        with self._guard:
            self._images.setdefault(name, "open")

    def resolved(self, name: str, root: Descriptor) -> None:  # noqa: ARG002 - what it consists of is told
        """One more image, if it was not known before."""
        self.resolving(name)

    def waiting(self, descriptor: Descriptor) -> None:
        """One more piece of content."""
        with self._guard:
            self._content.setdefault(descriptor.key, _Piece(descriptor.size))

    def advanced(self, descriptor: Descriptor, offset: int, gained: int) -> None:  # noqa: ARG002 - what is there counts
        """Take note of how much is there; what is read for a plan, or sent on once it is there, does not count."""
        with self._guard:
            piece = self._content.get(descriptor.key)
            if piece is not None and piece.state != "over" and offset < piece.size:  # whole is what ended
                piece.there = offset

    def ended(self, descriptor: Descriptor, receipt: Receipt) -> None:  # noqa: ARG002 - however it came
        """All of it is there."""
        with self._guard:
            self._content[descriptor.key] = _Piece(descriptor.size, descriptor.size, "over")

    def failed(self, descriptor: Descriptor, error: DistError) -> None:  # noqa: ARG002 - the report says why
        """Take note; what is there stays there, such as a manifest of which nobody knows what refers to it."""
        with self._guard:
            self._content.setdefault(descriptor.key, _Piece(descriptor.size)).state = "failed"

    def did(self, name: str, what: str) -> None:
        """Nothing that is counted."""

    def fell_short(self, message: str) -> None:  # noqa: ARG002 - the report says why
        """Take note: not all is done."""
        self._fell_short = True

    def left_alone(self, server: str, seconds: float) -> None:
        """Nothing that is counted."""

    def finished(self, image: ImageEnd) -> None:
        """Nothing more happens to an image."""
        with self._guard:
            self._images[image.name] = "failed" if image.failures else "over"

    def recording(self) -> None:
        """Count nothing."""


def waiting_for(server: str, seconds: float) -> str:
    """Return the line for a server that is not asked for some seconds, which may be a day."""
    until = datetime.now(UTC) + timedelta(seconds=seconds)
    return f"{server} has too many requests and is not asked until {until:%Y-%m-%d %H:%M:%S} UTC, for {duration(seconds)}"


def _failed(states: Sequence[State]) -> str:
    return f", {failed} failed" if (failed := states.count("failed")) else ""


def _messages(failures: tuple[Failure, ...]) -> str:
    return "; ".join(dict.fromkeys(failure.message for failure in failures))


_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


def told(log: Listener) -> Listener:
    """Whom a run tells: its log, and whoever listens to runs started from here."""
    other = _LISTENER.get()
    return log if other is None else Both(log, other)


@contextmanager
def listening(to: Listener) -> Iterator[None]:
    """Have runs that are started in this block report to a listener."""
    token = _LISTENER.set(to)
    try:
        yield
    finally:
        _LISTENER.reset(token)


_REPORTS: ContextVar[list[tuple[UUID, Report]] | None] = ContextVar("reports", default=None)


@contextmanager
def collected_reports() -> Iterator[list[tuple[UUID, Report]]]:
    """Collect the id and the report of each run that is started in this block, as soon as its work is done.

    So a caller has the report even if Prefect's API does not take the final state of the run.
    """
    reports = list[tuple[UUID, Report]]()
    token = _REPORTS.set(reports)
    try:
        yield reports
    finally:
        _REPORTS.reset(token)


def collect(flow_run_id: UUID, report: Report) -> None:
    """Give a report to `collected_reports`, if a caller collects them."""
    reports = _REPORTS.get()
    if reports is not None:
        reports.append((flow_run_id, report))
