"""What a run that brings images tells as events, as soon as it is known: of an image at a target, what came of it there."""

from prefect_dist.mirror.plan import Plan, Step
from prefect_dist.tasks import events
from prefect_dist.transfer import session


def brought(step: Step) -> None:
    """Tell that an image is at a target now."""
    if step.new is not None:
        previous = step.old.digest if step.old else None
        events.image_brought(step.wish.source, step.target, reason=_reason(step), digest=step.new.digest, previous=previous)


def failed(step: Step, error: str) -> None:
    """Tell why it is not, unless that is because the run was ended."""
    if session.current().stopping.reason is None:
        events.image_failed(step.wish.source, step.target, digest=step.new.digest if step.new else None, error=error)


def failed_in(plan: Plan) -> None:
    """Tell of the images of which nothing could be told at all."""
    for step in plan.steps:
        if step.change == "failed":
            failed(step, step.note or "")


def _reason(step: Step) -> events.Reason:
    if step.change == "change":
        is_other = step.old is not None and step.new is not None and step.old.digest != step.new.digest
        return "changed" if is_other else "referrers"
    return "repaired" if step.change == "repair" else "added"
