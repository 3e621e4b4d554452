"""The task of a push: bring one descriptor to a repository, after its children."""

from ocispec import Descriptor, Reference
from tasks import session
from tasks._task import argument, task_of
from tasks.transfer import Receipt


def _push_name() -> str:
    descriptor: Descriptor = argument("descriptor")
    tag: str | None = argument("tag")
    return f"push {descriptor.kind} {descriptor.digest.short}{f' as {tag}' if tag else ''}"


@task_of("push", run_name=_push_name)
def push(descriptor: Descriptor, target: Reference, source: str | None, tag: str | None) -> Receipt:
    """Bring one descriptor's content to a repository; `source` is another one of its registry that may have it."""
    return session.current().push(descriptor, target, source=source, tag=tag)
