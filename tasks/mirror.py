"""The tasks of a mirror: list what there is, see what stands for it, carry content on, ask gates, publish, remove."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prefect_dist.ocispec import Descriptor, Reference
from prefect_dist.ocispec.errors import DistError
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.ocispec.units import counted
from prefect_dist.tasks import events
from prefect_dist.tasks._task import argument, comes_again, failed_if, task_of
from prefect_dist.tasks.fetch import Fetched
from prefect_dist.transfer import session
from prefect_dist.transfer.audit import Expected, Finding
from prefect_dist.transfer.delivery import Publication
from prefect_dist.transfer.gate import Gate
from prefect_dist.transfer.removal import Removed, UnwantedTag
from prefect_dist.transfer.session import Untold
from prefect_dist.transfer.survey import Ask, Found


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Repositories:
    """The repositories of a registry."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Tags:
    """The tags of some repositories, or why they cannot be had."""

    found: tuple[tuple[str, ...] | DistError, ...]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Surveyed:
    """What was found out about some images."""

    found: tuple[Found, ...]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Audited:
    """The result for each of some tags of a repository, or why its audit failed."""

    findings: tuple[Finding | DistError, ...]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Located:
    """The root of an image that was once brought to a target, and what was about it."""

    root: Descriptor
    referrers: tuple[Referrer, ...]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Judged:
    """What a gate said of an image: why it is not to be published, or None."""

    veto: str | None


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Published:
    """An image is at a target."""

    target: Reference


def _repositories_name() -> str:
    return f"repositories of {argument('host')}"


def _tags_name() -> str:
    repositories: tuple[Reference, ...] = argument("repositories")
    return f"tags of {repositories[0].locator if len(repositories) == 1 else f'{len(repositories)} repositories'}"


def _survey_name() -> str:
    return f"survey {counted(len(argument('asks')), 'image')}"


def _carry_name() -> str:
    descriptor: Descriptor = argument("descriptor")
    return f"mirror {descriptor.kind} {descriptor.digest.short}"


def _gate_name() -> str:
    return f"gate {argument('reference')}"


def _audit_name() -> str:
    expected: tuple[Expected, ...] = argument("expected")
    return f"audit {expected[0].target.locator}, {counted(len(expected), 'tag')}"


def _locate_name() -> str:
    return f"locate {argument('origin')}"


def _remove_name() -> str:
    return f"remove {argument('target')}"


def _publish_name() -> str:
    return f"publish {argument('wanted').target}"


@task_of("repositories", run_name=_repositories_name)
def repositories(host: str) -> Repositories:
    """The repositories of a registry, in its order."""
    with _untold(host, "list"):
        return Repositories(session.current().repositories(host))


@task_of("tags", run_name=_tags_name)
def tags(repositories: tuple[Reference, ...], *, workers: int) -> Tags:
    """The tags of some repositories, `workers` at once, each in its registry's order."""
    found = session.current().tags(repositories, workers=workers)
    _settle("list", ((place.locator, one) for place, one in zip(repositories, found, strict=True)))
    return failed_if([str(one) for one in found if isinstance(one, DistError)], Tags(tuple(found)))


@task_of("survey", run_name=_survey_name)
def survey(asks: tuple[Ask, ...], *, keep: bool, workers: int) -> Surveyed:
    """See what stands for some images, `workers` at once. What cannot be told is part of the answer."""
    found = session.current().find(asks, keep=keep, workers=workers)
    _settle("image", ((str(one.ask.source), error) for one in found for error in one.errors))
    return failed_if([str(error) for one in found for error in one.errors], Surveyed(tuple(found)))


@task_of("mirror", run_name=_carry_name)
def carry(descriptor: Descriptor, source: Reference, places: tuple[Reference, ...]) -> Fetched:
    """Fetch one descriptor's content into the store, and upload a blob to the repositories of `places`.

    A target that still fails after some attempts is left to `publish`, which reports the error; other targets get the content.
    After such a failure, the registry gets one attempt per blob until one succeeds. A registry that is full or down would
    otherwise cost every blob all attempts and the waits between them.
    """
    current = session.current()
    with events.telling_of_corruption(descriptor, source):
        fetched = Fetched(*current.fetch(descriptor, source))
    again: DistError | None = None
    for place in () if descriptor.is_manifest else places:
        try:
            current.deliver(descriptor, place, origin=source)
        except DistError as exc:
            if place.host not in current.failing and comes_again(exc):
                again = exc
            elif exc.retryable:
                current.failing.add(place.host)
        else:
            current.failing.discard(place.host)
    if again is not None:
        raise again
    return fetched


@task_of("gate", run_name=_gate_name)
def judge(gate: Gate, reference: Reference, root: Descriptor) -> Judged:
    """Ask a gate whether an image, whose content is in the store, may be published."""
    return Judged(session.current().judge(gate, reference, root))


@task_of("publish", run_name=_publish_name)
def publish(wanted: Publication) -> Published:
    """Bring what is missing of an image to a target: blobs, then manifests, its tag last."""
    session.current().publish(wanted)
    return Published(wanted.target)


@task_of("remove", run_name=_remove_name)
def remove(target: Reference, unwanted: tuple[UnwantedTag, ...], known: frozenset[str], *, workers: int) -> Removed:
    """Remove a tag, which is one of the `unwanted` tags of its repository.

    `known` are the tags of the repository that the run wants or that the lock file has. At most `workers` requests are made in
    parallel.
    """
    return session.current().remove(target, unwanted, known=known, workers=workers)


@task_of("audit", run_name=_audit_name)
def audit(expected: tuple[Expected, ...]) -> Audited:
    """Audit some tags of one repository: each should resolve to its digest, with all content below and all referrers."""
    findings = session.current().audit(expected)
    _settle("image", ((str(one.target), found) for one, found in zip(expected, findings, strict=True)))
    faults = [
        str(one) if isinstance(one, DistError) else one.faults[0]
        for one in findings
        if isinstance(one, DistError) or one.faults
    ]
    return failed_if(faults, Audited(tuple(findings)))


@task_of("locate", run_name=_locate_name)
def locate(origin: Reference, expected: Expected, *, rewritten: bool) -> Located:
    """Find the root of what should stand at a target, and what should be about it, in the store or at its source."""
    with _untold(str(expected.target), "image"):
        return Located(*session.current().locate(origin, expected, rewritten=rewritten))


def _settle(what: Untold, answers: Iterable[tuple[str, object]]) -> None:
    """See that the answers to some questions, by name, are the last: the session hears of those that are errors.

    Raises:
        DistError: another attempt may have another answer; what is known by then is not asked again.
    """
    errors = [(name, answer) for name, answer in answers if isinstance(answer, DistError)]
    for _, error in errors:
        if comes_again(error):
            raise error
    for name, _ in errors:
        session.current().untold(name, what)


@contextmanager
def _untold(name: str, what: Untold) -> Iterator[None]:
    """Ask about one thing in this block; the error goes on."""
    try:
        yield
    except DistError as exc:
        _settle(what, [(name, exc)])
        raise
