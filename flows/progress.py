"""Who listens to a run while it goes. No Prefect here.

A run writes to its log. A command line puts a listener of its own beside that with `listening`.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import Protocol

from flows.report import Ended, Failure
from ocispec import Descriptor
from ocispec.units import counted, duration, size
from tasks.session import Observer
from tasks.transfer import Receipt


class Listener(Observer, Protocol):
    """Told of each thing that happens: of what an `Observer` is from many threads, of all else from the run's own."""

    def note(self, text: str) -> None:
        """The run waits for something, or has it now."""

    def planned(self, count: int, total: int) -> None:
        """So many of the images that may have to be brought were looked into."""

    def resolving(self, name: str) -> None:
        """An image is being looked up."""

    def resolved(self, name: str, root: Descriptor) -> None:
        """An image stands for this root."""

    def waiting(self, descriptor: Descriptor) -> None:
        """Content was found that has to be visited."""

    def ended(self, descriptor: Descriptor, receipt: Receipt) -> None:
        """Content is in the store."""

    def failed(self, descriptor: Descriptor, message: str) -> None:
        """Content could not be had."""

    def did(self, name: str, what: str) -> None:
        """Something else was done for an image that is whole."""

    def finished(self, image: Ended) -> None:
        """Nothing more happens to an image."""


class LogListener:
    """Writes one line per event to a logger."""

    def __init__(self, logger: logging.Logger | logging.LoggerAdapter[logging.Logger]) -> None:
        self._log = logger

    def note(self, text: str) -> None:
        """Say it."""
        self._log.info("%s", text)

    def planned(self, count: int, total: int) -> None:
        """Say how far planning is."""
        self._log.info("looked into %d of %s", count, counted(total, "image"))

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

    def failed(self, descriptor: Descriptor, message: str) -> None:
        """Say what went wrong."""
        self._log.error("%s failed: %s", descriptor, message)

    def did(self, name: str, what: str) -> None:
        """Say what was done."""
        self._log.info("%s %s", name, what)

    def left_alone(self, server: str, seconds: float) -> None:
        """Say for how long nobody asks there."""
        self._log.warning("%s", waiting_for(server, seconds))

    def finished(self, image: Ended) -> None:
        """Say how the image came out."""
        if image.failures:
            self._log.error(
                "%s failed with %s: %s", image.name, counted(len(image.failures), "error"), _messages(image.failures)
            )
        else:
            self._log.info("%s complete: %s", image.name, image.told())


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

    def failed(self, descriptor: Descriptor, message: str) -> None:
        """Pass it on."""
        for listener in self._listeners:
            listener.failed(descriptor, message)

    def did(self, name: str, what: str) -> None:
        """Pass it on."""
        for listener in self._listeners:
            listener.did(name, what)

    def left_alone(self, server: str, seconds: float) -> None:
        """Pass it on."""
        for listener in self._listeners:
            listener.left_alone(server, seconds)

    def finished(self, image: Ended) -> None:
        """Pass it on."""
        for listener in self._listeners:
            listener.finished(image)


class Advance:
    """Counts how far a run is, of what is known to be done by now: that grows, so that the fraction may fall. Thread-safe.

    `planning` is the share of the way that planning is, 0 to 1.
    """

    # What asking for a piece of content, or an image, costs beside its bytes: about as much as so many more.
    _EACH_BYTES = 1024**2

    def __init__(self, *, planning: float = 0) -> None:
        self._share, self._guard = planning, Lock()
        self._planned = 0, 0
        self._images: dict[str, bool] = {}
        self._content: dict[object, tuple[int, int]] = {}

    def fraction(self) -> float:
        """How much is done: 0 to 1."""
        with self._guard:
            count, total = self._planned
            pieces = list(self._content.values())
            images, finished = len(self._images), sum(self._images.values())
        known = self._EACH_BYTES * (images + len(pieces)) + sum(size for size, _ in pieces)
        over = self._EACH_BYTES * (finished + sum(there >= size for size, there in pieces)) + sum(there for _, there in pieces)
        return self._share * (count / total if total else 0) + (1 - self._share) * (over / known if known else 0)

    def words(self) -> str:
        """How far it is: images, content, bytes."""
        with self._guard:
            count, total = self._planned
            pieces = list(self._content.values())
            images, finished = len(self._images), sum(self._images.values())
        told = [f"looked into {count} of {counted(total, 'image')}"] if total else []
        told += [f"{finished} of {counted(images, 'image')} finished"] if images else []
        over, there, known = sum(there >= size for size, there in pieces), sum(t for _, t in pieces), sum(s for s, _ in pieces)
        told += [f"{over} of {counted(len(pieces), 'piece')} of content, {size(there)} of {size(known)}"] if pieces else []
        return ", ".join(told) or "nothing to do"

    def note(self, text: str) -> None:
        """Nothing that is counted."""

    def planned(self, count: int, total: int) -> None:
        """Take note."""
        with self._guard:
            self._planned = count, total

    def resolving(self, name: str) -> None:
        """One more image."""
        with self._guard:
            self._images.setdefault(name, False)

    def resolved(self, name: str, root: Descriptor) -> None:  # noqa: ARG002 - what it consists of is told
        """One more image, if it was not known before."""
        self.resolving(name)

    def waiting(self, descriptor: Descriptor) -> None:
        """One more piece of content."""
        with self._guard:
            self._content.setdefault(descriptor.content, (descriptor.size, 0))

    def advanced(self, descriptor: Descriptor, offset: int, gained: int) -> None:  # noqa: ARG002 - what is there counts
        """Take note of how much is there; what is read for a plan does not count."""
        with self._guard:
            if descriptor.content in self._content and offset < descriptor.size:  # whole is what ended
                self._content[descriptor.content] = descriptor.size, offset

    def ended(self, descriptor: Descriptor, receipt: Receipt) -> None:  # noqa: ARG002 - however it came
        """All of it is there."""
        with self._guard:
            self._content[descriptor.content] = descriptor.size, descriptor.size

    def failed(self, descriptor: Descriptor, message: str) -> None:  # noqa: ARG002 - nothing more happens to it
        """Nothing is to be waited for any more."""
        with self._guard:
            self._content[descriptor.content] = descriptor.size, descriptor.size

    def did(self, name: str, what: str) -> None:
        """Nothing that is counted."""

    def left_alone(self, server: str, seconds: float) -> None:
        """Nothing that is counted."""

    def finished(self, image: Ended) -> None:
        """Nothing more happens to an image."""
        with self._guard:
            self._images[image.name] = True


def waiting_for(server: str, seconds: float) -> str:
    """What to say of a server that is left alone."""
    until = datetime.now(UTC) + timedelta(seconds=seconds)
    return f"{server} has too many requests and is not asked until {until:%H:%M:%S} UTC, for {duration(seconds)}"


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
