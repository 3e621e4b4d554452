"""In which order a push brings content: a manifest after its children, a referrer after its subject, the image's tag last."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from prefect_dist.ocispec import Descriptor, Digest, manifest
from prefect_dist.ocispec.children import Children
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.storage import ContentStore
from prefect_dist.transfer.content import Receipt


@dataclass(eq=False, slots=True)
class Node:
    """Content on its way, and the tag that it gets.

    `missing` counts what it still waits for, `below` has the receipts of the others; `above` are those that wait for this.
    """

    descriptor: Descriptor
    tag: str | None = None
    missing: int = 0
    above: list["Node"] = field(default_factory=list)
    below: list[Receipt] = field(default_factory=list)

    def follow(self, *others: "Node") -> None:
        """Have it wait for others."""
        self.missing += len(others)
        for other in others:
            other.above.append(self)


class Order:
    """The nodes of distinct content. What is not among it is there already, and nobody waits for it."""

    def __init__(self, store: ContentStore, content: Iterable[Descriptor], children: Children) -> None:
        self.nodes = [Node(descriptor) for descriptor in content]
        self._store = store
        self._by_content = {node.descriptor.key: node for node in self.nodes}
        for node in self.nodes:
            below = {child.key for child in children(node.descriptor)}
            node.follow(*(self._by_content[content] for content in below if content in self._by_content))

    def in_turn(self) -> Iterator[Node]:
        """Each node after those that it waits for, for who does one after the other."""
        ready = deque(node for node in self.nodes if not node.missing)
        while ready:
            node = ready.popleft()
            yield node
            for parent in node.above:
                parent.missing -= 1
                if not parent.missing:
                    ready.append(parent)

    def refer(self, referrers: Iterable[Referrer]) -> list[Node]:
        """Have referrers wait for their subjects, and get their tags; the last node of each that is among the content.

        Raises:
            DistError: one cannot be read.
        """
        by_digest = {node.descriptor.digest: node for node in self.nodes}
        last = []
        for referrer in referrers:
            node = self._by_content.get(referrer.descriptor.key)
            if node is not None:
                about = self._subject(referrer.descriptor)
                node.follow(*([by_digest[about]] if about in by_digest else ()))
                last.append(self.tag(referrer.descriptor, referrer.tag))
        return last

    def tag(self, descriptor: Descriptor, tag: str | None, *, after: Iterable[Node] = ()) -> Node:
        """Have content tagged; the node that does it.

        That is its own node, unless it has a tag already or others have to come first, which may wait for the content.
        """
        node, others = self._by_content[descriptor.key], list(after)
        if tag is None or (node.tag is None and not others):
            node.tag = node.tag or tag
            return node
        last = Node(descriptor, tag)
        last.follow(node, *others)
        self.nodes.append(last)
        return last

    def _subject(self, descriptor: Descriptor) -> Digest | None:
        if not descriptor.is_manifest:
            return None
        about = manifest.subject(self._store.manifest(descriptor), descriptor.media_type, at=str(descriptor))
        return None if about is None else about.digest
