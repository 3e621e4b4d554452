"""What a run has moved. Bytes are counted as they pass, so those of attempts that failed are among them."""

from dataclasses import dataclass
from threading import Lock

from prefect_dist.ocispec import Descriptor
from prefect_dist.transfer.content import Observer, Receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Bytes that were received and sent, and how many blobs were mounted at a target, or there already, with their bytes."""

    received: int = 0
    sent: int = 0
    mounted: int = 0
    existed: int = 0
    mounted_bytes: int = 0
    existed_bytes: int = 0


class Meter:
    """An observer that counts the bytes of which it passes word on. Thread-safe."""

    def __init__(self, observer: Observer) -> None:
        self.total = 0
        self._observer, self._guard = observer, Lock()

    def advanced(self, descriptor: Descriptor, offset: int, gained: int) -> None:
        """Count, and pass it on."""
        with self._guard:
            self.total += gained
        self._observer.advanced(descriptor, offset, gained)


class Counter:
    """Counts what did not have to be sent. Thread-safe."""

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
