"""Ingests on an object store: uploads to the path of the blob, invisible until size and digest are verified.

Object stores can neither append nor rename, and uncommitted data cannot be read back. So an ingest lives only as long as its
process: a later writer of the same `ContentStore` instance resumes the ingest, and a new process starts over. Two machines may
upload the same blob at the same time, since both commit the same bytes.

Without a declared digest, the path of the blob is unknown. Such content is uploaded to a path in `ingest/` that is unique to
this process, and the object store then copies the content to the path of the blob.
"""

import logging
import threading
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import AlreadyExists, Corrupt, DistError, NotFound, Unavailable
from prefect_dist.storage.file_info import is_there, modification_time
from prefect_dist.storage.ingest import ContentVerifier, Declaration, Status, close_writer
from prefect_dist.storage.layout import Layout
from prefect_dist.storage.objects import Objects, UnfinishedUpload, Upload, UploadAbortedError

_log = logging.getLogger(__name__)
# The age after which gc aborts an upload. A younger upload may belong to a process that is still alive.
_UPLOAD_LIFE = timedelta(hours=24)


@dataclass(eq=False, slots=True)
class _Ingest:
    """An upload and the state of its content.

    `is_held` is True while a writer holds the ref. `is_broken` is True after a failure that left an unknown amount of data.
    `is_sent` is True when the complete content is at `path`.
    """

    verifier: ContentVerifier
    upload: Upload
    path: str
    updated: datetime
    is_held: bool = True
    is_broken: bool = False
    is_sent: bool = False

    @property
    def declaration(self) -> Declaration:
        return self.verifier.declaration

    @property
    def status(self) -> Status:
        return self.declaration.status(self.verifier.offset, self.updated)


