"""The policy of a mirror's walk: upload content to targets on arrival, and publish complete images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from prefect_dist.mirror.plan import Plan, PlannedImage, TargetAction
from prefect_dist.mirror.results import GateVeto, MirrorResults
from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.children import is_foreign
from prefect_dist.ocispec.errors import Conflict, DistError
from prefect_dist.transfer import units
from prefect_dist.transfer.fetching import Fetched
from prefect_dist.transfer.image_report import Failure
from prefect_dist.transfer.pool import Failed, Ok, Unit
from prefect_dist.transfer.publishing import Publication
from prefect_dist.transfer.related import NOTHING
from prefect_dist.transfer.repair_source import Located
from prefect_dist.transfer.session import Session
from prefect_dist.transfer.walk_state import ContentNode, FollowUp, ImageState


class MirrorObserver(Protocol):
    """Receives the plan, and the result at each target as soon as the result is known."""

    def on_begin(self) -> None:
        """The first images are ready. The observer may cancel the run."""

    def on_plan(self, plan: Plan, *, is_dry: bool) -> None:
        """The plan is complete. A dry run does not carry it out."""

    def on_mirrored(self, action: TargetAction) -> None:
        """The target has the image."""

    def on_failed(self, action: TargetAction, errors: Sequence[DistError]) -> None:
        """The target does not have the image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unconfirmed:
    """Referrers that a repository does not list, or that the run could not look up, with the error."""

    repository: Reference
    referrers: frozenset[Digest]
    error: DistError


class EndOfImage(Protocol):
    """Called for each finished image."""

    def __call__(self, image: ImageState, /, *, is_vetoed: bool) -> None:
        """Count the image."""


