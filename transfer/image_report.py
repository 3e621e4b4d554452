"""The result of a run for an image."""

from dataclasses import dataclass
from typing import Literal

from prefect_dist.ocispec import Descriptor
from prefect_dist.ocispec.errors import DistError
from prefect_dist.ocispec.units import format_count


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error of a descriptor, or of the image as a whole if `descriptor` is None."""

    descriptor: Descriptor | None
    error: DistError

    @property
    def message(self) -> str:
        """Return the text of the error."""
        return str(self.error)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReport:
    """The result for an image in the store, with referrers.

    Attributes:
        root: the resolved descriptor, None for an unresolved name.
        fetched: the number of distinct fetched descriptors.
        existed: the number of distinct descriptors in the store before the run, with `existed_bytes` bytes.
        referrers: the number of referrers.
        fetched_bytes: the received bytes, failed attempts included.
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
        """Return `failed` for an incomplete image, and `unchanged` if the store had the image before the run."""
        if self.failures:
            return "failed"
        return "fetched" if self.fetched else "unchanged"

    @property
    def failed(self) -> int:
        """Return the number of failed descriptors."""
        return sum(failure.descriptor is not None for failure in self.failures)

    @property
    def has_moved(self) -> bool:
        """Return whether the run fetched content."""
        return self.fetched > 0

    def describe_counts(self) -> str:
        """Return the numbers of descriptors as text."""
        referrers = f", with {format_count(self.referrers, 'referrer')}" if self.referrers else ""
        return f"{self.fetched} fetched, {self.existed} existed{referrers}"

    @property
    def descriptors(self) -> int:
        """Return the number of visited descriptors."""
        return self.fetched + self.existed + self.failed
