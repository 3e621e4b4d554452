"""The last step of a run that pushed referrers to registries without a referrers API: see that they are still listed."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect.utilities.annotations import quote

from prefect_dist.flows.limits import Limits
from prefect_dist.flows.runner import message, outcome
from prefect_dist.ocispec import Digest, Reference
from prefect_dist.ocispec.frontier import Frontier
from prefect_dist.tasks import confirmation as tasks
from prefect_dist.transfer.session import Session

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture


@dataclass(frozen=True, slots=True, kw_only=True)
class Unconfirmed:
    """Referrers in a repository that are not listed there, or for which that is not known; `error` says why."""

    repository: Reference
    referrers: frozenset[Digest]
    error: str


class Confirming:
    """Confirms what one run pushed. `tasks` counts the task runs that ended."""

    def __init__(self, session: Session, limits: Limits, *, workers: int) -> None:
        self.tasks = 0
        self._session, self._limits, self._workers = session, limits, workers

    def run(self) -> list[Unconfirmed]:
        """List again what others have overwritten. Return what could not be listed. Without fallback tags there is no task."""

        def start(repository: Reference) -> "PrefectFuture[Any]":
            return self._limits.ready(tasks.confirm_referrers, repository.host).submit(quote(repository))

        frontier: Frontier[Reference, PrefectFuture[Any]] = Frontier(start, window=self._workers)
        frontier.add(self._session.registries.with_fallback_referrers())
        found = list[Unconfirmed]()
        for repository, future in frontier:
            self.tasks += 1
            result = outcome(future)
            if isinstance(result, tasks.Confirmed):
                failed = [(referrers, message(error)) for referrers, error in result.failed]
            else:
                pushed = self._session.registries.pusher(repository).referred.values()
                failed = [(frozenset[Digest]().union(*pushed), message(result))]
            found += [Unconfirmed(repository=repository, referrers=one, error=error) for one, error in failed]
        return found
