"""Where the content that a target was once brought can still be had. No Prefect here."""

from ocispec import Descriptor, Reference
from ocispec.errors import DistError, InvalidInput, NotFound
from ocispec.selected import select
from storage import ContentStore
from tasks.audit import Expected
from tasks.survey import Reader


def locate(origin: Reference, expected: Expected, reader: Reader, *, rewritten: bool) -> Descriptor:
    """The root at its source of what should stand at a target: as the store knows it, or else as the source still has it.

    An index that was `rewritten` has another root there, of which it is made again.

    Raises:
        NotFound: neither has it.
        DistError: whatever the source raises.
    """
    named = _named(reader.store, str(origin))
    if named is not None and _is_what_it_was(named, expected, reader, rewritten=rewritten):
        return named
    if not rewritten:
        pinned = Reference.parse(f"{origin.locator}@{expected.digest}")
        return reader.source.resolve(pinned)
    root = reader.source.resolve(origin)
    if not _gives(root, expected, reader, rewritten=rewritten):
        raise NotFound(f"{origin}: no longer what {expected.target} was made of; mirror it anew")
    return root


def _is_what_it_was(named: Descriptor, expected: Expected, reader: Reader, *, rewritten: bool) -> bool:
    """Whether what the store has named is it still; what cannot be read is asked of the source."""
    try:
        return _gives(named, expected, reader, rewritten=rewritten)
    except DistError:
        return False


def _gives(root: Descriptor, expected: Expected, reader: Reader, *, rewritten: bool) -> bool:
    """Whether a root is what a target was brought, or what that was made of."""
    if not rewritten or expected.platforms is None:
        return root.digest == expected.digest
    try:
        return select(root, expected.platforms, reader.read).root.digest == expected.digest
    except NotFound:  # it has nothing for these platforms any more
        return False


def _named(store: ContentStore, name: str) -> Descriptor | None:
    try:
        return store.names.get(name).descriptor
    except (NotFound, InvalidInput):
        return None
