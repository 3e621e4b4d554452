"""Image layouts as a remote: `oci:LOCATION[:tag|@digest]`, on a local disk, an object store or a web server."""

import threading
from dataclasses import dataclass

from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import Unsupported
from prefect_dist.remotes.http_files import HttpFiles
from prefect_dist.remotes.layout_files import StoredFiles
from prefect_dist.remotes.layout_source import LayoutSource
from prefect_dist.remotes.layout_target import LayoutTarget
from prefect_dist.remotes.layout_writer import LayoutWriter
from prefect_dist.remotes.remote import Ability, Remote, Source, Target
from prefect_dist.remotes.remotes import OpenContext

_WEB = ("https://", "http://")


@dataclass(frozen=True, slots=True)
class _Layout:
    """An open layout. `target` is None if the layout is read-only.

    `origin` reads the layout as a target: only exact tags count, because a target has no short names.
    """

    files: StoredFiles | HttpFiles
    source: LayoutSource
    origin: LayoutSource
    writer: LayoutWriter | None
    target: LayoutTarget | None


class LayoutRemote(Remote):
    """All layouts of a run. Thread-safe. Each layout is opened once."""

    abilities: frozenset[Ability] = frozenset({"tags", "referrers", "push"})

    def __init__(self, context: OpenContext) -> None:
        self._registries = context.registries
        self._layouts: dict[str, _Layout] = {}
        self._guard = threading.Lock()
        self._is_aborted = False

    def open_source(self, reference: Reference) -> Source:
        """Return the source for the layout of a reference."""
        return self._open(reference).source

    def open_origin(self, reference: Reference) -> Source:
        """Return the source for the layout of a target."""
        return self._open(reference).origin

    def open_target(self, reference: Reference) -> Target:
        """Return the target for the layout of a reference.

        Raises:
            Unsupported: the layout is on a web server.
        """
        target = self._open(reference).target
        if target is None:
            raise Unsupported("a layout on a web server is read-only; write to a path or to an object store", subject=reference)
        return target

    def abort(self) -> None:
        """Abort the transfers in flight and refuse later ones."""
        with self._guard:
            self._is_aborted = True
            opened = list(self._layouts.values())
        for layout in opened:
            layout.files.abort()

    def close(self) -> None:
        """Discard unfinished uploads that no process could resume, and remove old leftovers."""
        for layout in list(self._layouts.values()):
            if layout.writer is not None:
                layout.writer.close()

    def _open(self, reference: Reference) -> _Layout:
        with self._guard:
            if reference.locator not in self._layouts:
                opened = self._open_new(reference)
                self._layouts[reference.locator] = opened
                if self._is_aborted:
                    opened.files.abort()
            return self._layouts[reference.locator]

    def _open_new(self, reference: Reference) -> _Layout:
        files: StoredFiles | HttpFiles
        if reference.place.startswith(_WEB):
            files, writer = HttpFiles(self._registries.open_server(reference.place), at=reference.locator), None
        else:
            files = StoredFiles(reference.place, at=reference.locator)
            writer = LayoutWriter(files)
        target = None if writer is None else LayoutTarget(writer)
        return _Layout(files, LayoutSource(files), LayoutSource(files, has_short_names=False), writer, target)
