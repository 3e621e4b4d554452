"""Units of work. A unit is a function of the run's session and its arguments, and a pool runs the unit.

A unit for several objects returns an error in place of each missing result. As long as another attempt is left, the unit raises
a retryable error instead, and the run keeps the other results.

The result of a unit supports weak references. Prefect identifies such an object reliably when it draws the edges of a flow run.
Prefect may mistake a tuple or a string for the result of another task.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from prefect_dist.ocispec import Descriptor, Digest, Platform, Reference
from prefect_dist.ocispec.errors import DistError
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.ocispec.units import format_count
from prefect_dist.storage import gc
from prefect_dist.storage.store import Info
from prefect_dist.storage.unpack import Unpacked
from prefect_dist.storage.unpack import unpack as unpack_image
from prefect_dist.storage.verify import Verified
from prefect_dist.storage.verify import verify as verify_content
from prefect_dist.transfer import delivery, fetching, listing, publishing, removal, repair_source
from prefect_dist.transfer.attempts import has_another
from prefect_dist.transfer.audit import Expected, Finding, audit_tags
from prefect_dist.transfer.content import Receipt
from prefect_dist.transfer.events import Unresolved, UnresolvedKind
from prefect_dist.transfer.fetching import Fetched
from prefect_dist.transfer.gate import Candidate, Gate, ask
from prefect_dist.transfer.publishing import Publication
from prefect_dist.transfer.related import Related
from prefect_dist.transfer.removal import Removed, UnwantedTag
from prefect_dist.transfer.repair_source import Located
from prefect_dist.transfer.session import Session
from prefect_dist.transfer.survey import ImageQuery, QueryResult, survey_images

T = TypeVar("T")
UnlistedReferrers = tuple[tuple[frozenset[Digest], DistError], ...]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Answer(Generic[T]):
    """The result of a unit with a value that does not support weak references."""

    found: T


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Answers(Generic[T]):
    """The results of a unit for several objects, in their order, with the error or the first fault of each failed object."""

    found: tuple[T, ...]
    errors: tuple[DistError | str, ...] = ()


@dataclass(frozen=True, slots=True, weakref_slot=True)
class ImageSummary:
    """The result of a unit that walks over an image: each descriptor that the unit transferred or found, with the receipt."""

    content: tuple[tuple[Descriptor, Receipt], ...]
    is_vetoed: bool = False

    def __str__(self) -> str:
        statuses = Counter(receipt.status for _, receipt in self.content)
        counts = ", ".join(f"{count} {status}" for status, count in statuses.items())
        return f"{format_count(len(self.content), 'descriptor')}: {counts}" if counts else "unchanged"


class ImageFailed(DistError):
    """An image failed. The text names the failed descriptors. The units of the image have used up their retries."""


class ImageWork(Protocol):
    """The units of one image."""

    @property
    def name(self) -> str:
        """Return the reference of the image."""

    def walk(self) -> ImageSummary:
        """Run the units that the walk starts, until the walk has ended the image.

        Raises:
            ImageFailed: the image failed.
        """


def resolve(session: Session, reference: Reference) -> Descriptor:
    """Return the current descriptor of a reference."""
    return session.open_source(reference).resolve(reference)


def fetch(session: Session, descriptor: Descriptor, source: Reference) -> Fetched:
    """Fetch the content of one descriptor into the store. Return the receipt and the children."""
    return fetching.fetch(session, descriptor, source)


def list_referrers(session: Session, subject: Descriptor, source: Reference, related: Related) -> Answer[tuple[Referrer, ...]]:
    """Return the manifests in a repository with a reference to `subject`."""
    return Answer(fetching.list_referrers(session, subject, source, related))


def list_repositories(session: Session, host: str) -> Answer[tuple[str, ...]]:
    """Return the repositories of a registry, in the order of the registry."""
    with _report_unresolved(session, host, "list"):
        return Answer(tuple(session.remotes.list_repositories(host)))


def list_tags(session: Session, repositories: tuple[Reference, ...], *, workers: int) -> Answers[tuple[str, ...] | DistError]:
    """Return the tags of some repositories, each in the order of its registry. At most `workers` are listed at once."""
    found = tuple(listing.list_tags(session, repositories, workers=workers))
    answers = zip((place.locator for place in repositories), found, strict=True)
    return Answers(found, _settle(session, "list", answers))


def survey(session: Session, queries: tuple[ImageQuery, ...], *, keep: bool, workers: int) -> Answers[QueryResult]:
    """Compare some images with their targets, at most `workers` images at once."""
    found = tuple(survey_images(session, queries, keep=keep, workers=workers))
    answers = ((str(one.query.source), error) for one in found for error in one.errors)
    return Answers(found, _settle(session, "image", answers))


def carry(session: Session, descriptor: Descriptor, source: Reference, places: tuple[Reference, ...]) -> Fetched:
    """Fetch the content of one descriptor. Upload a blob to the repositories of `places`.

    The receipt is the receipt of the fetch, or the receipt of the upload if the store had the content before.
    """
    fetched = fetching.fetch(session, descriptor, source)
    if descriptor.is_manifest:
        return fetched
    sent = delivery.deliver_to_places(session, descriptor, places, origin=session.origin_of(source))
    return fetched if fetched.receipt.status == "fetched" else replace(fetched, receipt=sent)


def judge(session: Session, gate: Gate, reference: Reference, root: Descriptor) -> Answer[str | None]:
    """Return the reason why a gate vetoes an image of the store, or None if the image passes."""
    candidate = Candidate(reference=reference, digest=root.digest, store=session.store.url)
    return Answer(ask(gate, candidate, check=session.cancel.check))


def publish(session: Session, wanted: Publication) -> Descriptor:
    """Push the missing content of an image to a target: blobs, then manifests, the tag last. Return the root at the target."""
    return publishing.publish(session, wanted)


def remove(
    session: Session, target: Reference, unwanted: tuple[UnwantedTag, ...], known: frozenset[str], *, workers: int
) -> Removed:
    """Remove a tag, which is one of the `unwanted` tags of its repository.

    `known` are the tags of the repository in the run's plan or in the lock file. At most `workers` requests are made in
    parallel.
    """
    return removal.remove_tag(session, target, unwanted, known=known, workers=workers)


def audit(session: Session, expected: tuple[Expected, ...]) -> Answers[Finding | DistError]:
    """Audit some tags of one repository: the digest of each tag, the content below it, and the referrers."""
    found = tuple(audit_tags(session, expected))
    _settle(session, "image", ((str(one.target), finding) for one, finding in zip(expected, found, strict=True)))
    faults = (one if isinstance(one, DistError) else next(iter(one.faults), "") for one in found)
    return Answers(found, tuple(filter(None, faults)))


def locate(session: Session, origin: Reference, expected: Expected, *, rewritten: bool) -> Located:
    """Find the expected root and referrers of a target, in the store or at their source."""
    with _report_unresolved(session, str(expected.target), "image"):
        return repair_source.locate(session, origin, expected, rewritten=rewritten)


def confirm_referrers(session: Session, repository: Reference) -> Answer[UnlistedReferrers]:
    """Restore the entries of this run in the fallback indexes of a repository, if other clients overwrote the entries.

    Return the referrers that are still unlisted, or that could not be looked up, with the errors.
    """
    pusher, failed = session.remotes.registries.open_target(repository), list[tuple[frozenset[Digest], DistError]]()
    for subject, referrers in pusher.fallback_referrers.items():
        error = session.cancel.catch_error(partial(pusher.confirm_referrers, subject))
        if error is not None:
            failed.append((referrers, error))
    _raise_if_retried(error for _, error in failed)
    return Answer(tuple(failed))


def walk_image(_session: Session, image: ImageWork) -> ImageSummary:
    """Run the units of an image in other threads until the walk has ended the image. Return the content of the image.

    Raises:
        ImageFailed: the image failed.
    """
    return image.walk()


def verify(session: Session, blobs: tuple[Info, ...]) -> Verified:
    """Hash blobs again. Move corrupt blobs into quarantine."""
    return verify_content(session.store, blobs)


def sweep(session: Session, grace: timedelta, *, dry_run: bool) -> gc.Swept:
    """Remove unneeded blobs and leftovers from the store, see `storage.gc`."""
    return gc.collect(session.store, grace=grace, dry_run=dry_run)


def unpack(session: Session, name: str, directory: str, platform: Platform) -> Unpacked:
    """Make a directory the root file system of a named image."""
    root = session.store.names.get(name).descriptor
    return unpack_image(session.store, root, Path(directory), platform=platform)


def _settle(session: Session, kind: UnresolvedKind, answers: Iterable[tuple[str, object]]) -> tuple[DistError, ...]:
    """Report the errors among some answers by the names of the objects. Return the errors.

    Raises:
        DistError: an error, if another attempt follows.
    """
    errors = [(name, answer) for name, answer in answers if isinstance(answer, DistError)]
    _raise_if_retried(error for _, error in errors)
    for name, _ in errors:
        session.notify(Unresolved(name, kind))
    return tuple(error for _, error in errors)


def _raise_if_retried(errors: Iterable[DistError]) -> None:
    for error in errors:
        if has_another(error):
            raise error


@contextmanager
def _report_unresolved(session: Session, name: str, kind: UnresolvedKind) -> Iterator[None]:
    """Report an error of this block, unless another attempt follows. Raise the error in any case."""
    try:
        yield
    except DistError as exc:
        _settle(session, kind, [(name, exc)])
        raise
