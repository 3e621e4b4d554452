"""One active run per flow and configuration, for runs of deployments: a later run ends as Cancelled and names the earlier one.

Prefect's own limit of a deployment would also cancel runs of other configurations. So each configuration has a global
concurrency limit of one slot. A run holds the slot with a lease of one minute, which Prefect renews. So a crashed run blocks
the slot for at most a minute. Each run also has the name of the limit as a tag, by which a later run finds the earlier run.

A run takes over a slot that no active run holds, because a run crashed or because the server was restarted and forgot the
leases. To take over a slot, the run creates the limit again. If the run only reset the count of slots, the lease of the crashed
run would free the slot of the new run when that lease expires.
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
from prefect_dist.flows.limits import take_lease
from prefect_dist.transfer.cancellation import Stopped, current_token

_LEASE_S = 60
_ACTIVE = ["RUNNING", "CANCELLING"]
# The number of attempts to find the run that holds the slot, and the pause between two: the other run may just begin or end.
_LOOKS, _PAUSE_S = 3, 1.0
_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]+")


class AlreadyActive(Stopped):
    """Another run of the same flow and configuration is active, so this run does nothing."""


@contextmanager
def only_run(flow: str, configuration: str | None, *, label: str | None) -> Iterator[None]:
    """Hold the slot of a configuration during this block. `label` is the configuration's name for people.

    Only runs of deployments with a configuration are limited, not runs that a command started.

    Raises:
        AlreadyActive: another run holds the slot.
        Stopped: the run was cancelled meanwhile.
    """
    context = FlowRunContext.get()
    run = None if context is None else context.flow_run
    if run is None or run.deployment_id is None or configuration is None or label is None:
        yield
        return
    name = _limit_name(flow, configuration, label)
    client().update_flow_run(run.id, tags=[*run.tags, name])
    _create(name)
    held = take_lease(name, 1, duration_s=_LEASE_S)
    for _ in range(_LOOKS):
        if held is not None:
            break
        if (other := _active(name, besides=run.id)) is not None:
            raise AlreadyActive(f"{flow} {label}: run {other.name} ({other.id}) of this configuration is already active")
        current_token().pause(_PAUSE_S)
        held = take_lease(name, 1, duration_s=_LEASE_S)
    if held is None:
        _recreate(name)
        held = take_lease(name, 1, duration_s=_LEASE_S)
    if held is None:
        raise AlreadyActive(f"{flow} {label}: another run of this configuration is already active")
    with held:
        yield


def _limit_name(flow: str, configuration: str, label: str) -> str:
    """Return the name of the limit. Configurations of the same name have different limits."""
    digest = hashlib.sha256(configuration.encode()).hexdigest()[:8]
    return f"{flow}:{_UNUSUAL.sub('-', label)}:{digest}"


def _create(name: str) -> None:
    """Create the limit of a configuration. An existing limit keeps the settings of the operator."""
    try:
        client().read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        try:
            client().create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
        except ObjectAlreadyExists:
            return  # a run that began at the same time created it


def _recreate(name: str) -> None:
    """Delete a limit with its slots and leases, and create it again with the same settings."""
    with suppress(ObjectNotFound, ObjectAlreadyExists):  # another run may do this at the same time
        old = client().read_global_concurrency_limit_by_name(name)
        client().delete_global_concurrency_limit_by_name(name)
        settings = {"name": name, "limit": old.limit, "active": old.active, "slot_decay_per_second": old.slot_decay_per_second}
        client().create_global_concurrency_limit(GlobalConcurrencyLimitCreate.model_validate(settings))


def _active(tag: str, *, besides: UUID) -> FlowRun | None:
    """Return an active run with a tag, or None."""
    wanted = {"tags": {"all_": [tag]}, "state": {"type": {"any_": _ACTIVE}}, "id": {"not_any_": [besides]}}
    found = client().read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(wanted), limit=1)
    return found[0] if found else None
