"""The tasks of a push: see what its target stands for, bring one descriptor to a repository after its children."""

from dataclasses import dataclass

from prefect_dist.ocispec import Descriptor, Reference
from prefect_dist.tasks._task import argument, task_of
from prefect_dist.transfer import session
from prefect_dist.transfer.content import Receipt


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Standing:
    """Whether a reference stands at its registry for what was asked about."""

    stands: bool


def _resolve_name() -> str:
    return f"resolve {argument('target')}"


def _push_name() -> str:
    descriptor: Descriptor = argument("descriptor")
    tag: str | None = argument("tag")
    return f"push {descriptor.kind} {descriptor.digest.short}{f' as {tag}' if tag else ''}"


@task_of("resolve", run_name=_resolve_name)
def resolve(descriptor: Descriptor, target: Reference) -> Standing:
    """Whether `target` stands for `descriptor` now."""
    return Standing(session.current().stands(target, descriptor))


@task_of("push", run_name=_push_name)
def push(descriptor: Descriptor, target: Reference, source: str | None, tag: str | None) -> Receipt:
    """Bring one descriptor's content to a repository; `source` is another one of its registry that may have it."""
    return session.current().push(descriptor, target, source=source, tag=tag)
