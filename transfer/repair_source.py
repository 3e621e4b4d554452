"""Finds the source of content that a target has lost."""

from collections.abc import Iterator

from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.errors import DistError, InvalidInput, NotFound
from prefect_dist.ocispec.index_filter import filter_index
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.storage import ContentStore, Name
from prefect_dist.transfer.audit import Expected
from prefect_dist.transfer.survey import Reader


def locate(origin: Reference, expected: Expected, reader: Reader, *, rewritten: bool) -> Descriptor:
    """Return the root at its source of the image that a target should have: from the store, otherwise from the source.

    An index that was `rewritten` has another root there, of which it is made again.

    Raises:
        NotFound: neither has it.
        DistError: whatever the source raises.
    """
    named = _find_name(reader.store, str(origin))
    if named is not None and _is_what_it_was(named.descriptor, expected, reader, rewritten=rewritten):
        return named.descriptor
    if not rewritten:
        return reader.source.resolve(_pin(origin, expected.digest))
    root = reader.source.resolve(origin)
    if not _gives(root, expected, reader, rewritten=rewritten):
        raise NotFound(f"{origin}: no longer what {expected.target} was made of; mirror it anew")
    return root


def referrers(origin: Reference, expected: Expected, reader: Reader) -> tuple[Referrer, ...]:
    """Return the expected referrers of an image from the store or the source, without those that neither has.

    Raises:
        DistError: whatever the source raises.
    """
    return tuple(_referrers(origin, expected, reader))


def _referrers(origin: Reference, expected: Expected, reader: Reader) -> Iterator[Referrer]:
    named = _find_name(reader.store, str(origin))
    known = {one.descriptor.digest: one.descriptor for one in (named.referrers if named is not None else ())}
    for digest, tag in expected.referrers.items():
        try:
            yield Referrer(known.get(digest) or reader.source.resolve(_pin(origin, digest)), tag)
        except NotFound:
            continue


def _is_what_it_was(named: Descriptor, expected: Expected, reader: Reader, *, rewritten: bool) -> bool:
    """Return whether a name in the store still has the expected root. False if it cannot be read: the source decides then."""
    try:
        return _gives(named, expected, reader, rewritten=rewritten)
    except DistError:
        return False


def _gives(root: Descriptor, expected: Expected, reader: Reader, *, rewritten: bool) -> bool:
    """Return whether a root is that of the target, or the one that the index of the target was made from."""
    if not rewritten or expected.platforms is None:
        return root.digest == expected.digest
    try:
        return filter_index(root, expected.platforms, reader.read, is_missing=reader.is_missing).root.digest == expected.digest
    except NotFound:  # it has nothing for these platforms any more
        return False


def _find_name(store: ContentStore, name: str) -> Name | None:
    try:
        return store.names.get(name)
    except (NotFound, InvalidInput):
        return None


def _pin(origin: Reference, digest: Digest) -> Reference:
    return Reference.parse(f"{origin.locator}@{digest}")
