"""What is needed: the content below roots, as far as the store has it."""

from collections.abc import Iterable

from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.ocispec.children import children_reader
from prefect_dist.storage import completeness
from prefect_dist.storage.store import ContentStore


def reachable(store: ContentStore, roots: Iterable[Descriptor]) -> set[Digest]:
    """The digests of the roots and of all that is below them. What a manifest that is not there names, nobody knows.

    Raises:
        Corrupt, InvalidInput, Unsupported: a manifest cannot be read, so that what it names would seem not to be needed.
    """
    found = completeness.check(store, *roots, children=children_reader(store.manifest))
    return {descriptor.digest for descriptor in (*found.present, *found.missing)}
