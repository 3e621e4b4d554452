"""Records the intentions of a mirror run in the lock file, before the run changes a target."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

from prefect_dist.mirror.bookkeeping import note_changes, record_intent
from prefect_dist.mirror.lock import Lock, Locked, Records
from prefect_dist.mirror.plan import Plan, PlannedImage, TargetAction
from prefect_dist.ocispec import Reference


class Intentions:
    """The intentions of one run.

    Attributes:
        replaced: the records that the lock file had before the run wrote intentions.
    """

    def __init__(self, lock: Lock, locked: Records) -> None:
        self._lock, self._locked = lock, locked
        self._now = datetime.now(UTC)
        self.replaced = dict[Reference, Locked]()

    def record(self, images: Sequence[PlannedImage]) -> None:
        """Record the intention to publish images. If no image is due and no tag is wanted again, write nothing.

        Raises:
            InvalidInput: the lock file is damaged.
            DistError: the lock file cannot be written.
        """
        if any(action.is_due or self._is_wanted_again(action) for image in images for action in image.actions):
            plan = Plan(images=tuple(images))
            self._lock.update(partial(self._amend, plan), partial(note_changes, plan, self._now))

    def _amend(self, plan: Plan, locked: Records) -> Records:
        """Return the records with the intentions of a plan, and keep the replaced records.

        If another run changed the file meanwhile, the lock calls the method again.
        """
        for action in plan.actions:
            if action.target in locked:
                self.replaced[action.target] = locked[action.target]
            else:
                self.replaced.pop(action.target, None)
        return record_intent(plan, locked)

    def _is_wanted_again(self, action: TargetAction) -> bool:
        record = self._locked.get(action.target)
        return record is not None and record.unwanted is not None
