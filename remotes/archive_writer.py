"""Writes archives as a whole: each change of the tags of an archive gives a new version of the file.

A new version has the images of the previous version, except replaced and removed tags, and the images of the run. Concurrent
changes are written together, because each version costs as many bytes as the archive has.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from prefect_dist.ocispec import Descriptor, Digest, mediatypes
from prefect_dist.ocispec.errors import InvalidInput, NotFound
from prefect_dist.ocispec.image_layout import INDEX, NAMES
from prefect_dist.ocispec.referrers import add_entry, fallback_tag
from prefect_dist.remotes.archive_content import ArchiveContent
from prefect_dist.remotes.archive_file import ArchiveFile, FileIdentity, identify
from prefect_dist.remotes.archive_files import ArchiveFiles, DockerFiles
from prefect_dist.remotes.archive_place import ArchivePlace, make_index, rename
from prefect_dist.remotes.layout_files import LayoutFiles
from prefect_dist.remotes.layout_index import LayoutIndex
from prefect_dist.storage import ContentStore
from prefect_dist.storage.archive import layout
from prefect_dist.storage.archive.docker import docker_list
from prefect_dist.storage.archive.replacing import replace_file
from prefect_dist.storage.archive.writing import write_archive
from prefect_dist.storage.errors import translate_errors


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArchiveChange:
    """A change of the images at one place of an archive.

    Attributes:
        tags: the manifests by their new tags.
        listed: the entries of referrers to list under the fallback tags of their subjects.
        removed: the tags to remove.
    """

    place: ArchivePlace
    tags: dict[str, Descriptor] = field(default_factory=dict)
    listed: Sequence[tuple[Digest, Descriptor]] = ()
    removed: frozenset[str] = frozenset()

    def apply(self, entries: Sequence[Descriptor], content: ArchiveContent, *, at: str) -> list[Descriptor]:
        """Return the entries of `index.json` after the change. New indexes of referrers are added to `content.made`.

        Raises:
            DistError: an existing index of referrers cannot be read.
        """
        tags = dict(self.tags)
        for subject, referrer in self.listed:
            tag = fallback_tag(subject)
            known = tags.get(tag) or next((one for one in entries if self.place.find_tag(one) == tag), None)
            raw = add_entry(None if known is None else content.read_document(known), referrer, at=f"{at}:{tag}")
            if raw is not None:
                tags[tag] = Descriptor(media_type=mediatypes.OCI_INDEX, digest=Digest.of(raw), size=len(raw))
                content.made[tags[tag].digest] = raw
        kept = [one for one in entries if self.place.find_tag(one) not in (tags.keys() | self.removed)]
        return [*kept, *(rename(one, self.place.make_name(tag)) for tag, one in tags.items())]


class ArchiveWriter:
    """Writes one file. Thread-safe, and safe against other processes that write to the same file.

    `check` raises the error of an abort.
    """

    def __init__(self, path: str, *, at: str, store: ContentStore, check: Callable[[], None]) -> None:
        self.at, self._path, self._store, self._check = at, Path(path), store, check
        self._guard = threading.Lock()  # protects _waiting; never held during I/O
        self._waiting: list[ArchiveChange] = []
        self._writing = threading.Lock()
        self._opening = threading.Lock()
        self._opened: tuple[FileIdentity, LayoutFiles] | None = None
        self.pushed: dict[Digest, int] = {}

    def require_directory(self) -> None:
        """Check that a file can be created.

        Raises:
            InvalidInput: the directory does not exist, or the path is no regular file.
        """
        if not self._path.parent.is_dir():
            raise InvalidInput(f"the directory {self._path.parent} does not exist; create the directory", subject=self.at)
        if self._path.exists() and not self._path.is_file():
            raise InvalidInput("expected a regular file; dist export writes archives to pipes and devices", subject=self.at)

    def open_files(self) -> LayoutFiles | None:
        """Return the images of the current version of the file as a layout; None without a file.

        Raises:
            InvalidInput: the file is no archive of images.
            DistError: the file cannot be read.
        """
        with self._opening:
            try:
                with translate_errors(self.at):
                    found = identify(str(self._path))
            except NotFound:
                return None
            if self._opened is None or self._opened[0] != found:
                file = ArchiveFile(str(self._path), at=self.at, check=self._check)
                files = DockerFiles(file) if file.find(INDEX) is None else ArchiveFiles(file)
                self._opened = file.identity, files
            return self._opened[1]

    def open_content(self) -> ArchiveContent:
        """Return the content of the current version of the file and of the run."""
        return ArchiveContent(self._store, dict(self.pushed), self.open_files(), check=self._check)

    def read_index(self, place: ArchivePlace) -> LayoutIndex:
        """Return the images at a place in the current version of the file."""
        files = self.open_files()
        raw = make_index([]) if files is None else place.select(files.read_document(INDEX), at=self.at)
        return LayoutIndex.parse(raw, at=self.at)

    def change(self, wanted: ArchiveChange) -> None:
        """Write a new version of the file. On return, the version with the change is durable.

        If several threads change the archive at once, one thread writes the changes of every thread.

        Raises:
            InvalidInput: the lists of the archive exceed the size limit of importers.
            StoreFull, Denied, Unavailable: the file system; the file is unchanged.
            DistError: content cannot be read; the file is unchanged.
        """
        with self._guard:
            self._waiting.append(wanted)
        with self._writing:
            with self._guard:
                batch = list(self._waiting)
            if wanted not in batch:
                return  # another thread has written this change meanwhile
            try:
                self._write(batch)
            except BaseException:
                batch = [wanted]  # the other threads try again, each with its own error
                raise
            finally:
                with self._guard:
                    self._waiting = [one for one in self._waiting if one not in batch]

    def _write(self, changes: Iterable[ArchiveChange]) -> None:
        with translate_errors(f"{self.at}: writing"), replace_file(self._path) as file:
            content = self.open_content()
            previous = self.open_files()
            entries = [] if previous is None else self._read_entries(previous)
            for change in changes:
                entries = change.apply(entries, content, at=self.at)
            distinct = {(self._name_of(one) or "", str(one.digest)): one for one in entries}
            ordered = [distinct[key] for key in sorted(distinct)]
            trees = [content.walk(one) for one in ordered]
            named = [(self._name_of(one) or "", tree) for one, tree in zip(ordered, trees, strict=True)]
            write_archive(
                file,
                index=make_index(ordered),
                docker_list=docker_list(content.read_document, named),
                blobs=content.collect(trees),
            )

    def _read_entries(self, files: LayoutFiles) -> list[Descriptor]:
        index = LayoutIndex.parse(files.read_document(INDEX), at=self.at)
        entries = list[Descriptor]()
        for one in index.entries:
            with suppress(NotFound):  # an entry without content cannot be kept
                files.size(one.descriptor.digest)
                entries.append(one.descriptor)
        return entries

    @staticmethod
    def _name_of(entry: Descriptor) -> str | None:
        return layout.image_name(entry) or dict(entry.annotations).get(NAMES[0])
