"""Whether an image is whole: a walk from its root over what the store has. No Prefect here."""

from collections.abc import Sequence
from dataclasses import dataclass

from ocispec import Descriptor, Platform, fields
from ocispec.errors import NotFound
from ocispec.handlers import Handler, SkipChildren, chain, children_handler, walk
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


def refuse_other_platforms(store: ContentStore, root: Descriptor, wanted: Sequence[Platform]) -> None:
    """See that an image without an index is for one of the platforms that are wanted. What is no image has none.

    Raises:
        NotFound: it is for another one, which only its config tells.
        NotFound, Corrupt, InvalidInput: manifest or config cannot be read.
    """
    if root.kind != "manifest":
        return
    config = children_handler(store.manifest)(root)[0]
    if config.kind != "config":
        return
    at = str(config)
    offered = Platform.from_json(fields.parse_object(store.manifest(config), at=at), at=at)
    if all(wish.rank(offered) is None for wish in wanted):
        raise NotFound(f"{root}: no manifest for {', '.join(map(str, wanted))}; it is for {offered}")
