"""Finds a source for content that a target has lost."""

from collections.abc import Iterator
from dataclasses import dataclass

from prefect_dist.ocispec import Descriptor, Reference
from prefect_dist.ocispec.errors import DistError, InvalidInput, NotFound
from prefect_dist.ocispec.index_filter import filter_index
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.storage import ContentStore, Name
from prefect_dist.transfer.audit import Expected
from prefect_dist.transfer.session import Session
from prefect_dist.transfer.survey import Reader


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Located:
    """The root and the referrers of an image that was mirrored to a target before."""

    root: Descriptor
    referrers: tuple[Referrer, ...]


def locate(session: Session, origin: Reference, expected: Expected, *, rewritten: bool) -> Located:
    """Return the expected root of a target at the source, and the expected referrers.

    The store is searched first, then the source. A `rewritten` index is made again from another root at the source. Referrers
    in neither place are left out.

    Raises:
        NotFound: the root is in neither place.
        DistError: an error of the source.
    """
    reader = Reader(session, session.open_source(origin), origin, keep=True)
    root = _locate_root(origin, expected, reader, rewritten=rewritten)
    return Located(root, tuple(_locate_referrers(origin, expected, reader)))


def _locate_root(origin: Reference, expected: Expected, reader: Reader, *, rewritten: bool) -> Descriptor:
    named = _find_name(reader.session.store, origin.name)
    if named is not None and _is_expected_name(named.descriptor, expected, reader, rewritten=rewritten):
        return named.descriptor
    if not rewritten:
        return reader.source.resolve(origin.with_digest(expected.digest))
    root = reader.source.resolve(origin)
    if not _is_expected(root, expected, reader, rewritten=rewritten):
        raise NotFound(f"the tag moved since {expected.target} was mirrored from it; mirror the image again", subject=origin)
    return root


def _locate_referrers(origin: Reference, expected: Expected, reader: Reader) -> Iterator[Referrer]:
    named = _find_name(reader.session.store, origin.name)
    known = {one.descriptor.digest: one.descriptor for one in (named.referrers if named is not None else ())}
    for digest, tag in expected.referrers.items():
        try:
            yield Referrer(known.get(digest) or reader.source.resolve(origin.with_digest(digest)), tag)
        except NotFound:
            continue


def _is_expected_name(named: Descriptor, expected: Expected, reader: Reader, *, rewritten: bool) -> bool:
    """Return whether a name in the store still has the expected root. If the check fails, the source decides."""
    try:
        return _is_expected(named, expected, reader, rewritten=rewritten)
    except DistError:
        return False


def _is_expected(root: Descriptor, expected: Expected, reader: Reader, *, rewritten: bool) -> bool:
    """Return whether a root is the root of the target, or the root from which the target's index was made."""
    if not rewritten or expected.platforms is None:
        return root.digest == expected.digest
    try:
        selected = filter_index(root, expected.platforms, reader.read, is_missing=reader.session.recorder.is_missing)
    except NotFound:  # the index has no image for these platforms any more
        return False
    return selected.root.digest == expected.digest


def _find_name(store: ContentStore, name: str) -> Name | None:
    try:
        return store.names.get(name)
    except (NotFound, InvalidInput):
        return None
