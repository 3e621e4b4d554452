"""A run that fetches images into the store."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, Self

from prefect_dist.mirror.run_report import RunReport
from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import DistError
from prefect_dist.ocispec.platform import Platforms
from prefect_dist.transfer import units
from prefect_dist.transfer.events import Notify, StepFailed
from prefect_dist.transfer.fetching import Fetched
from prefect_dist.transfer.image_report import Failure, ImageReport
from prefect_dist.transfer.pool import Pool, Unit
from prefect_dist.transfer.related import EVERYTHING, NOTHING
from prefect_dist.transfer.session import Session
from prefect_dist.transfer.walk import Walk
from prefect_dist.transfer.walk_state import ContentNode, ImageState


class FetchScopes(Protocol):
    """The flow runs that the units of a fetch belong to. Leaving the block ends them."""

    def divide(self, images: Sequence[ImageState]) -> None:
        """Set the scopes of images."""

    def end_image(self, image: ImageState) -> None:
        """Count an image that ended."""

    def __enter__(self) -> Self:
        """Return the scopes."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object, /) -> None:
        """End the flow runs."""


def fetch_images(
    references: Sequence[Reference],
    pool: Pool,
    scopes: FetchScopes,
    notify: Notify,
    *,
    platforms: Platforms,
    referrers: bool,
) -> RunReport:
    """Fetch images, with `referrers` also the manifests that refer to them, and record their names."""
    started, session = time.monotonic(), pool.session
    related = EVERYTHING if referrers else NOTHING
    images = [ImageState(one, platforms=platforms, related=related) for one in references]
    with scopes:
        scopes.divide(images)
        ended = Walk(session.recorder, FetchPolicy(scopes), pool, notify).run(images)
    return RunReport(
        images=_update_index(session, ended, notify),
        tasks=pool.runs,
        seconds=time.monotonic() - started,
        stopped=session.cancel.reason,
        quotas=session.registries.quotas(),
    )


class FetchPolicy:
    """The policy of a walk that fetches images into the store."""

    visits_existing = False

    def __init__(self, scopes: FetchScopes) -> None:
        self._scopes = scopes

    def unit_for(self, node: ContentNode, source: Reference) -> Unit[Fetched]:
        """Return the unit that fetches content."""
        return Unit(work=units.fetch, arguments=(node.descriptor, source), hosts=frozenset({source.host}))

    def follow_ups(self, _image: ImageState) -> tuple[()]:
        """Return nothing: an image in the store is done."""
        return ()

    def end(self, image: ImageState) -> None:
        """Count an image for its scope."""
        self._scopes.end_image(image)


def _update_index(session: Session, images: tuple[ImageReport, ...], notify: Notify) -> tuple[ImageReport, ...]:
    """List new images in `index.json` of the store. Return the images; if that fails, each of them has failed."""
    try:
        session.store.update_index()
    except DistError as exc:
        notify(StepFailed(str(exc)))
        failure = Failure(descriptor=None, error=exc)
        return tuple(replace(image, failures=(*image.failures, failure)) for image in images)
    return images
