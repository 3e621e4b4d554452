"""Counts the content that a run transfers. Bytes count as soon as they arrive, so failed attempts are included."""

from dataclasses import dataclass
from threading import Lock

from prefect_dist.ocispec import Descriptor
from prefect_dist.transfer.cancellation import CancelToken
from prefect_dist.transfer.content import Receipt
from prefect_dist.transfer.events import ContentAdvanced, Event, Notify


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferStats:
    """The received and the sent bytes, and the blobs that were mounted at a target or existed at a target."""

    received: int = 0
    sent: int = 0
    mounted: int = 0
    existed: int = 0
    mounted_bytes: int = 0
    existed_bytes: int = 0


class ByteCounter:
    """A listener that counts transferred bytes and passes each event on. Thread-safe."""

    def __init__(self, notify: Notify, cancel: CancelToken) -> None:
        self.total = 0
        self._notify, self._cancel, self._guard = notify, cancel, Lock()

    def __call__(self, event: Event) -> None:
        """Count the bytes of an event, and pass the event on.

        Raises:
            Stopped: the run was cancelled. The error ends the transfer of the event.
        """
        if isinstance(event, ContentAdvanced):
            with self._guard:
                self.total += event.gained
        self._cancel.check()
        self._notify(event)


class TransferCounter:
    """Counts the transfers of a run. Thread-safe.

    `received` and `sent` are the listeners of fetches and of uploads.
    """

    def __init__(self, notify: Notify, cancel: CancelToken) -> None:
        self.received, self.sent = ByteCounter(notify, cancel), ByteCounter(notify, cancel)
        self._mounted = self._existed = 0
        self._mounted_bytes = self._existed_bytes = 0
        self._guard = Lock()

    def count(self, blob: Descriptor, receipt: Receipt) -> None:
        """Count a mounted or existing blob. A receipt of an upload is ignored."""
        with self._guard:
            if receipt.status == "mounted":
                self._mounted += 1
                self._mounted_bytes += blob.size
            elif receipt.status == "existed":
                self._existed += 1
                self._existed_bytes += blob.size

    @property
    def stats(self) -> TransferStats:
        """The counts so far."""
        with self._guard:
            return TransferStats(
                received=self.received.total,
                sent=self.sent.total,
                mounted=self._mounted,
                existed=self._existed,
                mounted_bytes=self._mounted_bytes,
                existed_bytes=self._existed_bytes,
            )
