"""The flow `fetch`: fetches images into the content store, each descriptor with one task."""

from collections.abc import Sequence
from typing import Annotated

from prefect.runtime import flow_run

from prefect_dist.flows._flow import flow_of
from prefect_dist.flows.limits import lease_slots
from prefect_dist.flows.parameters import (
    Concurrency,
    PlatformNames,
    Reached,
    Referrers,
    Retries,
    Store,
    StoreOptions,
    label,
    session_spec,
)
from prefect_dist.flows.parts import Parts
from prefect_dist.flows.pool import PrefectPool
from prefect_dist.flows.progress_artifact import publish_run_progress
from prefect_dist.mirror.fetch import fetch_images
from prefect_dist.mirror.hosts_file import CONCURRENCY
from prefect_dist.mirror.report import RunReport
from prefect_dist.ocispec import Platform, Reference
from prefect_dist.ocispec.reference import expand
from prefect_dist.ocispec.units import format_count
from prefect_dist.transfer.attempts import RETRIES
from prefect_dist.transfer.pool import Pool
from prefect_dist.transfer.session import open_session
from prefect_dist.transfer.walk_state import ImageState

# The most images of one flow run. An image for many platforms has about a hundred descriptors.
MOST_IMAGES = 50


def _run_name() -> str:
    references = flow_run.parameters["references"]
    return f"fetch {references[0]}" if len(references) == 1 else f"fetch {format_count(len(references), 'image')}"


@flow_of("fetch", run_name=_run_name)
def fetch(
    references: Annotated[list[str], label("Images", "Such as docker.io/library/redis:7", min_length=1)],
    store: Store,
    platforms: PlatformNames = "all",
    *,
    referrers: Referrers = False,
    concurrency: Concurrency = CONCURRENCY,
    retries: Retries = RETRIES,
    store_options: StoreOptions = {},  # noqa: B006 - Prefect shows it in the form and copies it
    network: Reached = None,
) -> RunReport:
    """Fetch images into the content store. One task fetches and verifies each descriptor of an image."""
    wanted = None if platforms == "all" else tuple(map(Platform.parse, platforms))
    spec = session_spec(store, store_options, network)
    named = [Reference.parse(expand(text)) for text in dict.fromkeys(references)]
    with (
        publish_run_progress() as notify,
        lease_slots(spec, (one.host for one in named), workers=concurrency, notify=notify) as bounded,
        open_session(bounded, notify=notify) as session,
    ):
        pool = PrefectPool(session, window=concurrency, retries=retries)
        return fetch_images(named, pool, FetchParts(pool), notify, platforms=wanted, referrers=referrers)


class FetchParts(Parts):
    """The parts of a fetch of many images."""

    def __init__(self, pool: Pool) -> None:
        super().__init__("fetch-part", "fetch", pool)

    def divide(self, images: Sequence[ImageState]) -> None:
        """Divide many images into parts of `MOST_IMAGES` images. Fewer images stay in the flow run of the fetch."""
        for start in range(0, len(images) if len(images) > MOST_IMAGES else 0, MOST_IMAGES):
            self.add(images[start : start + MOST_IMAGES])
