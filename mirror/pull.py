"""A run that fetches a single platform of an image, and unpacks the layers into a directory."""

from prefect_dist.mirror.fetch import FetchScopes, count_images, walk_images
from prefect_dist.mirror.report import ReportBuilder, RunError, RunReport, UnpackRow
from prefect_dist.ocispec import Platform, Reference
from prefect_dist.storage.unpack import Unpacked
from prefect_dist.transfer import units
from prefect_dist.transfer.events import Notify
from prefect_dist.transfer.image_report import ImageReport
from prefect_dist.transfer.pool import Failed, Pool, Unit


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
        result = pool.call(Unit(work=units.unpack, arguments=(str(reference), directory, platform)))
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
