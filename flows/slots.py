"""Global concurrency limits that an operator sets in Prefect: how much all runs together, wherever they run, ask of a registry.

On the limit `registry:<host>`, where there is one, a run takes a single lease for its whole length: of as many slots as it may
have requests in flight there, and it has no more of these than slots. A slot per task would cost several requests to Prefect
for each, and a thread. Leases are taken in the order of their names, so that no two runs wait for each other.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import count
from uuid import UUID

from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run

from flows.api import client
from flows.progress import Listener
from ocispec.units import counted
from tasks.session import SessionSpec
from tasks.stopping import current

_ASKED_FOR_S = 2.0
"""How long Prefect is asked for slots until it is looked whether the run is to end."""


@contextmanager
def leased(spec: SessionSpec, hosts: Iterable[str], *, workers: int, listener: Listener) -> Iterator[SessionSpec]:
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
            slots[host] = max(1, min(registries.hosts.of(host).in_flight or workers, limit))
            held.enter_context(_taken(_name(host), slots[host], limit, listener))
        yield replace(spec, registries=replace(registries, hosts=replace(registries.hosts, slots=slots)))


def _taken(name: str, slots: int, limit: int, listener: Listener) -> ExitStack:
    """A lease that has begun, and ends as its block is left."""
    holder = ConcurrencyLeaseHolder(type="flow_run", id=UUID(flow_run.id))  # whom Prefect's page of the limit shows
    stopping, taken = current(), ExitStack()
    for attempt in count():
        stopping.check()
        if attempt == 1:
            listener.note(f"waits for {counted(slots, 'slot')} of the {limit} of Prefect's limit {name}, which other runs have")
        with suppress(TimeoutError):
            taken.enter_context(concurrency(name, occupy=slots, timeout_seconds=_ASKED_FOR_S, holder=holder))
            break
    listener.note(f"has {counted(slots, 'slot')} of {name}")
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
