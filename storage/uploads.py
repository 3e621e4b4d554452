"""Ingests that are uploads: streamed to where the blob will be, and shown there only after size and digest are right.

Object stores can neither append nor rename, and what was sent but not committed cannot be read back. So an ingest lives as
long as the process that has it: another writer of the same store goes on with it, another process starts over. Two machines
that upload the same blob do no harm: both commit the same bytes.

Where the digest is not declared, the place is not known: such content goes to `ingest/`, under a name of this process alone,
and is copied by the object store.
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
from prefect_dist.ocispec.errors import AlreadyExists, Busy, Corrupt, DistError, InvalidInput, NotFound, Unavailable
from prefect_dist.storage.file_info import is_there, modification_time
from prefect_dist.storage.ingest import ContentVerifier, Declaration, Status, close_writer
from prefect_dist.storage.layout import Layout
from prefect_dist.storage.objects import Objects, UnfinishedUpload, Upload, UploadAbortedError

_log = logging.getLogger(__name__)
# Nothing tells whether the process that began an upload is still at it.
_UPLOAD_LIFE = timedelta(hours=24)


@dataclass(eq=False, slots=True)
class _Ingest:
    """An upload, and what has been taken of it.

    `held` while a writer has it, `broken` when that writer failed half-way, `sent` when all is at `path`.
    """

    measured: ContentVerifier
    upload: Upload
    path: str
    updated: datetime
    held: bool = True
    broken: bool = False
    sent: bool = False

    @property
    def declaration(self) -> Declaration:
        return self.measured.declaration


class UploadWriter:
    """A writer that uploads; see `storage.ingest.Writer`."""

    def __init__(self, ingests: "UploadIngests", ingest: _Ingest) -> None:
        self._ingests, self._ingest = ingests, ingest
        self._open = True

    @property
    def declaration(self) -> Declaration:
        """Return the declaration of the content from the beginning of the ingest."""
        return self._ingest.declaration

    @property
    def offset(self) -> int:
        """The number of bytes that were written and hashed."""
        return self._ingest.measured.offset

    @property
    def digest(self) -> Digest:
        """The digest of the bytes that are there."""
        return self._ingest.measured.digest

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`."""
        ingest = self._ingest
        ingest.measured.refuse_excess(len(data))
        with self._sound("writing to"):
            ingest.upload.take(data)
            ingest.measured.add(data)
        ingest.updated = datetime.now(UTC)
        with self._restart_if_aborted("sending to"):
            ingest.upload.send()

    def truncate(self) -> None:
        """Drop what was written and start over at 0."""
        with self._ingests.translate_errors(self._ingest, "truncating"):
            self._ingests.restart(self._ingest)

    def commit(self, *, size: int | None = None, expected: Digest | None = None) -> Digest:
        """Make the blob visible."""
        self._refuse_broken()
        digest = self._ingest.measured.verify(size, expected)
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
        """Let the ref go and keep what was sent, for a writer of the same store."""
        if self._open:
            self._open = False
            with self._ingests.translate_errors(self._ingest, "closing"):
                self._ingests.park(self._ingest)

    @contextmanager
    def _restart_if_aborted(self, doing: str) -> Iterator[None]:
        """Mark an upload that another process aborted as broken. The next writer starts it over; its data is lost."""
        with self._ingests.translate_errors(self._ingest, doing):
            try:
                yield
            except UploadAbortedError as exc:
                self._ingest.broken = True
                at = self._ingests.format_target(self._ingest)
                raise Unavailable(
                    f"{self.declaration.ref}: the upload to {at} was aborted by another process; it starts over"
                ) from exc

    @contextmanager
    def _sound(self, doing: str) -> Iterator[None]:
        """Taking: after a failure nobody knows how much was taken, so the ingest has to start over."""
        self._refuse_broken()
        try:
            with self._ingests.translate_errors(self._ingest, doing):
                yield
        except BaseException:
            self._ingest.broken = True
            raise

    def _refuse_broken(self) -> None:
        if self._ingest.broken:
            at = self._ingests.format_target(self._ingest)
            raise Corrupt(f"{self.declaration.ref}: not all that was written arrived at {at}; open it again")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        close_writer(self, exc)


