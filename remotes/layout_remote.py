"""Image layouts as a remote: `oci:LOCATION[:tag|@digest]`, on a local disk, an object store or a web server."""

import threading
from typing import ClassVar

from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import Unsupported
from prefect_dist.remotes.http_files import HttpFiles
from prefect_dist.remotes.layout_files import StoredFiles
from prefect_dist.remotes.layout_source import LayoutSource
from prefect_dist.remotes.layout_target import LayoutTarget
from prefect_dist.remotes.remote import Ability, Remote, Source, Target
from prefect_dist.remotes.remotes import OpenContext

_WEB = ("https://", "http://")


class LayoutRemote(Remote):
    """All layouts of a run. Thread-safe."""

    abilities: ClassVar[frozenset[Ability]] = frozenset({"tags", "referrers", "push"})

    def __init__(self, context: OpenContext) -> None:
        self._registries = context.registries
        self._files: dict[str, StoredFiles | HttpFiles] = {}
        self._guard = threading.Lock()
        self._is_aborted = False

    def open_source(self, reference: Reference) -> Source:
        """Return the source for the layout of a reference."""
        return LayoutSource(self._open(reference))

    def open_origin(self, reference: Reference) -> Source:
        """Return the source for the layout of a target. Only exact tags count, because a target has no short names."""
        return LayoutSource(self._open(reference), has_short_names=False)

    def open_target(self, reference: Reference) -> Target:
        """Return the target for the layout of a reference.

        Raises:
            Unsupported: the layout is on a web server.
        """
        files = self._open(reference)
        if isinstance(files, HttpFiles):
            raise Unsupported("a layout on a web server is read-only; write to a path or to an object store", subject=reference)
        return LayoutTarget(files)

    def abort(self) -> None:
        """Abort the transfers in flight and refuse later ones."""
        with self._guard:
            self._is_aborted = True
            opened = list(self._files.values())
        for files in opened:
            files.abort()

    def close(self) -> None:
        """Discard unfinished uploads that no process could resume."""
        for files in list(self._files.values()):
            files.close()

    def _open(self, reference: Reference) -> StoredFiles | HttpFiles:
        with self._guard:
            if reference.locator not in self._files:
                is_web = reference.place.startswith(_WEB)
                opened = (
                    HttpFiles(self._registries.open_server(reference.place), at=reference.locator)
                    if is_web
                    else StoredFiles(reference.place, at=reference.locator)
                )
                self._files[reference.locator] = opened
                if self._is_aborted:
                    opened.abort()
            return self._files[reference.locator]
