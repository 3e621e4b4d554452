"""A run that fetches images into the store."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from prefect_dist.mirror.report import ReportBuilder, RunError, RunReport
from prefect_dist.mirror.resources import RunResources
from prefect_dist.mirror.run_spec import RunContext, RunSpec
from prefect_dist.mirror.scopes import FetchScopes
from prefect_dist.mirror.store_index import update_index
from prefect_dist.ocispec import Platform, Reference
from prefect_dist.ocispec.platform import Platforms
from prefect_dist.ocispec.reference import expand
from prefect_dist.transfer import units
from prefect_dist.transfer.events import Notify
from prefect_dist.transfer.fetching import Fetched
from prefect_dist.transfer.image_report import ImageReport
from prefect_dist.transfer.pool import Pool, Unit
from prefect_dist.transfer.related import EVERYTHING, NOTHING
from prefect_dist.transfer.session import SessionSpec
from prefect_dist.transfer.walk import Walk
from prefect_dist.transfer.walk_state import ContentNode, ImageState


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchJob:
    """The images to fetch into the store."""

    references: tuple[Reference, ...]
    platforms: Platforms
    referrers: bool
    planning: ClassVar[float] = 0

    def list_hosts(self, _session: SessionSpec, /) -> frozenset[str]:
        """Return the registries of the images."""
        return frozenset(reference.host for reference in self.references)

    def run(self, context: RunContext, /) -> RunReport:
        """Fetch the images."""
        return fetch_images(
            self.references,
            context.pool,
            context.scopes.open_fetch(),
            context.notify,
            platforms=self.platforms,
            referrers=self.referrers,
        )


def make_fetch_run(
    resources: RunResources,
    *,
    references: Sequence[str],
    platforms: Literal["all"] | Sequence[str],
    referrers: bool,
    concurrency: int,
    retries: int,
) -> RunSpec:
    """Return the run for the parameters of a fetch.

    Raises:
        InvalidInput: a parameter is invalid.
    """
    job = FetchJob(
        references=tuple(Reference.parse(expand(text)) for text in dict.fromkeys(references)),
        platforms=None if platforms == "all" else tuple(map(Platform.parse, platforms)),
        referrers=referrers,
    )
    return RunSpec(job=job, session=resources.make_session(), window=concurrency, retries=retries)


def fetch_images(
    references: Sequence[Reference],
    pool: Pool,
    scopes: FetchScopes,
    notify: Notify,
    *,
    platforms: Platforms,
    referrers: bool,
) -> RunReport:
    """Fetch images, with `referrers` also the referrers of the images, and record the names."""
    builder = ReportBuilder("fetch", pool)
    reports, errors = walk_images(references, pool, scopes, notify, platforms=platforms, referrers=referrers)
    return builder.build(reports, count_images(reports), errors=errors, is_stopped=False)


def walk_images(
    references: Sequence[Reference],
    pool: Pool,
    scopes: FetchScopes,
    notify: Notify,
    *,
    platforms: Platforms,
    referrers: bool,
) -> tuple[tuple[ImageReport, ...], list[RunError]]:
    """Fetch images like `fetch_images`. Return the reports of the images, and the error of a failed update of the index."""
    related = EVERYTHING if referrers else NOTHING
    images = [ImageState(one, platforms=platforms, related=related) for one in references]
    return walk_image_states(images, pool, scopes, notify)


def walk_image_states(
    images: Sequence[ImageState], pool: Pool, scopes: FetchScopes, notify: Notify
) -> tuple[tuple[ImageReport, ...], list[RunError]]:
    """Fetch images with platforms and referrers of their own. The result is that of `walk_images`."""
    walk = Walk(pool.session.recorder, FetchPolicy(scopes), pool, notify)
    with scopes:
        scopes.divide(images, walk.add)
        walk.run()
    return walk.reports(images), update_index(pool.session, notify)


class FetchPolicy:
    """The policy of a walk that fetches images into the store."""

    visits_existing = False

    def __init__(self, scopes: FetchScopes) -> None:
        self._scopes = scopes

    def unit_for(self, node: ContentNode, source: Reference) -> Unit[Fetched]:
        """Return the unit that fetches content."""
        return Unit(work=units.fetch, arguments=(node.descriptor, source), hosts=frozenset({source.host}))

    def follow_ups(self, _image: ImageState) -> tuple[()]:
        """Return no unit: an image in the store is complete."""
        return ()

    def end(self, image: ImageState) -> None:
        """Count an image for the scope."""
        self._scopes.end_image(image)


def count_images(reports: Sequence[ImageReport]) -> dict[str, int]:
    """Return the numbers of images and of descriptors."""
    return {
        "images": len(reports),
        "failed": sum(report.outcome == "failed" for report in reports),
        "fetched": sum(report.fetched for report in reports),
        "existed": sum(report.existed for report in reports),
        "referrers": sum(report.referrers for report in reports),
        "failed_descriptors": sum(report.failed for report in reports),
        "fetched_bytes": sum(report.fetched_bytes for report in reports),
        "existed_bytes": sum(report.existed_bytes for report in reports),
    }
