"""The flow `pull`: fetch an image, then unpack its layers into a directory."""

import time
from dataclasses import dataclass
from typing import Annotated, Any

from prefect import get_run_logger
from prefect.runtime import flow_run

from prefect_dist.flows._flow import flow_of
from prefect_dist.flows.fetch import fetch_into
from prefect_dist.flows.parameters import Concurrency, Reached, Referrers, Retries, Store, StoreOptions, label, session_spec
from prefect_dist.mirror.causes import Cause, group_lines
from prefect_dist.mirror.hosts_file import CONCURRENCY
from prefect_dist.mirror.progress import LogWriter
from prefect_dist.mirror.run_report import RunReport, Status
from prefect_dist.ocispec import Platform
from prefect_dist.ocispec.errors import DistError
from prefect_dist.storage.unpack import Unpacked
from prefect_dist.tasks import upkeep
from prefect_dist.transfer.attempts import RETRIES
from prefect_dist.transfer.session import SessionSpec, open_session


@dataclass(frozen=True, slots=True, kw_only=True)
class PullReport:
    """How the fetch came out, and what was unpacked or why it was not; neither where the fetch failed."""

    fetched: RunReport
    unpacked: Unpacked | None
    failure: str | None
    seconds: float

    @property
    def tasks(self) -> int:
        """The number of task runs that it took."""
        return self.fetched.tasks + (self.unpacked is not None or self.failure is not None)

    @property
    def status(self) -> Status:
        """`complete` if the directory is there."""
        return "failed" if self.failure else self.fetched.status

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


def _run_name() -> str:
    return f"pull {flow_run.parameters['reference']}"


@flow_of("pull", run_name=_run_name)
def pull(
    reference: Annotated[str, label("Image", "Such as docker.io/library/redis:7")],
    directory: Annotated[
        str,
        label("Directory", "For its root file system, where the run is: an empty directory, or one that is not there"),
    ],
    store: Store,
    platform: Annotated[
        str | None,
        label("Platform", "Which of an index's images, such as linux/arm64; without it, that of the run's machine"),
    ] = None,
    *,
    referrers: Referrers = False,
    concurrency: Concurrency = CONCURRENCY,
    retries: Retries = RETRIES,
    store_options: StoreOptions = {},  # noqa: B006 - Prefect shows it in the form and copies it
    network: Reached = None,
) -> PullReport:
    """Fetch one platform of an image into the content store, then unpack its root file system into a directory."""
    started = time.monotonic()
    wanted = Platform.local() if platform is None else Platform.parse(platform)
    spec = session_spec(store, store_options, network)
    options = {"concurrency": concurrency, "retries": retries}
    fetched = fetch_into(spec, [reference], platforms=(wanted,), referrers=referrers, **options)
    unpacked = failure = None
    if fetched.status == "complete":
        unpacked, failure = _unpack(spec, fetched.images[0].name, directory, wanted)
    seconds = time.monotonic() - started
    return PullReport(fetched=fetched, unpacked=unpacked, failure=failure, seconds=seconds)


def _unpack(spec: SessionSpec, name: str, directory: str, platform: Platform) -> tuple[Unpacked | None, str | None]:
    with open_session(spec, notify=LogWriter(get_run_logger())):
        try:
            return upkeep.unpack(name, directory, platform), None
        except DistError as exc:
            return None, str(exc)
