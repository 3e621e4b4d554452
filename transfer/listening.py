"""The interface of those that follow a run while it is in flight."""

from typing import Literal, Protocol

from prefect_dist.ocispec import Descriptor
from prefect_dist.ocispec.errors import DistError
from prefect_dist.transfer.content import Receipt
from prefect_dist.transfer.image_report import ImageEnd
from prefect_dist.transfer.session import Observer

State = Literal["open", "over", "failed"]


class Listener(Observer, Protocol):
    """Receives each event of a run: those of an `Observer` from many threads, all others from the run's own."""

    def note(self, text: str) -> None:
        """The run waits for something, or has it now."""

    def planned(self, count: int, total: int) -> None:
        """`count` of the `total` images that may have to be mirrored were compared with their targets."""

    def resolving(self, name: str) -> None:
        """An image is being resolved."""

    def resolved(self, name: str, root: Descriptor) -> None:
        """An image resolves to this root."""

    def waiting(self, descriptor: Descriptor) -> None:
        """Content was found that has to be visited."""

    def ended(self, descriptor: Descriptor, receipt: Receipt) -> None:
        """Content is in the store."""

    def failed(self, descriptor: Descriptor, error: DistError) -> None:
        """Content could not be fetched."""

    def did(self, name: str, what: str) -> None:
        """Another step was done for an image that is whole."""

    def fell_short(self, message: str) -> None:
        """Something failed that is neither content nor an image."""

    def finished(self, image: ImageEnd) -> None:
        """Nothing of an image is in flight any more."""

    def recording(self) -> None:
        """Nothing of any image is in flight any more; the run removes tags and records its results."""
