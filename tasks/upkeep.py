"""The tasks for the upkeep of a store: verify some blobs, sweep the store, unpack an image."""

from typing import TYPE_CHECKING

from prefect_dist.ocispec.units import format_count, size
from prefect_dist.tasks._task import argument, task_for
from prefect_dist.transfer import units

if TYPE_CHECKING:
    from prefect_dist.storage.store import Info


def _verify_name() -> str:
    blobs: tuple[Info, ...] = argument("blobs")
    return f"verify {format_count(len(blobs), 'blob')}, {size(sum(info.size for info in blobs))}"


def _sweep_name() -> str:
    return "plan to sweep" if argument("dry_run") else "sweep"


def _unpack_name() -> str:
    return f"unpack {argument('name')}"


verify = task_for(units.verify, "verify", run_name=_verify_name)
sweep = task_for(units.sweep, "sweep", run_name=_sweep_name)
unpack = task_for(units.unpack, "unpack", run_name=_unpack_name)
