"""A run that fetches a single platform of an image, and unpacks the layers into a directory."""

from dataclasses import dataclass
from typing import ClassVar

from prefect_dist.mirror.fetch import count_images, walk_images
from prefect_dist.mirror.report import ReportBuilder, RunError, RunReport, UnpackRow
from prefect_dist.mirror.resources import RunResources
from prefect_dist.mirror.run_spec import RunContext, RunSpec
from prefect_dist.mirror.scopes import FetchScopes
from prefect_dist.ocispec import Platform, Reference
from prefect_dist.ocispec.reference import expand
from prefect_dist.storage.unpack import Unpacked
from prefect_dist.transfer import units
from prefect_dist.transfer.events import Notify
from prefect_dist.transfer.image_report import ImageReport
from prefect_dist.transfer.pool import Failed, Pool, Unit
from prefect_dist.transfer.session import SessionSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class PullJob:
    """An image to fetch, and the directory for its root file system."""

    reference: Reference
    directory: str
    platform: Platform
    referrers: bool
    planning: ClassVar[float] = 0

    def list_hosts(self, _session: SessionSpec, /) -> frozenset[str]:
        """Return the registry of the image."""
        return frozenset({self.reference.host})

    def run(self, context: RunContext, /) -> RunReport:
        """Fetch and unpack the image."""
        return run_pull(
            self.reference,
            self.directory,
            context.pool,
            context.scopes.open_fetch(),
            context.notify,
            platform=self.platform,
            referrers=self.referrers,
        )


def make_pull_run(
    resources: RunResources,
    *,
    reference: str,
    directory: str,
    platform: str | None,
    referrers: bool,
    concurrency: int,
    retries: int,
) -> RunSpec:
    """Return the run for the parameters of a pull. Without `platform`, the run selects the platform of this machine.

    Raises:
        InvalidInput: a parameter is invalid.
    """
    job = PullJob(
        reference=Reference.parse(expand(reference)),
        directory=directory,
        platform=Platform.local() if platform is None else Platform.parse(platform),
        referrers=referrers,
    )
    return RunSpec(job=job, session=resources.make_session(), window=concurrency, retries=retries)


def run_pull(
    reference: Reference,
    directory: str,
    pool: Pool,
    scopes: FetchScopes,
    notify: Notify,
    *,
    platform: Platform,
    referrers: bool,
) -> RunReport:
    """Fetch a single platform of an image into the store. Unpack the root file system of a complete image into a directory."""
    builder, rows = ReportBuilder("pull", pool), list[ImageReport | UnpackRow]()
    images, errors = walk_images([reference], pool, scopes, notify, platforms=(platform,), referrers=referrers)
    rows += images
    counts = {**count_images(images), "unpacked_layers": 0}
    if not errors and not counts["failed"]:
        result = pool.call(Unit(work=units.unpack, arguments=(reference.name, directory, platform)))
        if isinstance(result, Failed):
            errors.append(RunError(object=directory, error=result.error))
        else:
            unpacked: Unpacked = result.value
            rows.append(_row(unpacked))
            counts["unpacked_layers"] = unpacked.layers
    return builder.build(rows, counts, errors=errors, is_stopped=False)


def _row(unpacked: Unpacked) -> UnpackRow:
    return UnpackRow(
        directory=str(unpacked.directory),
        manifest=unpacked.manifest.digest,
        layers=unpacked.layers,
        chain_id=unpacked.chain_id,
    )