class UploadWriter:
    """Uploads the content of an ingest; see `storage.ingest.Writer`."""

    def __init__(self, ingests: "UploadIngests", ingest: _Ingest) -> None:
        self._ingests, self._ingest = ingests, ingest
        self._open = True

    @property
    def declaration(self) -> Declaration:
        """The declaration of the content, from the beginning of the ingest."""
        return self._ingest.declaration

    @property
    def offset(self) -> int:
        """The number of bytes that are written and hashed."""
        return self._ingest.verifier.offset

    @property
    def digest(self) -> Digest:
        """The digest of the bytes so far."""
        return self._ingest.verifier.digest

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`."""
        ingest = self._ingest
        ingest.verifier.refuse_excess(len(data))
        with self._break_on_failure("writing to"):
            ingest.upload.take(data)
            ingest.verifier.add(data)
        ingest.updated = datetime.now(UTC)
        with self._restart_if_aborted("sending to"):
            ingest.upload.send()

    def truncate(self) -> None:
        """Drop the data and start over at offset 0."""
        with self._ingests.translate_errors(self._ingest, "truncating"):
            self._ingests.restart(self._ingest)

    def commit(self, *, size: int | None = None, expected: Digest | None = None) -> Digest:
        """Make the blob visible; see `storage.ingest.Writer`."""
        self._refuse_broken()
        digest = self._ingest.verifier.verify(size, expected)
        with self._restart_if_aborted("committing"):
            self._ingests.publish(self._ingest, digest)
        self._open = False
        return digest

    def abort(self) -> None:
        """Drop the ingest."""
        self._open = False
        with self._ingests.translate_errors(self._ingest, "aborting"):
            self._ingests.drop(self._ingest)

    def close(self) -> None:
        """Release the ref and keep the data for another writer of the same `ContentStore` instance."""
        if self._open:
            self._open = False
            with self._ingests.translate_errors(self._ingest, "closing"):
                self._ingests.park(self._ingest)

    @contextmanager
    def _restart_if_aborted(self, doing: str) -> Iterator[None]:
        """Mark the ingest as broken if another process aborted its upload. The data is lost; the next writer starts over."""
        with self._ingests.translate_errors(self._ingest, doing):
            try:
                yield
            except UploadAbortedError as exc:
                self._ingest.is_broken = True
                at = self._ingests.format_target(self._ingest)
                raise Unavailable(
                    f"another process aborted the upload to {at}; the next attempt starts over",
                    subject=self.declaration.ref,
                ) from exc

    @contextmanager
    def _break_on_failure(self, doing: str) -> Iterator[None]:
        """Mark the ingest as broken if this block fails, since the amount of accepted data is unknown then."""
        self._refuse_broken()
        try:
            with self._ingests.translate_errors(self._ingest, doing):
                yield
        except BaseException:
            self._ingest.is_broken = True
            raise

    def _refuse_broken(self) -> None:
        if self._ingest.is_broken:
            at = self._ingests.format_target(self._ingest)
            raise Corrupt(f"an earlier write to {at} failed; open the ingest again to start over", subject=self.declaration.ref)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        close_writer(self, exc)


class UploadIngests:
    """The ingests of one `ContentStore` instance on an object store; see `storage.ingest.Ingests`."""

    def __init__(self, objects: Objects, layout: Layout) -> None:
        self._objects, self._layout = objects, layout
        self._ingests: dict[str, _Ingest] = {}
        self._guard = threading.Lock()
        self._process = uuid.uuid4().hex

    def writer(self, ref: str, *, expected: Digest | None = None, total: int | None = None) -> UploadWriter:
        """Begin the ingest `ref`, or resume the ingest of an earlier writer of this `ContentStore` instance."""
        declared = Declaration.begin(ref, total=total, expected=expected)
        with self._objects.translate_errors(f"{ref}: opening {self._layout.format_path(self._upload_path(declared))}"):
            ingest, stale = self._claim_ref(declared)
            if stale is not None:
                self._discard(stale)
            try:
                self._refuse_existing(ref, expected)
            except BaseException:
                self.drop(ingest)
                raise
        return UploadWriter(self, ingest)

    def status(self, ref: str) -> Status:
        """Return the status of an ingest of this `ContentStore` instance."""
        with self._guard:
            ingest = self._ingests.get(ref)
        if ingest is None:
            raise NotFound(f"ingest {ref}: not found")
        return ingest.status

    def active(self) -> Iterator[Status]:
        """Yield the ingests of this instance, and the uploads of other processes if the service lists uploads.

        An upload of another process has no ref. The path in the store takes the place of the ref.
        """
        with self._guard:
            own = {ingest.path: ref for ref, ingest in self._ingests.items()}
        for ref in own.values():
            with suppress(NotFound):
                yield self.status(ref)
        with self._objects.translate_errors("ingests"):
            for found in self._objects.list_unfinished(self._layout.root):
                if found.path not in own:
                    yield self._status(found)

    def sweep(self, before: datetime, *, dry_run: bool) -> Iterator[str]:
        """Abort uploads of other processes without new data since `before`. Uploads with data from the last 24 hours stay."""
        before = min(before, datetime.now(UTC) - _UPLOAD_LIFE)
        with self._objects.translate_errors("ingests"):
            yield from self._objects.sweep(self._layout.root, before, dry_run=dry_run)
            yield from self._sweep_aside(before, dry_run=dry_run)

    def close(self) -> None:
        """Discard uncommitted uploads, since no process could resume them."""
        with self._guard:
            ingests = list(self._ingests.values())
            self._ingests.clear()
        for ingest in ingests:
            self._discard(ingest)

    def format_target(self, ingest: _Ingest) -> str:
        """Return the path of an upload for messages."""
        return self._layout.format_path(ingest.path)

    def translate_errors(self, ingest: _Ingest, doing: str) -> AbstractContextManager[None]:
        """Convert errors of the object store in this block. Messages contain the operation and the ingest."""
        return self._objects.translate_errors(f"{ingest.declaration.ref}: {doing} {self.format_target(ingest)}")

    def restart(self, ingest: _Ingest) -> None:
        """Drop the data of an ingest and begin a new upload."""
        ingest.upload.discard()
        ingest.upload = self._upload(ingest.declaration)
        ingest.verifier.reset()
        ingest.is_broken = False

    def publish(self, ingest: _Ingest, digest: Digest) -> None:
        """Make the blob visible and end its ingest."""
        blob = self._layout.blob(digest)
        if not ingest.is_sent:
            ingest.upload.commit()
            ingest.is_sent = True
        if ingest.path != blob:
            self._objects.move(ingest.path, blob)
        self._forget(ingest)

    def drop(self, ingest: _Ingest) -> None:
        """End an ingest and discard its data."""
        self._forget(ingest)
        ingest.upload.discard()

    def park(self, ingest: _Ingest) -> None:
        """Keep an ingest for the next writer. A broken ingest is dropped."""
        if ingest.is_broken:
            self.drop(ingest)
        ingest.is_held = False

    def _status(self, found: UnfinishedUpload) -> Status:
        return Status(
            ref=found.path.removeprefix(f"{self._layout.root}/"),
            offset=found.size,
            total=None,
            expected=self._layout.digest(found.path),
            started=found.started,
            updated=found.updated,
        )

    def _sweep_aside(self, before: datetime, *, dry_run: bool) -> Iterator[str]:
        try:
            entries = self._objects.fs.ls(self._layout.ingests, detail=True)
        except FileNotFoundError:
            return
        for entry in entries:
            if entry["type"] == "file" and modification_time(entry) < before:
                if not dry_run:
                    self._objects.fs.rm_file(entry["name"])
                yield entry["name"]

    def _claim_ref(self, wanted: Declaration) -> tuple[_Ingest, _Ingest | None]:
        """Return the ingest for a new writer, and the ingest of the same ref that it replaces, if any.

        Raises:
            Busy: another writer holds the ref.
        """
        path = self._upload_path(wanted)
        with self._guard:
            found = self._ingests.get(wanted.ref)
            if found is not None and found.is_held:
                raise found.status.busy_error()
            if found is not None and found.declaration.agrees(wanted):
                found.is_held = True
                return found, None
            ingest = _Ingest(ContentVerifier(wanted), self._upload(wanted), path, datetime.now(UTC))
            self._ingests[wanted.ref] = ingest
        return ingest, found

    def _upload(self, declared: Declaration) -> Upload:
        aside = f"{self._layout.ingest(declared.ref)}.{self._process}.aside"
        return self._objects.upload(self._upload_path(declared), declared.total, aside=aside)

    def _upload_path(self, declared: Declaration) -> str:
        """Return the path of the blob, or if the digest is unknown, a path that is unique to this process."""
        if declared.expected:
            return self._layout.blob(declared.expected)
        return f"{self._layout.ingest(declared.ref)}.{self._process}"

    def _refuse_existing(self, ref: str, expected: Digest | None) -> None:
        if expected is not None and is_there(self._objects.fs, self._layout.blob(expected)):
            raise AlreadyExists(f"{expected} is in the store", subject=ref)

    def _forget(self, ingest: _Ingest) -> None:
        with self._guard:
            if self._ingests.get(ingest.declaration.ref) is ingest:
                del self._ingests[ingest.declaration.ref]

    def _discard(self, ingest: _Ingest) -> None:
        try:
            with self.translate_errors(ingest, "aborting"):
                ingest.upload.discard()
        except DistError:
            _log.warning(
                "%s: could not abort the upload to %s", ingest.declaration.ref, self.format_target(ingest), exc_info=True
            )
