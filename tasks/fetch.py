"""The tasks of a fetch: resolve a reference, fetch a descriptor, list what refers to a manifest."""

from dataclasses import dataclass

from prefect_dist.ocispec import Descriptor, Reference
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.tasks import events
from prefect_dist.tasks._task import argument, task_of
from prefect_dist.transfer import session
from prefect_dist.transfer.content import Receipt
from prefect_dist.transfer.related import Related


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Fetched:
    """The receipt for one descriptor, and its children."""

    receipt: Receipt
    children: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Listed:
    """What refers to one manifest."""

    referrers: tuple[Referrer, ...]


def _resolve_name() -> str:
    return f"resolve {argument('reference')}"


def _fetch_name() -> str:
    descriptor: Descriptor = argument("descriptor")
    return f"fetch {descriptor.kind} {descriptor.digest.short}"


def _referrers_name() -> str:
    subject: Descriptor = argument("subject")
    return f"referrers of {subject.kind} {subject.digest.short}"


@task_of("resolve", run_name=_resolve_name)
def resolve(reference: Reference) -> Descriptor:
    """The descriptor that a reference stands for now."""
    return session.current().resolve(reference)


@task_of("fetch", run_name=_fetch_name)
def fetch(descriptor: Descriptor, source: Reference) -> Fetched:
    """Fetch one descriptor's content into the store, and return its children."""
    with events.telling_of_corruption(descriptor, source):
        return Fetched(*session.current().fetch(descriptor, source))


@task_of("referrers", run_name=_referrers_name)
def referrers(subject: Descriptor, source: Reference, related: Related) -> Listed:
    """The manifests about `subject` in a repository."""
    return Listed(session.current().referrers(subject, source, related))
