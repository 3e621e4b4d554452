"""Units of work. Each is a function of a run's session and its arguments, and a pool runs it.

A unit that handles several objects returns an error in place of each result that could not be had. It raises a retryable
error instead, as long as another attempt is left: the session keeps what is known until then.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from prefect_dist.ocispec import Descriptor, Digest, Platform, Reference
from prefect_dist.ocispec.children import children_reader, without_foreign
from prefect_dist.ocispec.errors import Corrupt, DistError
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.storage import gc
from prefect_dist.storage.store import Info
from prefect_dist.storage.unpack import Unpacked
from prefect_dist.storage.unpack import unpack as unpack_image
from prefect_dist.storage.verify import Verified
from prefect_dist.storage.verify import verify as verify_content
from prefect_dist.transfer.attempts import has_another
from prefect_dist.transfer.audit import Expected, Finding
from prefect_dist.transfer.content import Receipt
from prefect_dist.transfer.delivery import Publication
from prefect_dist.transfer.events import CorruptContent, Unresolved, UnresolvedKind
from prefect_dist.transfer.gate import Gate
from prefect_dist.transfer.related import Related
from prefect_dist.transfer.removal import Removed, UnwantedTag
from prefect_dist.transfer.session import Session
from prefect_dist.transfer.survey import ImageQuery, QueryResult


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Fetched:
    """How the content of one descriptor came into the store, or to a target, and its children."""

    receipt: Receipt
    children: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Listed:
    """The manifests that refer to one manifest."""

    referrers: tuple[Referrer, ...]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class RepositoryList:
    """The repositories of a registry."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class TagLists:
    """The tags of some repositories, or the errors of their lists."""

    found: tuple[tuple[str, ...] | DistError, ...]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Surveyed:
    """The results of a survey of some images."""

    found: tuple[QueryResult, ...]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Audited:
    """The result of the audit of each of some tags, or the error that it ended with."""

    findings: tuple[Finding | DistError, ...]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Located:
    """The root of an image that was mirrored to a target before, and the manifests that referred to it."""

    root: Descriptor
    referrers: tuple[Referrer, ...]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Judged:
    """The answer of a gate: the reason why an image is not published, or None."""

    veto: str | None


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Published:
    """An image is published at a target. `receipts` are those of content that was not known to be there."""

    target: Reference
    receipts: tuple[tuple[Descriptor, Receipt], ...] = ()


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Confirmed:
    """The referrers of a repository that are not listed, or for which that is not known, with the errors."""

    failed: tuple[tuple[frozenset[Digest], DistError], ...]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Standing:
    """The result of a check that a reference resolves to a given descriptor at its registry."""

    stands: bool


def resolve(session: Session, reference: Reference) -> Descriptor:
    """Return the descriptor that a reference resolves to now."""
    return session.resolve(reference)


def fetch(session: Session, descriptor: Descriptor, source: Reference) -> Fetched:
    """Fetch the content of one descriptor into the store. Return its children."""
    with _reporting_corruption(session, descriptor, source):
        return Fetched(*session.fetch(descriptor, source))


def list_referrers(session: Session, subject: Descriptor, source: Reference, related: Related) -> Listed:
    """Return the manifests in a repository that refer to `subject`."""
    return Listed(session.referrers(subject, source, related))


def list_repositories(session: Session, host: str) -> RepositoryList:
    """Return the repositories of a registry, in its order."""
    with _reporting_unresolved(session, host, "list"):
        return RepositoryList(session.repositories(host))


def list_tags(session: Session, repositories: tuple[Reference, ...], *, workers: int) -> TagLists:
    """Return the tags of some repositories, `workers` at once, each in its registry's order."""
    found = session.tags(repositories, workers=workers)
    _settle(session, "list", ((place.locator, one) for place, one in zip(repositories, found, strict=True)))
    return TagLists(tuple(found))


def survey(session: Session, queries: tuple[ImageQuery, ...], *, keep: bool, workers: int) -> Surveyed:
    """Compare some images with their targets, `workers` at once."""
    found = session.find(queries, keep=keep, workers=workers)
    _settle(session, "image", ((str(one.query.source), error) for one in found for error in one.errors))
    return Surveyed(tuple(found))


def carry(session: Session, descriptor: Descriptor, source: Reference, places: tuple[Reference, ...]) -> Fetched:
    """Fetch the content of one descriptor. If it is a blob, upload it to the repositories of `places`.

    A place that fails after some attempts is left to `publish`, which reports the error: the content is not kept from other
    places. After a registry has failed so, it gets one attempt per blob until one succeeds: a registry that is full or down
    would otherwise cost each blob all attempts and the waiting between them.
    """
    with _reporting_corruption(session, descriptor, source):
        fetched = Fetched(*session.fetch(descriptor, source))
        if not descriptor.is_manifest:
            _deliver(session, descriptor, source, places)
    return fetched


