"""What is needed: the content below roots, as far as the store has it."""

from collections.abc import Iterable

from ocispec import Descriptor, Digest
from ocispec.handlers import children_handler
from storage import completeness
from storage.store import ContentStore


def reachable(store: ContentStore, roots: Iterable[Descriptor]) -> set[Digest]:
    """The digests of the roots and of all that is below them. What a manifest that is not there names, nobody knows.

    Raises:
        Corrupt, InvalidInput, Unsupported: a manifest cannot be read, so that what it names would seem not to be needed.
    """
    found = completeness.check(store, *roots, children=children_handler(store.manifest))
    return {descriptor.digest for descriptor in (*found.present, *found.missing)}
