"""The tasks that keep a store: verify a chunk of its blobs, sweep what nothing needs, unpack an image."""

from datetime import timedelta
from pathlib import Path

from prefect_dist.ocispec import Platform
from prefect_dist.ocispec.units import counted, size
from prefect_dist.storage import gc
from prefect_dist.storage.store import Info
from prefect_dist.storage.unpack import Unpacked
from prefect_dist.storage.unpack import unpack as unpack_image
from prefect_dist.storage.verify import Verified
from prefect_dist.storage.verify import verify as verify_blobs
from prefect_dist.tasks import events
from prefect_dist.tasks._task import argument, task_of
from prefect_dist.transfer import session


def _verify_name() -> str:
    blobs: tuple[Info, ...] = argument("blobs")
    return f"verify {counted(len(blobs), 'blob')}, {size(sum(info.size for info in blobs))}"


def _sweep_name() -> str:
    return "plan to sweep" if argument("dry_run") else "sweep"


def _unpack_name() -> str:
    return f"unpack {argument('name')}"


@task_of("verify", run_name=_verify_name)
def verify(blobs: tuple[Info, ...]) -> Verified:
    """Hash blobs anew; corrupt ones go to quarantine."""
    store = session.current().store
    verified = verify_blobs(store, blobs)
    events.found_corrupt(verified.corrupt, store.url)
    return verified


@task_of("sweep", run_name=_sweep_name)
def sweep(grace: timedelta, *, dry_run: bool) -> gc.Swept:
    """Remove what nothing needs."""
    return gc.collect(session.current().store, grace=grace, dry_run=dry_run)


@task_of("unpack", run_name=_unpack_name)
def unpack(name: str, directory: str, platform: Platform) -> Unpacked:
    """Make a directory the root file system of a named image."""
    store = session.current().store
    return unpack_image(store, store.names.get(name).descriptor, Path(directory), platform=platform)
