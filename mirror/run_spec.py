"""The specification of one run: the job, and the resources of the job.

A flow or a command makes the specification of plain parameters. `flows.run` carries it out as task runs of Prefect, and
`mirror.direct` carries it out in threads.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from prefect_dist.mirror.report import RunReport
from prefect_dist.mirror.scopes import RunScopes
from prefect_dist.transfer.attempts import RETRIES
from prefect_dist.transfer.events import Notify
from prefect_dist.transfer.pool import Grain, Pool
from prefect_dist.transfer.session import SessionSpec

if TYPE_CHECKING:
    from prefect_dist.mirror.division import ShardRunner
    from prefect_dist.mirror.mirror_policy import MirrorObserver


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """The means of a run in progress.

    `observer` receives the results of a mirror run. `shards` carries out a mirror run in other processes; None in this process.
    """

    pool: Pool
    scopes: RunScopes
    notify: Notify
    observer: "MirrorObserver"
    shards: "ShardRunner | None" = None


class Job(Protocol):
    """The work of one run, as a frozen value."""

    @property
    def planning(self) -> float | None:
        """Return the share of planning in the work, 0 to 1; None for a job without progress."""

    def list_hosts(self, session: SessionSpec, /) -> frozenset[str]:
        """Return the registries that the job sends requests to."""

    def run(self, context: RunContext, /) -> RunReport:
        """Carry out the job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """The specification of one run.

    Attributes:
        window: the maximum number of units in flight.
        retries: the maximum number of retries of a unit.
        grain: the work of one task run. A run without Prefect has no task runs.
        configuration: the name of the mirror's configuration, None for a run without one.
        warnings: warnings about the parameters and the configuration, for the log of the run.
    """

    job: Job
    session: SessionSpec
    window: int
    retries: int = RETRIES
    grain: Grain = "descriptor"
    configuration: str | None = None
    warnings: tuple[str, ...] = ()
