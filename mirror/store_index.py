"""Keeps `index.json` of the store up to date, at the end of a run that records names."""

from prefect_dist.mirror.report import RunError
from prefect_dist.ocispec.errors import DistError
from prefect_dist.transfer.events import Notify, StepFailed
from prefect_dist.transfer.session import Session


def update_index(session: Session, notify: Notify) -> list[RunError]:
    """List the images of the store in `index.json`. Return the error of a failed update."""
    try:
        session.store.update_index()
    except DistError as exc:
        notify(StepFailed(exc))
        return [RunError(object=f"index of {session.store.url}", error=exc.with_traceback(None))]
    return []
