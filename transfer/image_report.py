"""The result of a run for one image."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

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
        """Return one line for people."""
        return str(self.error)

    def to_json(self) -> dict[str, Any]:
        """Return the failure's part of the command line's JSON output."""
        return {"descriptor": self.descriptor and str(self.descriptor.digest), "message": self.message}


class ImageEnd(Protocol):
    """An image of which nothing is in flight any more."""

    @property
    def name(self) -> str:
        """Return the image's reference."""

    @property
    def status(self) -> str:
        """Return the outcome in one word."""

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Return the errors."""

    @property
    def has_moved(self) -> bool:
        """Return true if anything had to be transferred."""

    def describe_counts(self) -> str:
        """Return the counts in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReport:
    """The result for one image of a run and its referrers; `referrers` is the number of those.

    `fetched` and `existed` count distinct descriptors. `transferred` are the bytes of this run, `existed_bytes` those of
    content that existed before the run.
    """

    name: str
    root: Descriptor | None
    fetched: int = 0
    existed: int = 0
    existed_bytes: int = 0
    referrers: int = 0
    failures: tuple[Failure, ...] = ()
    transferred: int = 0
    seconds: float = 0.0

    @property
    def status(self) -> Literal["complete", "failed"]:
        """Return `complete` if every wanted descriptor is in the store and the name is recorded."""
        return "failed" if self.failures else "complete"

    @property
    def failed(self) -> int:
        """Return the number of descriptors that failed."""
        return sum(failure.descriptor is not None for failure in self.failures)

    @property
    def has_moved(self) -> bool:
        """Return true if anything was fetched."""
        return self.fetched > 0

    def describe_counts(self) -> str:
        """Return the counts in words."""
        along = f", with {format_count(self.referrers, 'referrer')}" if self.referrers else ""
        return f"{self.fetched} fetched, {self.existed} existed{along}"

    @property
    def descriptors(self) -> int:
        """Return the number of descriptors that the walk visited."""
        return self.fetched + self.existed + self.failed

    def to_json(self) -> dict[str, Any]:
        """Return the image's part of the command line's JSON output."""
        return {
            "name": self.name,
            "digest": self.root and str(self.root.digest),
            "status": self.status,
            "descriptors": self.descriptors,
            "fetched": self.fetched,
            "existed": self.existed,
            "failed": self.failed,
            "referrers": self.referrers,
            "bytes": self.transferred,
            "seconds": round(self.seconds, 3),
            "errors": [failure.to_json() for failure in self.failures],
        }
