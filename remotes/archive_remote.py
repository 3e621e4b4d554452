"""Archives as remotes: `oci-archive:FILE` with an image layout, and `docker-archive:FILE` with Docker's list of images."""

import threading
from contextlib import ExitStack
from functools import partial
from typing import ClassVar

from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import NotFound, Unavailable
from prefect_dist.ocispec.image_layout import INDEX
from prefect_dist.ocispec.schemes import DOCKER_ARCHIVE, OCI_ARCHIVE
from prefect_dist.remotes.archive_file import ArchiveFile
from prefect_dist.remotes.archive_files import ArchiveFiles, DockerFiles, SelectedFiles
from prefect_dist.remotes.archive_place import ArchivePlace
from prefect_dist.remotes.archive_target import ArchiveTarget
from prefect_dist.remotes.archive_writer import ArchiveWriter
from prefect_dist.remotes.layout_files import LayoutFiles
from prefect_dist.remotes.layout_source import LayoutSource
from prefect_dist.remotes.remote import Ability, Remote, Source, Target
from prefect_dist.remotes.remotes import OpenContext
from prefect_dist.remotes.store_content import keep_content

_MISSING = "no archive of images found; check the path, which ends at the first colon"


class _ArchiveRemote(Remote):
    """All archives of a run. Thread-safe.

    A run locates the entries of a source file once, and reads this version of the file to its end. A target is the current
    version of its file.
    """

    abilities: frozenset[Ability] = frozenset({"tags", "referrers", "push"})
    scheme: ClassVar[str]

    def __init__(self, context: OpenContext) -> None:
        self._open_store = context.open_store
        self._opened: dict[str, LayoutFiles] = {}
        self._writers: dict[str, ArchiveWriter] = {}
        self._targets: dict[str, Target] = {}
        self._guard = threading.Lock()  # never held while an archive is opened, which may take minutes
        self._opening = dict[str, threading.Lock]()
        self._aborted = threading.Event()
        self._leases = ExitStack()

    def open_source(self, reference: Reference) -> Source:
        """Return the source for the archive of a reference."""
        return LayoutSource(SelectedFiles(reference, self._open_once), missing=_MISSING)

    def open_origin(self, reference: Reference) -> Source:
        """Return the source for the archive of a target. Only exact tags count, because a target has no short names."""
        return LayoutSource(SelectedFiles(reference, self._open_current), has_short_names=False, missing=_MISSING)

    def open_target(self, reference: Reference) -> Target:
        """Return the target for the archive of a reference.

        Raises:
            InvalidInput: the file cannot be created.
        """
        place = ArchivePlace.parse(reference)
        writer = self._open_writer(place)
        writer.require_directory()
        with self._guard:
            if reference.locator not in self._targets:
                store = self._open_store()
                lease = self._leases.enter_context(store.leases.hold())
                self._targets[reference.locator] = ArchiveTarget(
                    reference, writer, keep=partial(keep_content, store, lease), is_single=self.scheme == DOCKER_ARCHIVE
                )
            return self._targets[reference.locator]

    def abort(self) -> None:
        """Abort the transfers in flight and refuse later ones."""
        self._aborted.set()

    def close(self) -> None:
        """Release the leases on content that was written without a run."""
        self._leases.close()

    def open_files(self, file: ArchiveFile) -> LayoutFiles:
        """Return the images of an archive as the files of a layout."""
        return ArchiveFiles(file)

    def _open_once(self, place: ArchivePlace) -> LayoutFiles:
        with self._opening.setdefault(place.path, threading.Lock()):
            if place.path not in self._opened:
                self._opened[place.path] = self.open_files(ArchiveFile(place.path, at=self._at(place), check=self._check))
            return self._opened[place.path]

    def _open_current(self, place: ArchivePlace) -> LayoutFiles:
        files = self._open_writer(place).open_files()
        if files is None:
            raise NotFound("no such file", subject=self._at(place))
        return files

    def _open_writer(self, place: ArchivePlace) -> ArchiveWriter:
        with self._guard:
            if place.path not in self._writers:
                at, store = self._at(place), self._open_store()
                self._writers[place.path] = ArchiveWriter(place.path, at=at, store=store, check=self._check)
            return self._writers[place.path]

    def _at(self, place: ArchivePlace) -> str:
        return f"{self.scheme}:{place.path}"

    def _check(self) -> None:
        if self._aborted.is_set():
            raise Unavailable("reading or writing the archive was aborted")


class OciArchiveRemote(_ArchiveRemote):
    """Archives with an image layout, such as those of `dist export`, skopeo and current versions of Docker."""

    scheme = OCI_ARCHIVE


class DockerArchiveRemote(_ArchiveRemote):
    """Archives with Docker's list of images. An image layout in the same file is preferred, because it has the manifests."""

    scheme = DOCKER_ARCHIVE

    def open_files(self, file: ArchiveFile) -> LayoutFiles:
        """Return the images of an archive as the files of a layout."""
        return DockerFiles(file) if file.find(INDEX) is None else ArchiveFiles(file)
