"""The first half of an import: what comes with the stream goes into the store, while nobody knows yet what is an image."""

import logging
import os
import uuid
from collections.abc import Container, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

from prefect_dist.ocispec import Descriptor, Digest, mediatypes
from prefect_dist.ocispec.errors import AlreadyExists, DistError, InvalidInput, NotFound
from prefect_dist.ocispec.manifest import MAX_BYTES
from prefect_dist.storage.archive import layout, tar
from prefect_dist.storage.leases import Lease
from prefect_dist.storage.store import ContentStore

_log = logging.getLogger(__name__)
# Each takes some memory. Blobs of an image layout need none, so that there may be any number of those.
_MAX_REMEMBERED = 100_000
_MAX_REMEMBERED_BYTES = 16 * 1024 * 1024  # of their names and the targets of links
_MAX_LINKS = 8  # on the way to one file


@dataclass(slots=True, kw_only=True)
class Received:
    """The content of an archive: its lists of images, and by name other files and the targets of links.

    `lease` protects all content that came, until names do.
    """

    source: str
    lease: Lease
    lists: dict[str, bytes] = field(default_factory=dict)
    entries: dict[str, Descriptor | str] = field(default_factory=dict)
    remembered_bytes: int = 0
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    def ref(self, name: str) -> str:
        """The ingest of an entry: of this run alone, since a stream cannot wait until another import of the content ends."""
        return f"{self.source}: {name} (import {self.run})"

    def find(self, store: ContentStore, name: str) -> Descriptor:
        """The content of an entry, of a type that nobody knows yet; links are followed.

        Raises:
            NotFound: no such entry came.
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
        raise NotFound(f"{self.source}: expected {name!r}, which its {layout.DOCKER_LIST} names; the archive lacks it")


def receive(store: ContentStore, file: IO[bytes], *, source: str, lease: Lease) -> Received:
    """Read a stream to its end and put what may belong to images into the store, verified as far as names promise digests.

    Raises:
        InvalidInput: no tar stream, a list of images that is too large, or an entry that is there twice.
        Corrupt: a damaged stream, or content that is not what its name promises.
        StoreFull, Denied, Unavailable: the store or the stream. Whole blobs are kept, nothing else.
    """
    received = Received(source=source, lease=lease)
    for entry in tar.read(file, source=source):
        if entry.name in (layout.INDEX, layout.DOCKER_LIST):
            _refuse_second(received.lists, entry.name, source=source)
            received.lists[entry.name] = _whole(entry, source)
        elif not layout.is_content(entry.name):
            _log.debug("%s: %r passed over", source, entry.name)
        elif entry.target is not None:
            _remember(received, entry.name, entry.target)
        else:
            _keep(store, entry, received)
    return received


def ingest(
    store: ContentStore, pieces: Iterable[bytes], *, ref: str, size: int, expected: Digest | None, lease: Lease
) -> Digest:
    """Write content to the store, protected by a lease. If that fails, nothing of it stays: the next attempt starts over.

    Content that is in the store already is not read.

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
            with suppress(NotFound):  # gc removed it meanwhile
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
            with store.exclude_gc():  # gc may be about to remove an older copy that nothing needed
                return writer.commit()
        except BaseException:
            with suppress(DistError):  # the error that is on its way says more
                writer.abort()
            raise


def _keep(store: ContentStore, entry: tar.ArchiveEntry, received: Received) -> None:
    expected = layout.digest_of(entry.name)
    ref, lease = received.ref(entry.name), received.lease
    digest = ingest(store, entry.pieces, ref=ref, size=entry.size, expected=expected, lease=lease)
    if expected is None:
        _remember(received, entry.name, _describe_blob(digest, entry.size))


def _whole(entry: tar.ArchiveEntry, source: str) -> bytes:
    if entry.size > MAX_BYTES:
        raise InvalidInput(f"{source}: {entry.name}: expected at most {MAX_BYTES} bytes, got {entry.size}")
    return b"".join(entry.pieces)


def _remember(received: Received, name: str, value: Descriptor | str) -> None:
    """Add a file or the target of a link to what was received, within the limits of an archive."""
    _refuse_second(received.entries, name, source=received.source)
    if len(received.entries) >= _MAX_REMEMBERED:
        raise InvalidInput(
            f"{received.source}: more than {_MAX_REMEMBERED} files that are no blobs of an image layout; refused"
        )
    received.remembered_bytes += sum(len(os.fsencode(text)) for text in (name, value) if isinstance(text, str))
    if received.remembered_bytes > _MAX_REMEMBERED_BYTES:
        raise InvalidInput(
            f"{received.source}: more than {_MAX_REMEMBERED_BYTES} bytes of names that are no blobs of an image layout; refused"
        )
    received.entries[name] = value


def _refuse_second(known: Container[str], name: str, *, source: str) -> None:
    if name in known:
        raise InvalidInput(f"{source}: {name} is there twice; readers would disagree about it")


def _describe_blob(digest: Digest, size: int) -> Descriptor:
    return Descriptor(media_type=mediatypes.OCTET_STREAM, digest=digest, size=size)
