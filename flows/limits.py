"""Limits on requests to one registry, which an operator sets in Prefect under the name `registry:<host>`.

There are two kinds:

- A concurrency limit on the tag limits the task runs. Prefect requests a slot for each task run that has a tag, even if no
  limit exists; this makes a flow of small tasks three times as slow (docs/dev/adr/0004). So each run looks for the limit once
  per registry, and its tasks have the tag only if the limit exists.
- A global concurrency limit limits the requests in flight of all runs together, wherever they run. A run takes one lease for
  its whole duration, with one slot for each request that it may have in flight. A slot per task would cost several requests to
  Prefect for each task, and a thread. Runs take their leases in the order of the names, so that no two runs wait for each
  other.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from http import HTTPStatus
from typing import Any
from uuid import UUID

from prefect import Task
from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.runtime import flow_run

from prefect_dist.flows.api import brief, client
from prefect_dist.ocispec.errors import Denied
from prefect_dist.ocispec.reference import is_registry
from prefect_dist.ocispec.units import format_count
from prefect_dist.transfer.cancellation import current_token
from prefect_dist.transfer.events import Note, Notify
from prefect_dist.transfer.session import SessionSpec

# The time between two requests for slots. Prefect can wait by itself, but a cancelled run would not end while it waits.
_PAUSE_S = 2.0


class Blocked(Denied):
    """A limit of a registry is so low that no request is possible. An operator blocks a registry with a limit of 0."""


class TaskOptions:
    """The options of the tasks of one run: the number of retries, and the tags of registries that have a limit."""

    def __init__(self, *, retries: int) -> None:
        self._tags = cache(_find_tags)
        self._configure = cache(lambda task, hosts: task.with_options(retries=retries, tags=self._tags_of(hosts)))

    def configure(self, task: Task[..., Any], hosts: Iterable[str]) -> Task[..., Any]:
        """Return a task with the options of this run. `hosts` are the registries to which the task sends requests."""
        configured: Task[..., Any] = self._configure(task, frozenset(hosts))
        return configured

    def _tags_of(self, hosts: Iterable[str]) -> frozenset[str]:
        return frozenset(tag for host in hosts if is_registry(host) for tag in self._tags(host))


def _find_tags(host: str) -> frozenset[str]:
    """Return the tag of a registry if a limit on the tag exists, else no tag.

    Raises:
        Blocked: the limit is 0.
    """
    name = _name(host)
    try:
        with brief():
            found = client().read_concurrency_limit_by_tag(name)
    except ObjectNotFound:
        return frozenset()
    if found.concurrency_limit == 0:
        remedy = f"'prefect concurrency-limit create {name} N', or delete it with 'prefect concurrency-limit delete {name}'"
        raise Blocked(f"Prefect limit of the tag {name} is 0; raise it with {remedy}")
    return frozenset({name})


@contextmanager
def lease_slots(spec: SessionSpec, hosts: Iterable[str], *, workers: int, notify: Notify) -> Iterator[SessionSpec]:
    """Lease slots of the global concurrency limits of registries for this block. Wait until enough slots are free.

    Args:
        spec: the specification of the session of the run.
        hosts: the registries to which the run sends requests.
        workers: the most requests in flight per registry, unless the settings of the registry have a lower number.
        notify: receives a note while the run waits, and a note with the number of slots.

    Yields:
        The specification with at most as many requests in flight per registry as the run has slots.

    Raises:
        Blocked: a limit is 0.
        Stopped: the run was cancelled while it waited.
    """
    registries = spec.registries
    with ExitStack() as held:
        slots = dict[str, int]()
        for host, limit in _find_limits(sorted(filter(is_registry, set(hosts)))).items():
            slots[host] = max(1, min(registries.hosts.settings_for(host).in_flight or workers, limit))
            held.enter_context(_take_slots(_name(host), slots[host], limit, notify))
        yield replace(spec, registries=replace(registries, hosts=replace(registries.hosts, slots=slots)))


def take_lease(name: str, slots: int, *, duration_s: float = 300) -> ExitStack | None:
    """Lease slots of a global concurrency limit, or return None if too few are free.

    Prefect renews the lease until the returned stack is closed. The lease of a process that died expires after `duration_s`.

    Raises:
        Blocked: the limit is lower than `slots`.
    """
    holder = ConcurrencyLeaseHolder(type="flow_run", id=UUID(flow_run.id))  # Prefect's page of the limit shows the holder
    lease = ExitStack()
    try:
        lease.enter_context(concurrency(name, occupy=slots, max_retries=0, holder=holder, lease_duration=duration_s))
    except ConcurrencySlotAcquisitionError as exc:
        status = exc.__cause__.response.status_code if isinstance(exc.__cause__, PrefectHTTPStatusError) else None
        if status == HTTPStatus.LOCKED:
            return None
        if status == HTTPStatus.UNPROCESSABLE_ENTITY:
            remedy = f"'prefect gcl update {name} --limit N', or disable it with 'prefect gcl disable {name}'"
            raise Blocked(f"Prefect limit {name} has less than {format_count(slots, 'slot')}; raise it with {remedy}") from exc
        raise
    return lease


def _take_slots(name: str, slots: int, limit: int, notify: Notify) -> ExitStack:
    lease = take_lease(name, slots)
    if lease is None:
        notify(Note(f"waiting for {format_count(slots, 'slot')} of the {limit} of Prefect limit {name}, held by other runs"))
    while lease is None:
        current_token().pause(_PAUSE_S)
        lease = take_lease(name, slots)
    notify(Note(f"holds {format_count(slots, 'slot')} of Prefect limit {name}"))
    return lease


def _find_limits(hosts: Iterable[str]) -> dict[str, int]:
    """Return the active limits, by registry."""
    found = ((host, _find_limit(_name(host))) for host in hosts)
    return {host: limit for host, limit in found if limit is not None}


def _find_limit(name: str) -> int | None:
    try:
        found = client().read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        return None
    return found.limit if found.active else None


def _name(host: str) -> str:
    return f"registry:{host}"
