"""One active run per flow and configuration, for runs of deployments: a later run ends as Cancelled and names the earlier one.

Prefect's own limit of a deployment would also cancel runs of other configurations. So each configuration has a global
concurrency limit of one slot, which a run holds with a lease of a minute: a run that crashed holds it no longer than that. Each
run also has the limit's name as a tag, by which the earlier run is found.

A slot that no active run holds, because its run crashed or the server was restarted and forgot its leases, is taken over: the
limit is created again. If only its count of slots was reset, the lease of the crashed run would give back the slot of the new
run when it expires.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from prefect_dist.flows.api import client
from prefect_dist.flows.slots import lease
from prefect_dist.transfer.cancellation import Stopped, current_token

_LEASE_S = 60
_ACTIVE = ["RUNNING", "CANCELLING"]
# How often, and after what pause, a run looks whether the run that holds the slot is known: it may just have begun or ended.
_LOOKS, _PAUSE_S = 3, 1.0
_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]+")


class AlreadyActive(Stopped):
    """Another run of the same flow and configuration is active, so this one does nothing."""


@contextmanager
def only_run(flow: str, configuration: str, *, label: str) -> Iterator[None]:
    """Hold the slot of a configuration during this block. `label` is the configuration's name for people.

    A run that was started by a command, or for a configuration outside of Prefect, is not limited.

    Raises:
        AlreadyActive: another run holds the slot.
        Stopped: the run was asked to end meanwhile.
    """
    context = FlowRunContext.get()
    run = None if context is None else context.flow_run
    if run is None or run.deployment_id is None:
        yield
        return
    name = _limit_name(flow, configuration, label)
    client().update_flow_run(run.id, tags=[*run.tags, name])
    _create(name)
    held = lease(name, 1, duration_s=_LEASE_S)
    for _ in range(_LOOKS):
        if held is not None:
            break
        if (other := _active(name, besides=run.id)) is not None:
            raise AlreadyActive(f"{flow} {label}: run {other.name} ({other.id}) of this configuration is active, one at a time")
        current_token().pause(_PAUSE_S)
        held = lease(name, 1, duration_s=_LEASE_S)
    if held is None:
        _recreate(name)
        held = lease(name, 1, duration_s=_LEASE_S)
    if held is None:
        raise AlreadyActive(f"{flow} {label}: another run of this configuration is active, one at a time")
    with held:
        yield


def _limit_name(flow: str, configuration: str, label: str) -> str:
    """The name of the limit: readable, and different for configurations of the same name."""
    digest = hashlib.sha256(configuration.encode()).hexdigest()[:8]
    return f"{flow}:{_UNUSUAL.sub('-', label)}:{digest}"


def _create(name: str) -> None:
    """Create the limit of a configuration. One that exists stays as an operator set it."""
    try:
        client().read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        try:
            client().create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
        except ObjectAlreadyExists:
            return  # by a run that began at the same time


def _recreate(name: str) -> None:
    """Create a limit again with its settings: the slots and leases of the old one no longer count."""
    with suppress(ObjectNotFound, ObjectAlreadyExists):  # a run that began at the same time does this, too
        old = client().read_global_concurrency_limit_by_name(name)
        client().delete_global_concurrency_limit_by_name(name)
        settings = {"name": name, "limit": old.limit, "active": old.active, "slot_decay_per_second": old.slot_decay_per_second}
        client().create_global_concurrency_limit(GlobalConcurrencyLimitCreate.model_validate(settings))


def _active(tag: str, *, besides: UUID) -> FlowRun | None:
    """Return an active run with a tag."""
    wanted = {"tags": {"all_": [tag]}, "state": {"type": {"any_": _ACTIVE}}, "id": {"not_any_": [besides]}}
    found = client().read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(wanted), limit=1)
    return found[0] if found else None
