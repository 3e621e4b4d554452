"""The listeners of a run for events: `LogWriter` and `ProgressCounter`. A command adds another listener with `notify_also`."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import Literal
from uuid import UUID

from prefect_dist.mirror.report import RunReport
from prefect_dist.ocispec import Descriptor
from prefect_dist.ocispec.units import duration, format_count, size
from prefect_dist.transfer.content import Receipt
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
    ShardsAdvanced,
    StepDone,
    StepFailed,
    Throttled,
    Unresolved,
    combine_listeners,
)
from prefect_dist.transfer.image_report import Failure, ImageReport

State = Literal["open", "over", "failed"]


class LogWriter:
    """A listener that writes lines to a logger, at most one per event."""

    def __init__(self, logger: logging.Logger | logging.LoggerAdapter[logging.Logger]) -> None:
        self._log = logger

    def __call__(self, event: Event) -> None:
        """Write the line of an event, if the event has a line."""
        if not isinstance(event, ContentAdvanced):  # a frequent event without a line
            self._write(event)

    def _write(self, event: Event) -> None:
        match event:
            case Note(text):
                self._log.info("%s", text)
            case Planned(count, total):
                self._log.info("compared %d of %s with their targets", count, format_count(total, "image"))
            case BlobsHashed():
                self._log.info("%s", describe_hashing(event))
            case ImageResolved(name, root):
                self._log.info("%s resolves to %s", name, root)
            case StepDone(name, text):
                self._log.info("%s %s", name, text)
            case StepFailed(error, step):
                self._log.error("%s%s", "" if step is None else f"{step}: ", error)
            case Throttled(server, seconds):
                self._log.warning("%s", describe_throttling(server, seconds))
            case ImageEnded(image):
                self._log_end(image)
            case _:
                self._write_content(event)

    def _write_content(self, event: Event) -> None:
        match event:
            case ContentFinished(descriptor, receipt):
                self._log.info("%s %s", descriptor, _describe_receipt(descriptor, receipt))
            case ContentFailed(descriptor, error):
                self._log.error("%s failed: %s", descriptor, error)

    def _log_end(self, image: ImageReport) -> None:
        if image.failures:
            errors = format_count(len(image.failures), "error")
            self._log.error("%s failed with %s: %s", image.name, errors, _messages(image.failures))
        else:
            self._log.info("%s complete: %s", image.name, image.describe_counts())


@dataclass(slots=True)
class _Piece:
    """The size of some content, the number of transferred bytes, and the state. The state `over` is final."""

    size: int
    there: int = 0
    state: State = "open"


class ProgressCounter:
    """A listener that counts the completed work and the known work. Thread-safe.

    The known work grows during a run, so the fraction may fall. Failed work is not complete, but its transferred bytes count.
    `planning` is the share of planning in the whole work, 0 to 1.
    """

    # The requests for a descriptor, or for an image, count as much as this number of bytes.
    _EACH_BYTES = 1024**2

    def __init__(self, *, planning: float = 0) -> None:
        self._share, self._guard = planning, Lock()
        self._planned = 0, 0
        self._shared = 0, 0
        self._asked = 0
        self._has_failed_step = False
        self._hashed: BlobsHashed | None = None
        self._unresolved: dict[str, str] = {}  # the kind of each unresolved object, by its name
        self._images: dict[str, State] = {}
        self._content: dict[object, _Piece] = {}

    def __call__(self, event: Event) -> None:
        """Count an event."""
        with self._guard:
            if isinstance(event, ContentAdvanced):  # the most frequent event
                self._advance(event.descriptor, event.offset)
            else:
                self._count(event)

    def fraction(self) -> float:
        """Return the completed fraction of the known work, 0 to 1.

        The size of unresolved objects is not known. So the fraction is scaled down by the share of unresolved objects.
        """
        with self._guard:
            count, total = self._planned
            shared, to_share = self._shared
            pieces = list(self._content.values())
            things = [*self._images.values(), *(piece.state for piece in pieces)]
            unresolved = list(self._unresolved.values())
            asked = max(self._asked, unresolved.count("image")) + unresolved.count("list")
            hashed, to_hash = (0, 0) if self._hashed is None else (self._hashed.size, self._hashed.total_size)
        known = to_hash + self._EACH_BYTES * (len(things) + to_share) + sum(piece.size for piece in pieces)
        over = hashed + self._EACH_BYTES * (things.count("over") + shared) + sum(piece.there for piece in pieces)
        resolved = 1 - len(unresolved) / asked if unresolved else 1
        return resolved * (self._share * (count / total if total else 0) + (1 - self._share) * (over / known if known else 0))

    def words(self) -> str:
        """Return the counts of hashed blobs, images, descriptors and bytes as text."""
        with self._guard:
            hashed = self._hashed
            count, total = self._planned
            shared, to_share = self._shared
            unresolved, images = len(self._unresolved), list(self._images.values())
            pieces = list(self._content.values())
        parts = [] if hashed is None else [describe_hashing(hashed)]
        parts += [f"{count} of {format_count(total, 'image')} compared"] if total else []
        parts += [f"{unresolved} unresolved"] if unresolved else []
        parts += [f"{shared} of {format_count(to_share, 'image')} in ended shards"] if to_share else []
        parts += (
            [f"{images.count('over')} of {format_count(len(images), 'image')} finished{_failed_count(images)}"]
            if images
            else []
        )
        if pieces:
            states, there, known = [p.state for p in pieces], sum(p.there for p in pieces), sum(p.size for p in pieces)
            parts += [f"{states.count('over')} of {format_count(len(pieces), 'descriptor')}{_failed_count(states)}"]
            parts += [f"{size(there)} of {size(known)}"]
        return ", ".join(parts) or "nothing to do"

    def lacks(self) -> bool:
        """Return true if some work failed or some objects are unresolved."""
        with self._guard:
            states = {*self._images.values(), *(piece.state for piece in self._content.values())}
            return self._has_failed_step or bool(self._unresolved) or "failed" in states

    def _count(self, event: Event) -> None:
        match event:
            case Planned(count, total):
                self._planned = count, total
                self._asked = max(self._asked, total)  # a later audit of repaired images has a lower total
            case ShardsAdvanced(count, total):
                self._shared = count, total
            case BlobsHashed():
                self._hashed = event
            case Unresolved(name, kind):
                self._unresolved[name] = kind
            case ImageResolving(name) | ImageResolved(name):
                self._images.setdefault(name, "open")
            case StepFailed():
                self._has_failed_step = True
            case ImageEnded(image):
                # Several entries may mirror one image to different targets: the image has failed if one of them failed.
                if self._images.get(image.name) != "failed":
                    self._images[image.name] = "failed" if image.failures else "over"
            case _:
                self._count_content(event)

    def _count_content(self, event: Event) -> None:
        match event:
            case ContentFound(descriptor):
                self._content.setdefault(descriptor.key, _Piece(descriptor.size))
            case ContentFinished(descriptor):
                self._content[descriptor.key] = _Piece(descriptor.size, descriptor.size, "over")
            case ContentFailed(descriptor):
                # The bytes still count: a manifest can be fetched while the list of its referrers fails.
                self._content.setdefault(descriptor.key, _Piece(descriptor.size)).state = "failed"

    def _advance(self, descriptor: Descriptor, offset: int) -> None:
        """Count transferred bytes. Content that is read for a plan, or uploaded after it was fetched, does not count."""
        piece = self._content.get(descriptor.key)
        if piece is not None and piece.state != "over" and offset < piece.size:  # the last byte counts when the content ends
            piece.there = offset


def describe_hashing(event: BlobsHashed) -> str:
    """Return the progress of hashing in blobs and bytes, as text."""
    failed = f", {event.failed} failed" if event.failed else ""
    blobs = format_count(event.total, "blob")
    return f"{event.count} of {blobs} hashed{failed}, {size(event.size)} of {size(event.total_size)}"


def describe_throttling(server: str, seconds: float) -> str:
    """Return the line for a rate-limited server. The pause may be as long as a day."""
    until = datetime.now(UTC) + timedelta(seconds=seconds)
    return f"{server}: rate-limited; requests pause for {duration(seconds)}, until {until:%Y-%m-%d %H:%M:%S} UTC"


def _describe_receipt(descriptor: Descriptor, receipt: Receipt) -> str:
    if receipt.status == "existed":
        return f"existed, {size(descriptor.size)}"
    return f"{receipt.status}, {size(receipt.transferred)} in {duration(receipt.seconds)}"


def _failed_count(states: Sequence[State]) -> str:
    return f", {failed} failed" if (failed := states.count("failed")) else ""


def _messages(failures: tuple[Failure, ...]) -> str:
    return "; ".join(dict.fromkeys(failure.message for failure in failures))


_LISTENER: ContextVar[Notify | None] = ContextVar("listener", default=None)


def add_callers_listener(notify: Notify) -> Notify:
    """Return a listener that passes events to `notify` and to the listener of the enclosing `notify_also` block."""
    other = _LISTENER.get()
    return notify if other is None else combine_listeners(notify, other)


@contextmanager
def notify_also(listener: Notify) -> Iterator[None]:
    """Add a listener to the runs that are started in this block."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


_REPORTS: ContextVar[list[tuple[UUID, RunReport]] | None] = ContextVar("reports", default=None)


@contextmanager
def collected_reports() -> Iterator[list[tuple[UUID, RunReport]]]:
    """Collect the id and the report of each run that is started in this block, as soon as the work of the run is complete.

    A caller has the report even if Prefect's API does not record the final state of the run.
    """
    reports = list[tuple[UUID, RunReport]]()
    token = _REPORTS.set(reports)
    try:
        yield reports
    finally:
        _REPORTS.reset(token)


def collect(flow_run_id: UUID, report: RunReport) -> None:
    """Add a report to the list of the enclosing `collected_reports` block, if there is one."""
    reports = _REPORTS.get()
    if reports is not None:
        reports.append((flow_run_id, report))
