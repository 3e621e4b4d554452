"""Whether an image is whole: a walk from its root over what the store has. No Prefect here."""

from collections.abc import Sequence
from dataclasses import dataclass

from ocispec import Descriptor
from ocispec.handlers import Handler, SkipChildren, chain, walk
from storage import ContentStore


@dataclass(frozen=True, slots=True)
class Completeness:
    """The distinct descriptors below and with a root. Below a missing manifest nothing is known."""

    present: tuple[Descriptor, ...]
    missing: tuple[Descriptor, ...]

    @property
    def whole(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing


def check(store: ContentStore, root: Descriptor, *, children: Handler) -> Completeness:
    """What the store has of the tree that `children` spans below `root`.

    Raises:
        Corrupt: a blob has another size than its descriptor, or a manifest's bytes are wrong.
        InvalidInput, Unsupported: a manifest cannot be read.
        NotFound: an index has nothing for the platforms that `children` asks for.
    """
    seen = set()
    present: list[Descriptor] = []
    missing: list[Descriptor] = []

    def look(descriptor: Descriptor) -> Sequence[Descriptor]:
        if descriptor.content in seen:
            raise SkipChildren
        seen.add(descriptor.content)
        if not store.holds(descriptor):
            missing.append(descriptor)
            raise SkipChildren
        present.append(descriptor)
        return ()

    walk(chain(look, children), root)
    return Completeness(tuple(present), tuple(missing))
