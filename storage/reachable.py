"""What is needed: the content below roots, as far as the store has it."""

from collections.abc import Iterable, Sequence

from ocispec import Descriptor, Digest
from ocispec.handlers import SkipChildren, chain, children_handler, walk
from storage.store import ContentStore


def reachable(store: ContentStore, roots: Iterable[Descriptor]) -> set[Digest]:
    """The digests of the roots and of all that is below them. What a manifest that is not there names, nobody knows.

    Raises:
        Corrupt, InvalidInput, Unsupported: a manifest cannot be read, so that what it names would seem not to be needed.
    """
    seen = set()

    def look(descriptor: Descriptor) -> Sequence[Descriptor]:
        if descriptor.content in seen:
            raise SkipChildren
        seen.add(descriptor.content)
        if not store.holds(descriptor):
            raise SkipChildren
        return ()

    walk(chain(look, children_handler(store.manifest)), *roots)
    return {digest for _, digest, _ in seen}
