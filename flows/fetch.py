"""The flow `fetch`: references → store, every descriptor a task; an image that is whole gets its name recorded."""

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated

from prefect.runtime import flow_run

from prefect_dist.flows._flow import flow_of
from prefect_dist.flows.parameters import (
    Concurrency,
    PlatformNames,
    Reached,
    Referrers,
    Retries,
    Store,
    StoreOptions,
    labelled,
    session_spec,
)
from prefect_dist.flows.parts import Parts
from prefect_dist.flows.pool import PrefectPool
from prefect_dist.flows.progress_artifact import watched
from prefect_dist.flows.slots import leased
from prefect_dist.mirror.hosts_file import CONCURRENCY
from prefect_dist.mirror.run_report import RunReport
from prefect_dist.ocispec import Platform, Reference
from prefect_dist.ocispec.errors import DistError
from prefect_dist.ocispec.platform import Platforms
from prefect_dist.ocispec.reference import expand
from prefect_dist.ocispec.units import format_count
from prefect_dist.transfer import units
from prefect_dist.transfer.attempts import RETRIES
from prefect_dist.transfer.image_report import Failure, ImageReport
from prefect_dist.transfer.listening import Listener
from prefect_dist.transfer.pool import Unit
from prefect_dist.transfer.related import EVERYTHING, NOTHING
from prefect_dist.transfer.session import Session, SessionSpec, open_session
from prefect_dist.transfer.walk import Walk
from prefect_dist.transfer.walk_state import ContentNode, ImageState

# Images of one flow run. The number of their descriptors is not known before; an image for many platforms has about a hundred.
MOST_IMAGES = 50


def _run_name() -> str:
    references = flow_run.parameters["references"]
    return f"fetch {references[0]}" if len(references) == 1 else f"fetch {format_count(len(references), 'image')}"


@flow_of("fetch", run_name=_run_name)
def fetch(
    references: Annotated[list[str], labelled("Images", "Such as docker.io/library/redis:7", min_length=1)],
    store: Store,
    platforms: PlatformNames = "all",
    *,
    referrers: Referrers = False,
    concurrency: Concurrency = CONCURRENCY,
    retries: Retries = RETRIES,
    store_options: StoreOptions = {},  # noqa: B006 - Prefect shows it in the form and copies it
    network: Reached = None,
) -> RunReport:
    """Bring images into the content store: each descriptor of each image is fetched and verified by a task of its own."""
    wanted = None if platforms == "all" else tuple(map(Platform.parse, platforms))
    spec = session_spec(store, store_options, network)
    return bring_in(spec, references, platforms=wanted, referrers=referrers, concurrency=concurrency, retries=retries)


def bring_in(
    spec: SessionSpec,
    references: Iterable[str],
    *,
    platforms: Platforms,
    referrers: bool = False,
    concurrency: int,
    retries: int,
) -> RunReport:
    """Fetch images, with `referrers` also what refers to them, in the current flow run, and record their names."""
    started = time.monotonic()
    named = [Reference.parse(expand(text)) for text in dict.fromkeys(references)]
    with (
        watched() as listener,
        leased(spec, (one.host for one in named), workers=concurrency, listener=listener) as bounded,
        open_session(bounded, observer=listener) as session,
    ):
        related = EVERYTHING if referrers else NOTHING
        wanted = [ImageState(one, platforms=platforms, related=related) for one in named]
        pool = PrefectPool(session, window=concurrency, retries=retries)
        with Parts("fetch-part", "fetch", session.stopping) as parts:
            walk = Walk(session.keeper, _FetchPolicy(parts), pool, listener)
            for start in range(0, len(wanted) if len(wanted) > MOST_IMAGES else 0, MOST_IMAGES):
                parts.add(wanted[start : start + MOST_IMAGES])
            ended = walk.run(wanted)
        images = _listed(session, ended, listener)
        return RunReport(
            images=images,
            tasks=pool.runs + parts.count,
            seconds=time.monotonic() - started,
            stopped=session.stopping.reason,
            quotas=session.registries.quotas(),
        )


class _FetchPolicy:
    """The policy of a walk that fetches images into the store."""

    visits_existing = False

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def unit_for(self, node: ContentNode, source: Reference) -> Unit:
        """Return the unit that fetches content."""
        return Unit(work=units.fetch, arguments=(node.descriptor, source), hosts=frozenset({source.host}))

    def follow_ups(self, _image: ImageState) -> tuple[()]:
        """Return nothing: an image in the store is done."""
        return ()

    def end(self, image: ImageState) -> None:
        """Count an image for its part."""
        self._parts.ended(image)


def _listed(session: Session, images: tuple[ImageReport, ...], listener: Listener) -> tuple[ImageReport, ...]:
    """The images, once `index.json` lists them for other tools; should that fail, it is a failure of each."""
    try:
        session.store.update_index()
    except DistError as exc:
        listener.fell_short(str(exc))
        failure = Failure(descriptor=None, error=exc)
        return tuple(replace(image, failures=(*image.failures, failure)) for image in images)
    return images
