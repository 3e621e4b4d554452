"""Archives as remotes: `oci-archive:FILE` with an image layout, and `docker-archive:FILE` with Docker's list of images."""

import threading
from typing import ClassVar

from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import Unavailable
from prefect_dist.ocispec.schemes import DOCKER_ARCHIVE, OCI_ARCHIVE
from prefect_dist.remotes.archive_file import ArchiveFile
from prefect_dist.remotes.archive_files import ArchiveFiles, DockerFiles, SelectedFiles
from prefect_dist.remotes.archive_place import ArchivePlace
from prefect_dist.remotes.layout_files import LayoutFiles
from prefect_dist.remotes.layout_source import LayoutSource
from prefect_dist.remotes.remote import Ability, Remote, Source
from prefect_dist.remotes.remotes import OpenContext
from prefect_dist.storage.archive import layout

_MISSING = "no archive of images found; check the path, which ends at the first colon"


class _ArchiveRemote(Remote):
    """All archives of a run. Thread-safe. A run locates the entries of each file once, and reads this version to its end."""

    abilities: ClassVar[frozenset[Ability]] = frozenset({"tags", "referrers", "push"})
    scheme: ClassVar[str]

    def __init__(self, context: OpenContext) -> None:
        self._open_store = context.open_store
        self._opened: dict[str, LayoutFiles] = {}
        self._guard = threading.Lock()
        self._aborted = threading.Event()

    def open_source(self, reference: Reference) -> Source:
        """Return the source for the archive of a reference."""
        return LayoutSource(SelectedFiles(reference, self._open_once), missing=_MISSING)

    def abort(self) -> None:
        """Abort the transfers in flight and refuse later ones."""
        self._aborted.set()

    def _open_once(self, place: ArchivePlace) -> LayoutFiles:
        with self._guard:
            if place.path not in self._opened:
                at = f"{self.scheme}:{place.path}"
                self._opened[place.path] = self.open_files(ArchiveFile(place.path, at=at, check=self._check))
            return self._opened[place.path]

    def open_files(self, file: ArchiveFile) -> LayoutFiles:
        """Return the images of an archive as the files of a layout."""
        return ArchiveFiles(file)

    def _check(self) -> None:
        if self._aborted.is_set():
            raise Unavailable("reading the archive was aborted")


class OciArchiveRemote(_ArchiveRemote):
    """Archives with an image layout, such as those of `dist export`, skopeo and current versions of Docker."""

    scheme = OCI_ARCHIVE


class DockerArchiveRemote(_ArchiveRemote):
    """Archives with Docker's list of images. An image layout in the same file is preferred, because it has the manifests."""

    scheme = DOCKER_ARCHIVE

    def open_files(self, file: ArchiveFile) -> LayoutFiles:
        """Return the images of an archive as the files of a layout."""
        return DockerFiles(file) if file.find(layout.INDEX) is None else ArchiveFiles(file)
