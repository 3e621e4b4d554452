"""The content store as a remote: `store:NAME`, an image of the store by its name."""

from typing import ClassVar

from prefect_dist.ocispec import Reference
from prefect_dist.remotes.remote import Ability, Remote, Source
from prefect_dist.remotes.remotes import OpenContext
from prefect_dist.remotes.store_source import StoredSource


class StoreRemote(Remote):
    """The images of the content store of the command or run. Thread-safe."""

    abilities: ClassVar[frozenset[Ability]] = frozenset({"referrers"})

    def __init__(self, context: OpenContext) -> None:
        self._open_store = context.open_store

    def open_source(self, reference: Reference) -> Source:
        """Return the source of an image in the store."""
        return StoredSource(self._open_store(), reference.name)