def _deliver(session: Session, blob: Descriptor, source: Reference, places: Iterable[Reference]) -> None:
    again: DistError | None = None
    for place in places:
        try:
            session.deliver(blob, place, origin=source)
        except DistError as exc:
            if place.host not in session.failing and has_another(exc):
                again = exc
            elif exc.retryable:
                session.failing.add(place.host)
        else:
            session.failing.discard(place.host)
    if again is not None:
        raise again


def judge(session: Session, gate: Gate, reference: Reference, root: Descriptor) -> Judged:
    """Ask a gate about an image, whose content is in the store."""
    return Judged(session.judge(gate, reference, root))


def publish(session: Session, wanted: Publication) -> Published:
    """Push what a target lacks of an image: blobs, then manifests, its tag last."""
    return Published(wanted.target, tuple(session.publish(wanted).values()))


def remove(
    session: Session, target: Reference, unwanted: tuple[UnwantedTag, ...], known: frozenset[str], *, workers: int
) -> Removed:
    """Remove a tag, which is one of the `unwanted` tags of its repository.

    `known` are the tags of the repository that the run wants or that the lock file has. At most `workers` requests are made in
    parallel.
    """
    return session.remove(target, unwanted, known=known, workers=workers)


def audit(session: Session, expected: tuple[Expected, ...]) -> Audited:
    """Audit some tags of one repository: each should resolve to its digest, with all content below and all referrers."""
    findings = session.audit(expected)
    _settle(session, "image", ((str(one.target), found) for one, found in zip(expected, findings, strict=True)))
    return Audited(tuple(findings))


def locate(session: Session, origin: Reference, expected: Expected, *, rewritten: bool) -> Located:
    """Find the root and the referrers that a target should have, in the store or at its source."""
    with _reporting_unresolved(session, str(expected.target), "image"):
        return Located(*session.locate(origin, expected, rewritten=rewritten))


def confirm_referrers(session: Session, repository: Reference) -> Confirmed:
    """List referrers again that this run listed under fallback tags of a repository and that others have overwritten."""
    failed = session.confirm_referrers(repository)
    _raise_if_retried(error for _, error in failed)
    return Confirmed(tuple(failed))


def check_target(session: Session, root: Descriptor, target: Reference) -> Standing:
    """Return whether `target` resolves to `root` now."""
    return Standing(session.has_image(root, target))


def upload(session: Session, descriptor: Descriptor, target: Reference, origin: Reference) -> Fetched:
    """Upload a blob of the store to the repository of `target`, into which its registry may mount it from `origin`.

    A manifest is only read for its children: `publish` pushes it.
    """
    if not descriptor.is_manifest:
        return Fetched(session.deliver(descriptor, target, origin=origin), ())
    children = without_foreign(children_reader(session.store.manifest))
    return Fetched(Receipt("existed"), tuple(children(descriptor)))


def verify(session: Session, blobs: tuple[Info, ...]) -> Verified:
    """Hash blobs again. Corrupt ones go to quarantine."""
    return verify_content(session.store, blobs)


def sweep(session: Session, grace: timedelta, *, dry_run: bool) -> gc.Swept:
    """Remove blobs that no name and no run needs from the store."""
    return gc.collect(session.store, grace=grace, dry_run=dry_run)


def unpack(session: Session, name: str, directory: str, platform: Platform) -> Unpacked:
    """Make a directory the root file system of a named image."""
    root = session.store.names.get(name).descriptor
    return unpack_image(session.store, root, Path(directory), platform=platform)


def _settle(session: Session, kind: UnresolvedKind, answers: Iterable[tuple[str, object]]) -> None:
    """Report the answers that are errors, by the names of their objects, unless another attempt follows.

    Raises:
        DistError: another attempt may have another answer.
    """
    errors = [(name, answer) for name, answer in answers if isinstance(answer, DistError)]
    _raise_if_retried(error for _, error in errors)
    for name, _ in errors:
        session.notify(Unresolved(name, kind))


def _raise_if_retried(errors: Iterable[DistError]) -> None:
    for error in errors:
        if has_another(error):
            raise error


@contextmanager
def _reporting_corruption(session: Session, descriptor: Descriptor, source: Reference) -> Iterator[None]:
    """Report content from `source` that turns out to be corrupt in this block; raise the error in any case."""
    try:
        yield
    except Corrupt as exc:
        session.notify(CorruptContent(descriptor.digest, "repository", source.locator, str(exc)))
        raise


@contextmanager
def _reporting_unresolved(session: Session, name: str, kind: UnresolvedKind) -> Iterator[None]:
    """Report an error of this block, unless another attempt follows; raise it in any case."""
    try:
        yield
    except DistError as exc:
        _settle(session, kind, [(name, exc)])
        raise


def errors_in(result: object) -> Sequence[str]:
    """Return one line for each object that failed in the result of a unit that handles several."""
    if isinstance(result, TagLists):
        return [str(one) for one in result.found if isinstance(one, DistError)]
    if isinstance(result, Surveyed):
        return [str(error) for one in result.found for error in one.errors]
    if isinstance(result, Audited):
        faults = (one if isinstance(one, DistError) else next(iter(one.faults), None) for one in result.findings)
        return [str(one) for one in faults if one is not None]
    return ()
