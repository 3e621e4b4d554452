"""The result of a run for one image."""

from dataclasses import dataclass
from typing import Literal, Protocol

from prefect_dist.ocispec import Descriptor
from prefect_dist.ocispec.errors import DistError
from prefect_dist.ocispec.units import format_count


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error, and the descriptor that it concerns; None if it concerns the image as a whole."""

    descriptor: Descriptor | None
    error: DistError

    @property
    def message(self) -> str:
        """Return the text of the error, one line."""
        return str(self.error)


class ImageEnd(Protocol):
    """The result for an image whose work is finished."""

    @property
    def name(self) -> str:
        """Return the image's reference."""

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Return the errors."""

    @property
    def has_moved(self) -> bool:
        """Return whether the run transferred anything."""

    def describe_counts(self) -> str:
        """Return the numbers of descriptors as text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReport:
    """The result for one image in the store, with its referrers.

    Attributes:
        root: the descriptor that the name resolves to, None if the name could not be resolved.
        fetched: the number of distinct descriptors that this run fetched.
        existed: the number of distinct descriptors that the store had before the run, with `existed_bytes` bytes.
        referrers: the number of referrers.
        fetched_bytes: the bytes that this run received, failed attempts included.
    """

    name: str
    root: Descriptor | None
    fetched: int = 0
    existed: int = 0
    existed_bytes: int = 0
    referrers: int = 0
    failures: tuple[Failure, ...] = ()
    fetched_bytes: int = 0
    seconds: float = 0.0

    @property
    def outcome(self) -> Literal["fetched", "unchanged", "failed"]:
        """Return `failed` if the run did not complete the image, and `unchanged` if the store had all of it before."""
        if self.failures:
            return "failed"
        return "fetched" if self.fetched else "unchanged"

    @property
    def failed(self) -> int:
        """Return the number of descriptors that failed."""
        return sum(failure.descriptor is not None for failure in self.failures)

    @property
    def has_moved(self) -> bool:
        """Return whether the run fetched anything."""
        return self.fetched > 0

    def describe_counts(self) -> str:
        """Return the numbers of descriptors as text."""
        referrers = f", with {format_count(self.referrers, 'referrer')}" if self.referrers else ""
        return f"{self.fetched} fetched, {self.existed} existed{referrers}"

    @property
    def descriptors(self) -> int:
        """Return the number of descriptors that the walk visited."""
        return self.fetched + self.existed + self.failed
