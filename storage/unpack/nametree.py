"""Paths stored as a tree of names. Paths share their common beginnings, so memory grows with the number of distinct names."""

from collections.abc import Iterable


class NameNode:
    """A name in a tree, with the state of its directory: whether lower layers are cleared from it, and its final mode."""

    __slots__ = ("children", "is_cleared", "mode")

    def __init__(self) -> None:
        self.children: dict[bytes, NameNode] = {}
        self.is_cleared = False
        self.mode: int | None = None

    def add(self, path: Iterable[bytes]) -> "NameNode":
        """Return the node at a path below this node. Missing nodes are created."""
        node = self
        for name in path:
            inner = node.children.get(name)
            if inner is None:
                inner = node.children[name] = NameNode()
            node = inner
        return node

    def find(self, path: Iterable[bytes]) -> "NameNode | None":
        """Return the node at a path below this node; None if it is missing."""
        node: NameNode | None = self
        for name in path:
            if (node := node.children.get(name) if node else None) is None:
                return None
        return node

    def drop(self, path: tuple[bytes, ...]) -> None:
        """Remove the node at a path and the nodes below it."""
        if (parent := self.find(path[:-1])) is not None:
            parent.children.pop(path[-1], None)
