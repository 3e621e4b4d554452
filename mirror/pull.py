"""A run that fetches a single platform of an image, and unpacks the layers into a directory."""

import time
from dataclasses import replace

from prefect_dist.mirror.fetch import FetchScopes, fetch_images
from prefect_dist.mirror.report import RunError, RunReport, UnpackRow
from prefect_dist.ocispec import Platform, Reference
from prefect_dist.storage.unpack import Unpacked
from prefect_dist.transfer import units
from prefect_dist.transfer.events import Notify
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
    started = time.monotonic()
    fetched = fetch_images([reference], pool, scopes, notify, platforms=(platform,), referrers=referrers, flow="pull")
    report = replace(fetched, counts={**fetched.counts, "unpacked_layers": 0})
    if fetched.status == "complete":
        result = pool.call(Unit(work=units.unpack, arguments=(str(reference), directory, platform)))
        if isinstance(result, Failed):
            stopped = pool.session.cancel.error
            report = replace(report, stopped=stopped).with_error(RunError(object=directory, error=result.error))
        else:
            unpacked: Unpacked = result.value
            report = replace(
                report,
                rows=(*report.rows, _row(unpacked)),
                counts={**report.counts, "unpacked_layers": unpacked.layers},
            )
    return replace(report, tasks=pool.runs, seconds=time.monotonic() - started)


def _row(unpacked: Unpacked) -> UnpackRow:
    return UnpackRow(
        directory=str(unpacked.directory),
        manifest=unpacked.manifest.digest,
        layers=unpacked.layers,
        chain_id=unpacked.chain_id,
    )
