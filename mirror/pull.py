"""A run that fetches one platform of an image, and unpacks its layers into a directory."""

import time
from dataclasses import dataclass
from typing import Any

from prefect_dist.mirror.causes import Cause, group_lines
from prefect_dist.mirror.fetch import FetchScopes, fetch_images
from prefect_dist.mirror.run_report import RunReport, Status
from prefect_dist.ocispec import Platform, Reference
from prefect_dist.storage.unpack import Unpacked
from prefect_dist.transfer import units
from prefect_dist.transfer.events import Notify
from prefect_dist.transfer.pool import Failed, Pool, Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class PullReport:
    """How the fetch came out, and what was unpacked or why it was not; neither where the fetch failed."""

    fetched: RunReport
    unpacked: Unpacked | None
    failure: str | None
    seconds: float
    stopped: str | None = None

    @property
    def tasks(self) -> int:
        """The number of task runs that it took."""
        return self.fetched.tasks + (self.unpacked is not None or self.failure is not None)

    @property
    def status(self) -> Status:
        """`complete` if the directory is there."""
        if self.failure:
            return "stopped" if self.stopped else "failed"
        return self.fetched.status

    def summary(self) -> str:
        """One line that counts."""
        if self.unpacked is None:
            return self.fetched.summary()
        what = f"{self.unpacked.layers} layers of {self.unpacked.manifest} unpacked to {self.unpacked.directory}"
        return f"{self.fetched.summary()}; {what}, chain ID {self.unpacked.chain_id}"

    def totals(self) -> dict[str, int]:
        """Return the numbers of the fetch, and the number of layers that were unpacked."""
        return self.fetched.totals() | {"unpacked_layers": self.unpacked.layers if self.unpacked else 0}

    def errors(self) -> list[str]:
        """One line per failure."""
        return [*self.fetched.errors(), *([self.failure] if self.failure else [])]

    def causes(self) -> list[Cause]:
        """The failures, grouped by their cause."""
        return [*self.fetched.causes(), *group_lines([self.failure] if self.failure else [])]

    def to_json(self, flow_run_id: str) -> dict[str, Any]:
        """The command line's JSON output."""
        document = self.fetched.to_json(flow_run_id)
        done = self.unpacked
        return document | {
            "status": self.status,
            "seconds": round(self.seconds, 3),
            "unpacked": None
            if done is None
            else {
                "directory": str(done.directory),
                "manifest": str(done.manifest.digest),
                "layers": done.layers,
                "chain_id": done.chain_id and str(done.chain_id),
            },
            "errors": self.errors(),
        }

    def facts(self) -> dict[str, str | int]:
        """What was done."""
        return self.fetched.facts() | {"layers unpacked": self.unpacked.layers if self.unpacked else 0}

    def table(self) -> list[dict[str, str | int]]:
        """One row for the image."""
        return self.fetched.table()


def run_pull(
    reference: Reference,
    directory: str,
    pool: Pool,
    scopes: FetchScopes,
    notify: Notify,
    *,
    platform: Platform,
    referrers: bool,
) -> PullReport:
    """Fetch one platform of an image into the store. If it is complete, unpack its root file system into a directory."""
    started = time.monotonic()
    fetched = fetch_images([reference], pool, scopes, notify, platforms=(platform,), referrers=referrers)
    unpacked = failure = None
    if fetched.status == "complete":
        outcome = pool.call(Unit(work=units.unpack, arguments=(fetched.images[0].name, directory, platform)))
        if isinstance(outcome, Failed):
            failure = str(outcome.error)
        else:
            unpacked = outcome.value
    seconds = time.monotonic() - started
    stopped = pool.session.cancel.reason
    return PullReport(fetched=fetched, unpacked=unpacked, failure=failure, seconds=seconds, stopped=stopped)
