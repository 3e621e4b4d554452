"""The last step of a run that pushed referrers to registries without a referrers API: check and repair the fallback tags."""

from dataclasses import dataclass

from prefect_dist.ocispec import Digest, Reference
from prefect_dist.ocispec.errors import DistError
from prefect_dist.transfer import units
from prefect_dist.transfer.pool import Failed, Pool, Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Unconfirmed:
    """Referrers that a repository does not list, or that the run could not look up, with the error."""

    repository: Reference
    referrers: frozenset[Digest]
    error: DistError


def confirm_referrers(pool: Pool) -> list[Unconfirmed]:
    """List referrers again that other clients overwrote. Return the referrers with an error.

    A run without fallback tags runs no unit.
    """
    registries, found = pool.session.registries, list[Unconfirmed]()
    for repository, outcome in pool.run(registries.with_fallback_referrers(), _unit):
        if isinstance(outcome, Failed):
            pushed = frozenset[Digest]().union(*registries.pusher(repository).fallback_referrers.values())
            found.append(Unconfirmed(repository=repository, referrers=pushed, error=outcome.error))
        else:
            found += [Unconfirmed(repository=repository, referrers=one, error=error) for one, error in outcome.value.found]
    return found


def _unit(repository: Reference) -> Unit[units.Answer[units.UnlistedReferrers]]:
    return Unit(work=units.confirm_referrers, arguments=(repository,), hosts=frozenset({repository.host}))
