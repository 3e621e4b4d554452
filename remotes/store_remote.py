"""The content store as a remote: `store:NAME`, an image of the store by its name."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack

from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import InvalidInput, Unsupported
from prefect_dist.remotes.remote import Ability, Remote, Source, Target
from prefect_dist.remotes.remotes import OpenContext
from prefect_dist.remotes.store_source import StoredNames, StoredSource
from prefect_dist.remotes.store_target import StoreTarget


class StoreRemote(Remote):
    """The images of the content store of the command or run. Thread-safe."""

    abilities: frozenset[Ability] = frozenset({"referrers", "push"})

    def __init__(self, context: OpenContext) -> None:
        self._open_store = context.open_store
        self._guard = threading.Lock()
        self._targets: dict[str, StoreTarget] = {}
        self._leases = ExitStack()
        self._aborted = threading.Event()

    def open_source(self, reference: Reference) -> Source:
        """Return the source of an image in the store."""
        return StoredSource(self._open_store(), reference.name, aborted=self._aborted)

    def open_origin(self, reference: Reference) -> Source:
        """Return the source for the names of a target: the current record of each name in its repository."""
        return StoredNames(self._open_store(), reference.name, aborted=self._aborted)

    def open_target(self, reference: Reference) -> Target:
        """Return the target for the names of a repository in the store.

        Raises:
            InvalidInput: the name has no tag, or a digest.
        """
        if reference.tag is None or reference.digest is not None:
            raise InvalidInput(
                f"expected a name with a tag and without a digest, as in store:{reference.place}:latest", subject=reference
            )
        with self._guard:
            if reference.locator not in self._targets:
                store = self._open_store()
                lease = self._leases.enter_context(store.leases.hold())
                self._targets[reference.locator] = StoreTarget(store, reference, lease=lease)
            return self._targets[reference.locator]

    def list_repositories(self, host: str) -> Iterator[str]:
        """Raise an error that names the command for the names in the store."""
        raise Unsupported("the remote store: cannot list repositories; dist names lists the names in the store", subject=host)

    def abort(self) -> None:
        """Abort the transfers in flight and refuse later ones."""
        self._aborted.set()

    def close(self) -> None:
        """Release the leases on content that was written without a run."""
        self._leases.close()
