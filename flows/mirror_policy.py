"""The course of a mirror's walk: content goes on to its targets as it comes, and whole images are published there."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from prefect import Task

from prefect_dist.flows import mirror_events as telling
from prefect_dist.flows.wanted import Errand, Image, Node, Parent
from prefect_dist.mirror.mirror_report import Brought
from prefect_dist.mirror.plan import Image as Planned
from prefect_dist.mirror.plan import Step
from prefect_dist.mirror.run_report import Failure
from prefect_dist.ocispec import Digest, Reference
from prefect_dist.ocispec.errors import Conflict
from prefect_dist.tasks import mirror as tasks
from prefect_dist.transfer.delivery import Publication
from prefect_dist.transfer.related import NOTHING

if TYPE_CHECKING:
    from prefect_dist.flows.walk import Walk


class EndOfImage(Protocol):
    """Called when an image ended."""

    def __call__(self, image: Image, /, *, is_vetoed: bool) -> None:
        """Count it."""


class Mirroring:
    """What a walk over planned images is for."""

    misses_nothing = True

    def __init__(self, when_ended: EndOfImage) -> None:
        self._when_ended = when_ended
        self._planned: dict[Image, Planned] = {}
        self._judgements: dict[Image, Errand] = {}
        self._publications: dict[Image, dict[Step, Errand]] = {}

    @property
    def planned(self) -> tuple[Planned, ...]:
        """The planned images that were taken."""
        return tuple(self._planned.values())

    def take(self, planned: Planned, origin: Parent) -> Image:
        """Return the image for the walk of one that is planned; `origin` is the result that it was planned by."""
        image = _image(planned, origin)
        self._planned[image] = planned
        return image

    def bring(self, node: Node, source: Reference) -> tuple[Task[..., Any], Sequence[Reference], Sequence[object]]:
        """Fetch it, and deliver it to one repository of each registry that wants it: the others mount it from there.

        What a gate is still to be asked about is not delivered before.
        """
        places: dict[str, Reference] = {}
        for image in node.images:
            planned = self._planned[image]
            for step in () if planned.wish.entry.gate else planned.due:
                places.setdefault(step.target.host, step.target)
        where = tuple(places.values())
        return tasks.carry, (source, *where), (node.descriptor, source, where)

    def onward(self, image: Image, /) -> Sequence[Errand]:
        """Ask the gate, if there is one; then publish it at each target; nothing after that."""
        planned, judgement = self._planned[image], self._judgements.get(image)
        if planned.wish.entry.gate is not None:
            if judgement is None:
                self._judgements[image] = self._judgement(image, planned)
                return (self._judgements[image],)
            if self._veto(image) is not None:
                return ()
        if image in self._publications:
            return ()
        self._publications[image] = {step: self._publication(image, planned, step) for step in planned.due}
        return tuple(self._publications[image].values())

    def ended(self, image: Image, /) -> None:
        """Emit events about the result at each target."""
        self._when_ended(image, is_vetoed=self._veto(image) is not None)
        planned, veto = self._planned[image], self._veto(image)
        for step in planned.due:
            if self._is_published(image, step):
                telling.brought(step)
            elif veto is None:
                telling.failed(step, _told(image.failures))
        for step in planned.steps:
            if step.is_judged and image.failures:
                telling.failed(step, _told(image.failures))

    def result(self, walk: "Walk") -> Brought:
        """Return the result of a walk that ended, for all images."""
        failures, vetoes = dict[Reference, str](), dict[Reference, str]()
        referrers = dict[Reference, dict[Digest, str | None]]()
        reports = walk.reports(self._planned)
        for (image, planned), report in zip(self._planned.items(), reports, strict=True):
            veto = self._veto(image)
            for step in planned.due:
                if self._is_published(image, step):
                    referrers[step.target] = {referrer.descriptor.digest: referrer.tag for referrer in image.referrers}
                elif veto is not None:
                    vetoes[step.target] = f"{planned.wish.source} to {step.target}: vetoed by {_gate(planned)}: {veto}"
                else:
                    failures[step.target] = f"{planned.wish.source} to {step.target}: {_told(report.failures)}"
            for step in planned.steps:
                if step.is_judged and veto is not None:
                    vetoes[step.target] = (
                        f"{step.target}: vetoed by {_gate(planned)}: {veto}; it was mirrored before and stays there"
                    )
                elif step.is_judged and report.failures:
                    failures[step.target] = f"{planned.wish.source} to {step.target}: {_told(report.failures)}"
        return Brought(failures=failures, vetoes=vetoes, referrers=referrers, begun=self._begun())

    def _begun(self) -> frozenset[Reference]:
        """Return the targets whose tag may have been set although their publication did not succeed.

        A publication that found that the target tag had moved did not set it.
        """
        return frozenset(
            step.target
            for publications in self._publications.values()
            for step, errand in publications.items()
            if not isinstance(errand.result, tasks.Published | Conflict)
        )

    def _veto(self, image: Image) -> str | None:
        judgement = self._judgements.get(image)
        judged = judgement.result if judgement is not None else None
        return judged.veto if isinstance(judged, tasks.Judged) else None

    def _is_published(self, image: Image, step: Step) -> bool:
        errand = self._publications.get(image, {}).get(step)
        return errand is not None and isinstance(errand.result, tasks.Published)

    def _judgement(self, image: Image, planned: Planned) -> Errand:
        name = _gate(planned)

        def told(judged: tasks.Judged) -> str:
            return f"passed {name}" if judged.veto is None else f"was vetoed by {name}: {judged.veto}"

        arguments, parents = (planned.wish.entry.gate, image.reference, image.root), tuple(image.leaves)
        return Errand(image=image, task=tasks.judge, talks_to=(), arguments=arguments, parents=parents, told=told)

    def _publication(self, image: Image, planned: Planned, step: Step) -> Errand:
        entry, judgement = planned.wish.entry, self._judgements.get(image)
        if image.root is None:
            raise ValueError(f"{image.reference}: an image without a root is not published")
        backup = step.backup
        wanted = Publication(
            root=image.root,
            target=step.target,
            replaces=None if step.old is None else step.old.digest,
            platforms=image.platforms,
            rewritten=entry.rewrite_index,
            referrers=tuple(image.referrers),
            backup=backup,
        )
        talks_to = (step.target,) if backup is None else (step.target, backup)
        parents = tuple(image.leaves) if judgement is None else (judgement.result,)

        def told(_published: tasks.Published) -> str:
            return f"published at {step.target}"

        return Errand(image=image, task=tasks.publish, talks_to=talks_to, arguments=(wanted,), parents=parents, told=told)


def _told(failures: Iterable[Failure]) -> str:
    return "; ".join(dict.fromkeys(failure.message for failure in failures))


def _gate(planned: Planned) -> str:
    gate = planned.wish.entry.gate
    return "" if gate is None else gate.entry_point or gate.command[0]


def _image(planned: Planned, origin: Parent) -> Image:
    """An image as the walk knows it. What is repaired gets what was about it, not what is about it now."""
    wish = planned.wish
    image = Image(wish.source, platforms=wish.entry.platforms, related=wish.related, root=planned.root, origin=origin)
    if isinstance(origin, tasks.Located):
        image.related, image.referrers = NOTHING, dict.fromkeys(origin.referrers)
    return image
