"""The third stage of planning: survey admitted images at the source and the targets, and plan each image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prefect_dist.mirror.claiming import Admitted
from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.lock import Records
from prefect_dist.mirror.plan import PlannedImage, SyncItem
from prefect_dist.mirror.plan_cost import CostCounter
from prefect_dist.mirror.plan_image import fail_image, is_trusted, make_query, plan_image
from prefect_dist.mirror.queries import Stage, ask
from prefect_dist.mirror.shards import weigh_images
from prefect_dist.ocispec.errors import DistError
from prefect_dist.storage import ContentStore
from prefect_dist.transfer import units
from prefect_dist.transfer.events import Notify, Planned
from prefect_dist.transfer.pool import Failed, Outcome, Unit, split_batches
from prefect_dist.transfer.session import Session
from prefect_dist.transfer.survey import ImageQuery, QueryResult


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """The input of planning.

    Attributes:
        entries: the entries to plan.
        others: the entries of another run with the same lock file. This run keeps their tags.
        locked: the records of the lock file.
        is_dry: true if the run only makes the plan.
        workers: the largest number of requests of one task at a time.
        is_divided: true if other processes mirror the images. Then the plan has the load of each image instead of the content,
            and no surveys, because content and surveys take memory.
    """

    entries: Sequence[Entry]
    others: Sequence[Entry] = ()
    locked: Records = field(default_factory=dict)
    is_dry: bool = False
    workers: int = 1
    is_divided: bool = False


# The number of images per task: few tasks for an unchanged mirror.
_BATCH = 100


class SurveyProgress:
    """Counts the surveyed images of a run, and notifies of the count."""

    def __init__(self, notify: Notify) -> None:
        self._notify, self._done, self._total = notify, 0, 0

    def expect(self, images: int) -> None:
        """Add images to the total."""
        self._total += images

    def count(self, images: int) -> None:
        """Count surveyed images."""
        self._done += images
        self._notify(Planned(self._done, self._total))


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyedImages:
    """The plans for images of a registry.

    Attributes:
        images: the planned images.
        origins: the survey of each image, unless the run is divided.
        trusted: the images for which the lock file makes requests needless.
    """

    images: tuple[PlannedImage, ...]
    origins: Mapping[PlannedImage, units.Answers[QueryResult]]
    trusted: tuple[SyncItem, ...]


def survey_images(
    session: Session, admitted: Admitted, request: PlanRequest, progress: SurveyProgress, cost: CostCounter
) -> Stage[SurveyedImages]:
    """Compare admitted images with their targets, except trusted images. Return the plans, and add their cost to `cost`.

    Unless the run is dry, the store keeps the manifests of images to mirror.
    """
    locked, keep, workers = request.locked, not request.is_dry, request.workers
    trusted, unknown = list[SyncItem](), list[SyncItem]()
    for item in admitted.items:
        (trusted if is_trusted(item, locked) else unknown).append(item)
    images, origins = list(admitted.refused), dict[PlannedImage, units.Answers[QueryResult]]()
    progress.expect(len(unknown))
    for batch in split_batches(unknown, _BATCH):
        items = {make_query(item, locked): item for item in batch}
        outcome = yield from ask(_survey_unit(session, tuple(items), keep=keep, workers=workers))
        progress.count(len(batch))
        found = (plan_image(items[one.query], one, locked) for one in _results(tuple(items), outcome))
        planned = _count_cost(session.store, [image for image in found if image is not None], cost)
        if request.is_divided:
            planned = weigh_images(planned)
        elif not isinstance(outcome, Failed):
            origins |= dict.fromkeys(planned, outcome.value)
        images += planned
    return SurveyedImages(images=tuple(images), origins=origins, trusted=tuple(trusted))


def _count_cost(store: ContentStore, images: list[PlannedImage], cost: CostCounter) -> list[PlannedImage]:
    """Add the cost of images. Return the images. If reading the store fails, the images that need content fail."""
    new = cost.select_new(images)
    try:
        held = list(store.each(store.holds, new))
    except DistError as exc:
        return [fail_image(image.item, exc) if image.is_needed else image for image in images]
    cost.add(images, {one.digest for one, is_held in zip(new, held, strict=True) if not is_held})
    return images


def _survey_unit(
    session: Session, batch: tuple[ImageQuery, ...], *, keep: bool, workers: int
) -> Unit[units.Answers[QueryResult]]:
    targets = frozenset(target.host for query in batch for target in query.targets)
    hosts = targets.union(*(session.source_hosts(query.source) for query in batch))
    return Unit(work=units.survey, arguments=(batch,), options={"keep": keep, "workers": workers}, hosts=hosts)


def _results(batch: Sequence[ImageQuery], outcome: Outcome[units.Answers[QueryResult]]) -> Sequence[QueryResult]:
    """Return the results of a survey. The error of a failed survey is the result for each image."""
    if not isinstance(outcome, Failed):
        return outcome.value.found
    error = outcome.error
    return [QueryResult(query=query, image=error, standing=(error,) * len(query.targets)) for query in batch]
