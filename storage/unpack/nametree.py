"""Paths kept as a tree of names. Paths that begin alike share their beginning, so memory grows with the number of names."""

from collections.abc import Iterable


class NameNode:
    """A name in a tree, with what is known of it: is it cleared, and which mode does it get."""

    __slots__ = ("children", "is_cleared", "mode")

    def __init__(self) -> None:
        self.children: dict[bytes, NameNode] = {}
        self.is_cleared = False
        self.mode: int | None = None

    def add(self, path: Iterable[bytes]) -> "NameNode":
        """Return the node at a path below this one, which is made if it is missing."""
        node = self
        for name in path:
            inner = node.children.get(name)
            if inner is None:
                inner = node.children[name] = NameNode()
            node = inner
        return node

    def find(self, path: Iterable[bytes]) -> "NameNode | None":
        """Return the node at a path below this one; None if it is missing."""
        node: NameNode | None = self
        for name in path:
            if (node := node.children.get(name) if node else None) is None:
                return None
        return node

    def drop(self, path: tuple[bytes, ...]) -> None:
        """Remove the node at a path, with all below it."""
        if (parent := self.find(path[:-1])) is not None:
            parent.children.pop(path[-1], None)
