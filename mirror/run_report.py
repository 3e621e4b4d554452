"""Reports of runs: the result of each image, and one line for all."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from prefect_dist.mirror.causes import Cause, group_causes
from prefect_dist.ocispec.units import duration, format_count, size
from prefect_dist.remotes import Quota
from prefect_dist.transfer.cancellation import describe_stop
from prefect_dist.transfer.image_report import ImageReport

Status = Literal["complete", "failed", "stopped", "vetoed"]
"""How a run ended. `vetoed`: nothing failed, and a gate kept at least one image from its targets."""


class Report(Protocol):
    """The report of a run of any flow."""

    @property
    def tasks(self) -> int:
        """Return the number of task runs."""

    @property
    def status(self) -> Status:
        """Return the outcome of the run."""

    @property
    def seconds(self) -> float:
        """Return the duration of the run."""

    def summary(self) -> str:
        """Return one line with the counts."""

    def totals(self) -> dict[str, int]:
        """Return the numbers of the run, in bytes or as counts; docs/how-to/library.md lists the keys of each flow."""

    def errors(self) -> list[str]:
        """Return one line per failure."""

    def causes(self) -> list[Cause]:
        """Return the same failures, grouped by their cause."""

    def to_json(self, flow_run_id: str) -> dict[str, Any]:
        """Return the JSON output of the command line."""

    def table(self) -> list[dict[str, str | int]]:
        """Return rows for people, as the run's artifact shows them."""

    def facts(self) -> dict[str, str | int]:
        """Return the counts for people, as the run's summary shows them."""


def in_one_line(report: Report) -> str:
    """Return the summary, with the first failure."""
    errors = report.errors()
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{report.summary()}; {errors[0]}{more}" if errors else report.summary()


def describe_pieces(pieces: int, count: int) -> str:
    """Return a number of pieces of content and their bytes as text."""
    return f"{format_count(pieces, 'piece')}, {size(count)}" if pieces else "nothing"


def pace(count: int, seconds: float) -> dict[str, str | int]:
    """Return the duration of a run and its rate of transfer."""
    return {"took": duration(seconds), "rate": f"{size(count / max(seconds, 0.001))}/s"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Totals of a run: `pending` targets lack the wanted image, of which some `failed` and some were `vetoed`; bytes."""

    pending: int
    failed: int
    vetoed: int = 0
    received: int
    sent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """All images of a run, in the order in which they were asked for; `tasks` counts the task runs that it took.

    `stopped` says why the run was ended before all of them were done; None where it was not. `quotas` are what registries said
    last of the requests that they still allow, by host.
    """

    images: tuple[ImageReport, ...]
    tasks: int
    seconds: float
    stopped: str | None = None
    quotas: Mapping[str, Quota] = field(default_factory=dict)

    @property
    def failed(self) -> tuple[ImageReport, ...]:
        """Return the images that are not complete."""
        return tuple(image for image in self.images if image.failures)

    @property
    def status(self) -> Status:
        """Return `complete` if all images are complete, even if the run was cancelled after the last one."""
        if not self.failed:
            return "complete"
        return "stopped" if self.stopped else "failed"

    def summary(self) -> str:
        """Return one line with the counts."""
        done = len(self.images) - len(self.failed)
        of = f" of {len(self.images)}" if self.failed else ""
        counts = {key: self._sum(key) for key in ("fetched", "existed", "failed")}
        parts = ", ".join(f"{count} {key}" for key, count in counts.items() if count or key != "failed")
        along = self._sum("referrers")
        parts += f", with {format_count(along, 'referrer')}" if along else ""
        noun = "image" if len(self.images) == 1 else "images"
        left = "".join(f"; {host} allows {quota.remaining} of {quota.limit} more" for host, quota in self.quotas.items())
        return f"{done}{of} {noun} complete: {parts}; {size(self._sum('transferred'))} in {duration(self.seconds)}{left}"

    def totals(self) -> dict[str, int]:
        """Return the numbers of images, descriptors and fetched bytes."""
        failed = len(self.failed)
        return {
            "images": len(self.images),
            "complete": len(self.images) - failed,
            "failed": failed,
            "fetched": self._sum("fetched"),
            "existed": self._sum("existed"),
            "referrers": self._sum("referrers"),
            "fetched_bytes": self._sum("transferred"),
        }

    def facts(self) -> dict[str, str | int]:
        """Return the counts for people."""
        return {
            "images complete": len(self.images) - len(self.failed),
            "images failed": len(self.failed),
            "referrers": sum(image.referrers for image in self.images),
            "fetched": describe_pieces(self._sum("fetched"), self._sum("transferred")),
            "in the store already": describe_pieces(self._sum("existed"), self._sum("existed_bytes")),
            **pace(self._sum("transferred"), self.seconds),
        }

    def _sum(self, what: str) -> int:
        return sum(getattr(image, what) for image in self.images)

    def errors(self) -> list[str]:
        """Return one line per failure with the name of its object. A failure that several images share has one line."""
        return list(dict.fromkeys(failure.message for image in self.failed for failure in image.failures))

    def causes(self) -> list[Cause]:
        """Return the failures of all images, grouped by their cause."""
        return group_causes((image.name, failure.message) for image in self.failed for failure in image.failures)

    def to_json(self, flow_run_id: str) -> dict[str, Any]:
        """Return the JSON output of the command line."""
        return {
            "flow_run_id": flow_run_id,
            "status": self.status,
            "seconds": round(self.seconds, 3),
            "images": [image.to_json() for image in self.images],
            "quotas": {host: asdict(quota) for host, quota in self.quotas.items()},
        }

    def table(self) -> list[dict[str, str | int]]:
        """Return one row per image for people, the failed ones first."""
        images = (*self.failed, *(image for image in self.images if not image.failures))
        return [_row(image) for image in images]


def _row(image: ImageReport) -> dict[str, str | int]:
    return {
        "image": image.name,
        "outcome": image.status,
        "digest": str(image.root.digest) if image.root else "",
        "fetched": image.fetched,
        "existed": image.existed,
        "failed": image.failed,
        "bytes": size(image.transferred),
        "seconds": f"{image.seconds:.1f}",
        "error": image.failures[0].message if image.failures else "",
    }


def gather_failures(lines: Iterable[str], stopped: str | None) -> list[str]:
    """Return failures, one line each; for a run that was `stopped`, one line for all targets that it did not reach."""
    failures, unreached = list[str](), 0
    for line in lines:
        if is_cancellation(line, stopped):
            unreached += 1
        else:
            failures.append(line)
    return (
        [*failures, f"{format_count(unreached, 'target')} not reached: {describe_stop(str(stopped))}"]
        if unreached
        else failures
    )


def is_cancellation(line: str, stopped: str | None) -> bool:
    """Return whether the only cause of a failure is that the run was cancelled."""
    return stopped is not None and line.endswith(f": {describe_stop(stopped)}")
