"""Counts the content that a run transferred. Bytes are counted as they arrive, so failed attempts are included."""

from dataclasses import dataclass
from threading import Lock

from prefect_dist.ocispec import Descriptor
from prefect_dist.transfer.cancellation import CancelToken
from prefect_dist.transfer.content import Receipt
from prefect_dist.transfer.events import ContentAdvanced, Event, Notify


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferStats:
    """The bytes that were received and sent, and the blobs that were mounted at a target or existed there."""

    received: int = 0
    sent: int = 0
    mounted: int = 0
    existed: int = 0
    mounted_bytes: int = 0
    existed_bytes: int = 0


class ByteCounter:
    """A listener that counts the bytes of the events that it passes on to another. Thread-safe."""

    def __init__(self, notify: Notify, cancel: CancelToken) -> None:
        self.total = 0
        self._notify, self._cancel, self._guard = notify, cancel, Lock()

    def __call__(self, event: Event) -> None:
        """Count the bytes of an event, and pass it on.

        Raises:
            Stopped: the run was cancelled. This ends the transfer that the event is about.
        """
        if isinstance(event, ContentAdvanced):
            with self._guard:
                self.total += event.gained
        self._cancel.check()
        self._notify(event)


class ReceiptCounter:
    """Counts the blobs that did not have to be sent. Thread-safe."""

    def __init__(self) -> None:
        self.mounted = self.existed = 0
        self.mounted_bytes = self.existed_bytes = 0
        self._guard = Lock()

    def count(self, descriptor: Descriptor, receipt: Receipt) -> None:
        """Count one piece of content."""
        with self._guard:
            if receipt.status == "mounted":
                self.mounted += 1
                self.mounted_bytes += descriptor.size
            elif receipt.status == "existed":
                self.existed += 1
                self.existed_bytes += descriptor.size
