"""Makes the plan of a mirror run in three stages: list each source registry, claim targets, survey the images.

Several registries are in progress at a time, each with a single query in flight. The run mirrors images as soon as they are
compared with their targets (surveyed). A slow registry delays only its own images, and images with targets that the registry
may claim.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from prefect_dist.mirror.claiming import Claiming
from prefect_dist.mirror.listing import Selected, list_registry
from prefect_dist.mirror.orphans import find_orphans
from prefect_dist.mirror.plan import Plan, PlannedImage
from prefect_dist.mirror.plan_cost import CostCounter
from prefect_dist.mirror.queries import QueryLoop, run_stage
from prefect_dist.mirror.surveying import PlanRequest, SurveyedImages, SurveyProgress, survey_images
from prefect_dist.ocispec.errors import DistError
from prefect_dist.transfer import units
from prefect_dist.transfer.events import Notify
from prefect_dist.transfer.session import Session
from prefect_dist.transfer.survey import QueryResult

if TYPE_CHECKING:
    from prefect_dist.mirror.entry import Entry


class Receiver(Protocol):
    """Takes planned images, in the thread of the walk."""

    def take_images(
        self, images: Sequence[PlannedImage], origins: Mapping[PlannedImage, units.Answers[QueryResult]], /
    ) -> None:
        """Take planned images of a registry; `origins` has the survey of each image."""

    def take_plan(self, plan: Plan, /) -> None:
        """Take the plan of the run."""


class Planning:
    """Runs the stages of planning, and hands over the results.

    The plan also contains failed images and entries, with the reasons.
    """

    def __init__(self, request: PlanRequest, session: Session, notify: Notify, loop: QueryLoop, receiver: Receiver) -> None:
        self._request, self._session, self._loop, self._receiver = request, session, loop, receiver
        self._progress = SurveyProgress(notify)
        self._selections = list[Selected]()
        self._surveys = list[SurveyedImages]()
        self._cost = CostCounter()
        self._open_surveys = 0

    def begin(self) -> None:
        """Begin to list each source registry."""
        by_host: dict[str, list[Entry]] = {}
        for entry in self._request.entries:
            by_host.setdefault(entry.source_host, []).append(entry)
        claiming = Claiming(by_host)
        for host, entries in by_host.items():
            stage = list_registry(host, entries, workers=self._request.workers)
            run_stage(stage, self._loop, lane=host, done=partial(self._claim, claiming, host))

    def _claim(self, claiming: Claiming, host: str, selections: Sequence[Selected]) -> None:
        """Claim targets for the images of a listed registry, and survey the admitted images."""
        self._selections += selections
        admitted = claiming.claim(host, [item for selected in selections for item in selected.items])
        self._open_surveys += len(admitted)
        for images in admitted:
            stage = survey_images(self._session, images, self._request, self._progress, self._cost)
            run_stage(stage, self._loop, lane=images.host, done=partial(self._hand_over, claiming))

    def _hand_over(self, claiming: Claiming, surveyed: SurveyedImages) -> None:
        """Hand over surveyed images, and the plan after the last images."""
        self._open_surveys -= 1
        self._surveys.append(replace(surveyed, origins={}))  # without results that only the walk needs
        is_last = claiming.is_complete and not self._open_surveys
        plan = self._make_plan() if is_last else None
        self._receiver.take_images(surveyed.images, surveyed.origins)
        if plan is not None:
            self._receiver.take_plan(plan)

    def _make_plan(self) -> Plan:
        order = {id(entry): number for number, entry in enumerate(self._request.entries)}
        selections = sorted(self._selections, key=lambda selected: order[id(selected.entry)])
        images = [image for surveyed in self._surveys for image in surveyed.images]
        images.sort(key=lambda image: order[id(image.item.entry)])
        trusted = [target for surveyed in self._surveys for item in surveyed.trusted for target in item.targets]
        problems, idle = _collect_problems(selections), _describe_idle(selections)
        held = problems.keys() | idle.keys() | {entry.at for entry in self._request.others}
        chosen = {(selected.entry.at, source.locator) for selected in selections for source in selected.sources}
        entries = (*self._request.entries, *self._request.others)
        orphans = find_orphans(images, trusted, entries, self._request.locked, held=held, selected=chosen)
        notes = {**orphans.notes, **idle}
        return Plan(
            images=tuple(images),
            orphans=orphans.tags,
            problems=problems,
            unnamed=tuple(unnamed for selected in selections for unnamed in selected.unnamed),
            idle=tuple(notes[at] for at in dict.fromkeys(entry.at for entry in self._request.entries) if at in notes),
            trusted=len(trusted),
            cost=self._cost.cost,
            quotas=self._session.remotes.registries.quotas(),
            is_dry=self._request.is_dry,
        )


def _collect_problems(selections: Iterable[Selected]) -> dict[str, DistError]:
    """Return the error of each entry whose images are unknown, by the place of the entry."""
    return {one.entry.at: one.problem for one in selections if one.problem is not None}


def _describe_idle(selections: Iterable[Selected]) -> dict[str, str]:
    """Return a line for each entry without selected images, by the place of the entry.

    The entry has a mistake, or the source was emptied. So the run prunes no tag of the entry.
    """
    idle = (one.entry for one in selections if not one.sources and one.problem is None)
    pruning = ", so no tag of this entry is pruned"
    return {one.at: f"{one.at}: no image of {one.source} is selected{'' if one.prune is None else pruning}" for one in idle}