class MirrorPolicy:
    """The policy of a walk over planned images."""

    visits_existing = True

    def __init__(self, session: Session, when_ended: EndOfImage, observer: MirrorObserver) -> None:
        self._session, self._when_ended, self._observer = session, when_ended, observer
        self._planned: dict[ImageState, PlannedImage] = {}
        self._judgements: dict[ImageState, FollowUp[units.Answer[str | None]]] = {}
        self._publications: dict[ImageState, dict[TargetAction, FollowUp[Descriptor]]] = {}
        self._failures: dict[Reference, tuple[DistError, ...]] = {}
        self._vetoes: dict[Reference, GateVeto] = {}
        self._published: dict[TargetAction, dict[Digest, str | None]] = {}

    def take(self, planned: PlannedImage, origin: object) -> ImageState:
        """Return the walk's state of a planned image; `origin` is the result of the survey."""
        image = _image(planned, origin)
        self._planned[image] = planned
        return image

    def unit_for(self, node: ContentNode, source: Reference) -> Unit[Fetched]:
        """Return the unit that fetches content and uploads the content to a repository of each target registry.

        Further repositories mount the content. Content of an image with a gate is uploaded after the gate, and
        non-distributable layers are never uploaded.
        """
        places: dict[str, Reference] = {}
        for image in () if is_foreign(node.descriptor) else node.images:
            planned = self._planned[image]
            for action in () if planned.item.entry.gate else planned.due:
                places.setdefault(action.target.host, action.target)
        where = tuple(places.values())
        hosts = self._session.source_hosts(source).union(places)
        return Unit(work=units.carry, arguments=(node.descriptor, source, where), hosts=hosts)

    def follow_ups(self, image: ImageState, /) -> Sequence[FollowUp[Any]]:
        """Return the query to the gate, if the entry has a gate; then the publication at each target; then no unit."""
        planned, judgement = self._planned[image], self._judgements.get(image)
        if planned.item.entry.gate is not None:
            if judgement is None:
                self._judgements[image] = self._judgement(image, planned)
                return (self._judgements[image],)
            if self._veto(image) is not None:
                return ()
        if image in self._publications:
            return ()
        self._publications[image] = {action: self._publication(image, planned, action) for action in planned.due}
        return tuple(self._publications[image].values())

    def end(self, image: ImageState, /) -> None:
        """Decide the result at each target, and notify the observer."""
        self._when_ended(image, is_vetoed=self._veto(image) is not None)
        for action in self._planned[image].actions:
            if action.is_due or action.is_judged:
                self._decide(image, action)

    def _decide(self, image: ImageState, action: TargetAction) -> None:
        if (veto := self._veto(image)) is not None:
            self._vetoes[action.target] = GateVeto(gate=_gate(self._planned[image]), reason=veto)
        elif errors := self._errors(image, action):
            self._failures[action.target] = errors
            self._observer.on_failed(action, errors)
        elif action.is_due:
            self._published[action] = {referrer.descriptor.digest: referrer.tag for referrer in image.referrers}
            self._observer.on_mirrored(action)

    def fail_unconfirmed(self, unconfirmed: Unconfirmed) -> list[Reference]:
        """Count published targets whose registry does not list a pushed referrer as failed. Return the targets.

        The referrers do not count as pushed, so that the next run pushes the referrers again.
        """
        failed = list[Reference]()
        for action, pushed in self._published.items():
            target = action.target
            if target.locator == unconfirmed.repository.locator and unconfirmed.referrers & pushed.keys():
                self._published[action] = {one: tag for one, tag in pushed.items() if one not in unconfirmed.referrers}
                self._failures[target] = (*self._failures.get(target, ()), unconfirmed.error)
                self._observer.on_failed(action, self._failures[target])
                failed.append(target)
        return failed

    def result(self) -> MirrorResults:
        """Return the results of the ended images."""
        return MirrorResults(
            failures=dict(self._failures),
            vetoes=dict(self._vetoes),
            referrers={action.target: pushed for action, pushed in self._published.items()},
            begun=self._begun(),
        )

    def _begun(self) -> frozenset[Reference]:
        """Return the targets of unsuccessful publications where the registry may have set the tag.

        A publication that found a moved target tag did not set the tag.
        """
        return frozenset(
            action.target
            for publications in self._publications.values()
            for action, follow_up in publications.items()
            if not isinstance(follow_up.outcome, Ok)
            and not (isinstance(follow_up.outcome, Failed) and isinstance(follow_up.outcome.error, Conflict))
        )

    def _veto(self, image: ImageState) -> str | None:
        judgement = self._judgements.get(image)
        judged = judgement.outcome if judgement is not None else None
        return judged.value.found if isinstance(judged, Ok) else None

    def _errors(self, image: ImageState, action: TargetAction) -> tuple[DistError, ...]:
        """Return the errors of a target.

        An image is published only if nothing failed before. So the errors of a published image are errors of publications,
        and a target has only the error of its own publication. Errors of content or of the gate concern all targets.
        """
        if image not in self._publications:
            return _distinct_errors(image.failures)
        follow_up = self._publications[image].get(action)
        return (follow_up.outcome.error,) if follow_up is not None and isinstance(follow_up.outcome, Failed) else ()

    def _judgement(self, image: ImageState, planned: PlannedImage) -> FollowUp[units.Answer[str | None]]:
        name = _gate(planned)

        def describe(judged: units.Answer[str | None]) -> str:
            return f"passed {name}" if judged.found is None else f"was vetoed by {name}: {judged.found}"

        unit = Unit(
            work=units.judge,
            arguments=(planned.item.entry.gate, image.reference, image.root),
            parents=tuple(image.leaves),
            scope=image.scope,
        )
        return FollowUp(image=image, unit=unit, describe=describe)

    def _publication(self, image: ImageState, planned: PlannedImage, action: TargetAction) -> FollowUp[Descriptor]:
        entry, judgement = planned.item.entry, self._judgements.get(image)
        if image.root is None:
            raise ValueError(f"{image.reference}: an image without a root is not published")
        backup = action.backup
        wanted = Publication(
            root=image.root,
            target=action.target,
            replaces=None if action.old is None else action.old.digest,
            platforms=image.platforms,
            rewritten=entry.rewrite_index,
            referrers=tuple(image.referrers),
            backup=backup,
            is_stored=entry.is_sparse,
        )
        judged = None if judgement is None else judgement.outcome
        unit = Unit(
            work=units.publish,
            arguments=(wanted,),
            hosts=frozenset({action.target.host} | ({backup.host} if backup is not None else set())),
            parents=(judged.value,) if isinstance(judged, Ok) else tuple(image.leaves),
            scope=image.scope,
        )

        def describe(_receipts: object) -> str:
            return f"published at {action.target}"

        return FollowUp(image=image, unit=unit, describe=describe)


def _distinct_errors(failures: Iterable[Failure]) -> tuple[DistError, ...]:
    """Return the distinct errors of an image: a registry that is down causes equal errors."""
    return tuple({failure.message: failure.error for failure in failures}.values())


def _gate(planned: PlannedImage) -> str:
    gate = planned.item.entry.gate
    return "" if gate is None else gate.entry_point or gate.command[0]


def _image(planned: PlannedImage, origin: object) -> ImageState:
    """Return the state of an image for the walk. A repair pushes the recorded referrers, not the current ones."""
    item = planned.item
    image = ImageState(item.source, platforms=item.entry.platforms, related=item.related, root=planned.root, origin=origin)
    if isinstance(origin, Located):
        image.related, image.referrers = NOTHING, dict.fromkeys(origin.referrers)
    return image
