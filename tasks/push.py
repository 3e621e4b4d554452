"""The tasks of a push: see what its target resolves to, push one descriptor after its children."""

from typing import TYPE_CHECKING

from prefect_dist.tasks._task import argument, task_for
from prefect_dist.transfer import units

if TYPE_CHECKING:
    from prefect_dist.ocispec import Descriptor


def _check_name() -> str:
    return f"resolve {argument('target')}"


def _push_name() -> str:
    descriptor: Descriptor = argument("descriptor")
    tag: str | None = argument("tag")
    return f"push {descriptor.kind} {descriptor.digest.short}{f' as {tag}' if tag else ''}"


check_target = task_for(units.check_target, "resolve", run_name=_check_name)
push = task_for(units.push, "push", run_name=_push_name)
