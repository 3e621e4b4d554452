"""The first half of an import: stores the content of a tar stream before its lists of images are known."""

import logging
import os
import uuid
from collections.abc import Container, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

from prefect_dist.ocispec import Descriptor, Digest, mediatypes
from prefect_dist.ocispec.errors import AlreadyExists, DistError, InvalidInput, NotFound
from prefect_dist.ocispec.image_layout import INDEX
from prefect_dist.ocispec.manifest import MAX_BYTES
from prefect_dist.storage.archive import layout, tar
from prefect_dist.storage.leases import Lease
from prefect_dist.storage.store import ContentStore

_log = logging.getLogger(__name__)
# The limits for files that are kept in memory by name. Blobs of an image layout need no memory, so their number is unlimited.
_MAX_REMEMBERED = 100_000
_MAX_REMEMBERED_BYTES = 16 * 1024 * 1024  # of names and link targets
_MAX_LINKS = 8  # on the way to one file


@dataclass(slots=True, kw_only=True)
class Received:
    """The content of an archive: its lists of images, and by name other files and the targets of links.

    `lease` protects the received content until names protect it.
    """

    source: str
    lease: Lease
    lists: dict[str, bytes] = field(default_factory=dict)
    entries: dict[str, Descriptor | str] = field(default_factory=dict)
    remembered_bytes: int = 0
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    def ref(self, name: str) -> str:
        """Return the ref of the ingest of an entry, unique to this import: a stream cannot wait for another import to end."""
        return f"{self.source}: {name} (import {self.run})"

    def find(self, store: ContentStore, name: str) -> Descriptor:
        """Return the content of an entry, with an unknown media type. Links are followed.

        Raises:
            NotFound: the archive lacks the entry.
        """
        target, found = name, self.entries.get(name)
        for _ in range(_MAX_LINKS):
            if not isinstance(found, str):
                break
            target, found = found, self.entries.get(found)
        if isinstance(found, Descriptor):
            return found
        if (digest := layout.digest_of(target)) is not None:
            with suppress(NotFound):
                return _describe_blob(digest, store.info(digest).size)
        raise NotFound(f"{name!r} is missing in the archive, expected by its {layout.DOCKER_LIST}", subject=self.source)


def receive(store: ContentStore, file: IO[bytes], *, source: str, lease: Lease) -> Received:
    """Read a stream to its end and store each file that may belong to an image. Digests in names are verified.

    Raises:
        InvalidInput: not a tar stream, a list of images beyond the size limit, or an entry that occurs twice.
        Corrupt: a damaged stream, or content with another digest than its name.
        StoreFull, Denied, Unavailable: the store or the stream. Complete blobs stay in the store.
    """
    received = Received(source=source, lease=lease)
    for entry in tar.read(file, source=source):
        if entry.name in (INDEX, layout.DOCKER_LIST):
            _refuse_duplicate(received.lists, entry.name, source=source)
            received.lists[entry.name] = _read_list(entry, source)
        elif not layout.is_content(entry.name):
            _log.debug("%s: %r skipped", source, entry.name)
        elif entry.target is not None:
            _remember(received, entry.name, entry.target)
        else:
            _ingest_file(store, entry, received)
    return received


def ingest(
    store: ContentStore, pieces: Iterable[bytes], *, ref: str, size: int, expected: Digest | None, lease: Lease
) -> Digest:
    """Write content to the store, protected by a lease. After a failure nothing is kept, and the next attempt starts over.

    The pieces of content that is in the store already are not read.

    Raises:
        Corrupt: size or digest are wrong.
        StoreFull, Denied, Unavailable: the store.
    """
    while True:
        try:
            return _write(store, pieces, ref=ref, size=size, expected=expected, lease=lease)
        except AlreadyExists:
            if expected is None:
                raise
            with suppress(NotFound):  # gc has removed the blob meanwhile
                lease.take(_describe_blob(expected, store.info(expected).size))
                with store.exclude_gc():
                    return store.info(expected).digest


def _write(
    store: ContentStore, pieces: Iterable[bytes], *, ref: str, size: int, expected: Digest | None, lease: Lease
) -> Digest:
    with store.writer(ref, expected=expected, total=size) as writer:
        try:
            for piece in pieces:
                writer.write(piece)
            lease.take(_describe_blob(writer.digest, writer.offset))
            with store.exclude_gc():  # gc may be about to remove an older, unneeded copy of the blob
                return writer.commit()
        except BaseException:
            with suppress(DistError):  # do not hide the first error
                writer.abort()
            raise


def _ingest_file(store: ContentStore, entry: tar.ArchiveEntry, received: Received) -> None:
    expected = layout.digest_of(entry.name)
    ref, lease = received.ref(entry.name), received.lease
    digest = ingest(store, entry.pieces, ref=ref, size=entry.size, expected=expected, lease=lease)
    if expected is None:
        _remember(received, entry.name, _describe_blob(digest, entry.size))


def _read_list(entry: tar.ArchiveEntry, source: str) -> bytes:
    if entry.size > MAX_BYTES:
        raise InvalidInput(f"{entry.name}: expected at most {MAX_BYTES} bytes, got {entry.size}", subject=source)
    return b"".join(entry.pieces)


def _remember(received: Received, name: str, value: Descriptor | str) -> None:
    """Add a file or the target of a link to the received content, within the limits of an archive."""
    _refuse_duplicate(received.entries, name, source=received.source)
    if len(received.entries) >= _MAX_REMEMBERED:
        raise InvalidInput(
            f"expected at most {_MAX_REMEMBERED} files that are not blobs of an image layout, found more",
            subject=received.source,
        )
    received.remembered_bytes += sum(len(os.fsencode(text)) for text in (name, value) if isinstance(text, str))
    if received.remembered_bytes > _MAX_REMEMBERED_BYTES:
        raise InvalidInput(
            f"expected at most {_MAX_REMEMBERED_BYTES} bytes of names of files other than blobs, found more",
            subject=received.source,
        )
    received.entries[name] = value


def _refuse_duplicate(known: Container[str], name: str, *, source: str) -> None:
    if name in known:
        raise InvalidInput(f"{name} occurs twice; refused, since tools would disagree about it", subject=source)


def _describe_blob(digest: Digest, size: int) -> Descriptor:
    return Descriptor(media_type=mediatypes.OCTET_STREAM, digest=digest, size=size)
