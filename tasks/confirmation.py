"""The task that confirms, at the end of a run, that the referrers which it pushed are still listed."""

from dataclasses import dataclass

from prefect_dist.ocispec import Digest, Reference
from prefect_dist.ocispec.errors import DistError
from prefect_dist.tasks._task import argument, comes_again, task_of
from prefect_dist.transfer import session


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Confirmed:
    """The referrers of a repository that are not listed, or for which that is not known, with the errors."""

    failed: tuple[tuple[frozenset[Digest], DistError], ...]


def _confirm_name() -> str:
    return f"confirm referrers in {argument('repository')}"


@task_of("confirm-referrers", run_name=_confirm_name)
def confirm_referrers(repository: Reference) -> Confirmed:
    """List referrers again that this run listed under fallback tags of a repository and that others have overwritten."""
    failed = session.current().confirm_referrers(repository)
    for _, error in failed:
        if comes_again(error):
            raise error
    return Confirmed(tuple(failed))