class UploadIngests:
    """The ingests that this store began on an object store; see `storage.ingest.Ingests`."""

    def __init__(self, objects: Objects, layout: Layout) -> None:
        self._objects, self._layout = objects, layout
        self._ingests: dict[str, _Ingest] = {}
        self._guard = threading.Lock()
        self._process = uuid.uuid4().hex

    def writer(self, ref: str, *, expected: Digest | None = None, total: int | None = None) -> UploadWriter:
        """Begin the ingest `ref`, or go on with what another writer of this store sent of it."""
        if not ref:
            raise InvalidInput("ingest: the ref is empty")
        declared = Declaration(ref=ref, total=total, expected=expected, started=datetime.now(UTC))
        with self._objects.translate_errors(f"{ref}: opening {self._layout.format_path(self._place(declared))}"):
            ingest, stale = self._taken(declared)
            if stale is not None:
                self._discard(stale)
            try:
                self._refuse_existing(ref, expected)
            except BaseException:
                self.drop(ingest)
                raise
        return UploadWriter(self, ingest)

    def status(self, ref: str) -> Status:
        """Return the status of an ingest of this store."""
        with self._guard:
            ingest = self._ingests.get(ref)
        if ingest is None:
            raise NotFound(f"ingest {ref}: not found")
        return ingest.declaration.status(ingest.measured.offset, ingest.updated)

    def active(self) -> Iterator[Status]:
        """Return the ingests of this store, and the uploads of other processes where the service lists them.

        An upload has no ref: it is listed under its path in the store.
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
        """Drop what other processes began before a time and did not end."""
        before = min(before, datetime.now(UTC) - _UPLOAD_LIFE)
        with self._objects.translate_errors("ingests"):
            yield from self._objects.sweep(self._layout.root, before, dry_run=dry_run)
            yield from self._sweep_aside(before, dry_run=dry_run)

    def close(self) -> None:
        """Give up what was not committed: nobody else could go on with it."""
        with self._guard:
            ingests = list(self._ingests.values())
            self._ingests.clear()
        for ingest in ingests:
            self._discard(ingest)

    def format_target(self, ingest: _Ingest) -> str:
        """Return the target of an ingest for messages."""
        return self._layout.format_path(ingest.path)

    def translate_errors(self, ingest: _Ingest, doing: str) -> AbstractContextManager[None]:
        """Convert errors of the object store in this block; they name the operation and the ingest."""
        return self._objects.translate_errors(f"{ingest.declaration.ref}: {doing} {self.format_target(ingest)}")

    def restart(self, ingest: _Ingest) -> None:
        """Drop what was sent of an ingest."""
        ingest.upload.discard()
        ingest.upload = self._upload(ingest.declaration)
        ingest.measured.reset()
        ingest.broken = False

    def publish(self, ingest: _Ingest, digest: Digest) -> None:
        """Show the blob, and end its ingest."""
        blob = self._layout.blob(digest)
        if not ingest.sent:
            ingest.upload.commit()
            ingest.sent = True
        if ingest.path != blob:
            self._objects.move(ingest.path, blob)
        self._forget(ingest)

    def drop(self, ingest: _Ingest) -> None:
        """End an ingest without a blob."""
        self._forget(ingest)
        ingest.upload.discard()

    def park(self, ingest: _Ingest) -> None:
        """Keep an ingest for the next writer, unless nobody knows what was sent of it."""
        if ingest.broken:
            self.drop(ingest)
        ingest.held = False

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

    def _taken(self, wanted: Declaration) -> tuple[_Ingest, _Ingest | None]:
        """The ingest for a new writer, and the one that it takes the place of."""
        path = self._place(wanted)
        with self._guard:
            found = self._ingests.get(wanted.ref)
            if found is not None and found.held:
                since = f"since {found.declaration.started:%Y-%m-%d %H:%M:%S} UTC and is at byte {found.measured.offset}"
                raise Busy(f"{wanted.ref}: another writer holds it {since}")
            if found is not None and found.declaration.agrees(wanted):
                found.held = True
                return found, None
            ingest = _Ingest(ContentVerifier(wanted), self._upload(wanted), path, datetime.now(UTC))
            self._ingests[wanted.ref] = ingest
        return ingest, found

    def _upload(self, declared: Declaration) -> Upload:
        aside = f"{self._layout.ingest(declared.ref)}.{self._process}.aside"
        return self._objects.upload(self._place(declared), declared.total, aside=aside)

    def _place(self, declared: Declaration) -> str:
        """The blob's own place, or if that is not known, one that no other process has."""
        if declared.expected:
            return self._layout.blob(declared.expected)
        return f"{self._layout.ingest(declared.ref)}.{self._process}"

    def _refuse_existing(self, ref: str, expected: Digest | None) -> None:
        if expected is not None and is_there(self._objects.fs, self._layout.blob(expected)):
            raise AlreadyExists(f"{ref}: {expected} is in the store")

    def _forget(self, ingest: _Ingest) -> None:
        with self._guard:
            if self._ingests.get(ingest.declaration.ref) is ingest:
                del self._ingests[ingest.declaration.ref]

    def _discard(self, ingest: _Ingest) -> None:
        try:
            with self.translate_errors(ingest, "giving up"):
                ingest.upload.discard()
        except DistError:
            _log.warning(
                "%s: what was sent to %s is still there", ingest.declaration.ref, self.format_target(ingest), exc_info=True
            )
