"""Global concurrency limits that an operator sets in Prefect: how much all runs together, wherever they run, ask of a registry.

On the limit `registry:<host>`, where there is one, a run takes a single lease for its whole length: of as many slots as it may
have requests in flight there, and it has no more of these than slots. A slot per task would cost several requests to Prefect
for each, and a thread. Leases are taken in the order of their names, so that no two runs wait for each other.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from http import HTTPStatus
from uuid import UUID

from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.runtime import flow_run

from prefect_dist.flows.api import client
from prefect_dist.ocispec.units import format_count
from prefect_dist.transfer.cancellation import current_token
from prefect_dist.transfer.events import Note, Notify
from prefect_dist.transfer.session import SessionSpec

# Between two questions for slots. Prefect would wait for them by itself, but hear nothing of a run that is to end.
_PAUSE_S = 2.0


@contextmanager
def lease_slots(spec: SessionSpec, hosts: Iterable[str], *, workers: int, notify: Notify) -> Iterator[SessionSpec]:
    """The specification of a session that keeps to the slots which the current flow run has until the block is left.

    `hosts` are the registries that it reaches, with up to `workers` requests at once each where their settings do not say
    fewer. Waits until there are slots.

    Raises:
        Stopped: the run was asked to end meanwhile.
    """
    registries = spec.registries
    with ExitStack() as held:
        slots = dict[str, int]()
        for host, limit in _limits(sorted(set(hosts))).items():
            slots[host] = max(1, min(registries.hosts.settings_for(host).in_flight or workers, limit))
            held.enter_context(_take_slots(_name(host), slots[host], limit, notify))
        yield replace(spec, registries=replace(registries, hosts=replace(registries.hosts, slots=slots)))


def _take_slots(name: str, slots: int, limit: int, notify: Notify) -> ExitStack:
    """A lease that has begun; it ends with its block."""
    taken = lease(name, slots)
    if taken is None:
        notify(Note(f"waits for {format_count(slots, 'slot')} of the {limit} of Prefect's limit {name}, which other runs have"))
    while taken is None:
        current_token().pause(_PAUSE_S)
        taken = lease(name, slots)
    notify(Note(f"has {format_count(slots, 'slot')} of {name}"))
    return taken


def lease(name: str, slots: int, *, duration_s: float = 300) -> ExitStack | None:
    """Begin a lease on slots of a limit, None if there are not enough. Without renewal it expires after `duration_s`."""
    holder = ConcurrencyLeaseHolder(type="flow_run", id=UUID(flow_run.id))  # whom Prefect's page of the limit shows
    taken = ExitStack()
    try:
        taken.enter_context(concurrency(name, occupy=slots, max_retries=0, holder=holder, lease_duration=duration_s))
    except ConcurrencySlotAcquisitionError as exc:
        if isinstance(exc.__cause__, PrefectHTTPStatusError) and exc.__cause__.response.status_code == HTTPStatus.LOCKED:
            return None
        raise
    return taken


def _limits(hosts: Iterable[str]) -> dict[str, int]:
    """The limits of those hosts that have one which is switched on."""
    found = ((host, _limit(_name(host))) for host in hosts)
    return {host: limit for host, limit in found if limit is not None}


def _limit(name: str) -> int | None:
    try:
        found = client().read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        return None
    return found.limit if found.active else None


def _name(host: str) -> str:
    return f"registry:{host}"
