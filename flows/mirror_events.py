"""Prefect events about images at targets, emitted as soon as each result is known."""

from prefect_dist.mirror.plan import Plan, Step
from prefect_dist.tasks import events
from prefect_dist.transfer import session


class MirrorEvents:
    """Emits an event for each result at a target."""

    def mirrored(self, step: Step) -> None:
        """Emit that an image is at a target now."""
        if step.new is not None:
            previous = step.old.digest if step.old else None
            reason = _reason(step)
            events.image_brought(step.wish.source, step.target, reason=reason, digest=step.new.digest, previous=previous)

    def failed(self, step: Step, error: str) -> None:
        """Emit why an image is not at a target, unless the run was cancelled."""
        if session.current().stopping.reason is None:
            digest = step.new.digest if step.new else None
            events.image_failed(step.wish.source, step.target, digest=digest, error=error)

    def failed_in(self, plan: Plan) -> None:
        """Emit the failures of images that could not be planned."""
        for step in plan.steps:
            if step.change == "failed":
                self.failed(step, step.note or "")


def _reason(step: Step) -> events.Reason:
    if step.change == "change":
        is_other = step.old is not None and step.new is not None and step.old.digest != step.new.digest
        return "changed" if is_other else "referrers"
    return "repaired" if step.change == "repair" else "added"
