"""Transfers content between a remote and the store, and verifies the content.

The store decides how much to transfer. Existing content is not requested, and a partial transfer is resumed.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from prefect_dist.ocispec import Descriptor, Digest, manifest, referrers
from prefect_dist.ocispec.errors import AlreadyExists, Busy, Corrupt, InvalidInput
from prefect_dist.remotes import Source, Target
from prefect_dist.storage import ContentStore, Writer
from prefect_dist.storage.ingest import make_ref
from prefect_dist.transfer.events import ContentAdvanced, Notify

# A second transfer of the same content polls the first one, with growing, random pauses, as containerd's OpenWriter does. No
# signal exists for the end of a writer in another process.
_FIRST_PAUSE_S = 0.016
_LONGEST_PAUSE_S = 2.0


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Receipt:
    """The result of a transfer to the store or to a target; `transferred` counts the bytes of this attempt."""

    status: Literal["fetched", "pushed", "mounted", "existed"]
    transferred: int = 0
    seconds: float = 0.0

    def with_more(self, other: "Receipt") -> "Receipt":
        """Return the receipt after more bytes of the same content were transferred."""
        status = self.status if other.status == "existed" else other.status
        return Receipt(status, self.transferred + other.transferred, self.seconds + other.seconds)


def fetch(
    store: ContentStore,
    source: Source,
    descriptor: Descriptor,
    *,
    notify: Notify,
    pause: Callable[[float], None],
) -> Receipt:
    """Fetch the content of `descriptor` into the store, and verify the content.

    While another process writes the content, the function calls `pause` with the seconds until the next check.

    Raises:
        Corrupt: the bytes do not match the descriptor. The store keeps none of them, so the next attempt starts at 0.
        DistError: an error of the remote or the store. The store keeps the received bytes, and the next attempt resumes.
    """
    started = time.monotonic()
    writer = _open_writer(store, descriptor, pause)
    if writer is None:
        return Receipt("existed", seconds=time.monotonic() - started)
    with writer:
        transferred = _fill(writer, source, descriptor, notify)
        try:
            writer.commit()
        except Corrupt:
            writer.truncate()  # any byte may be wrong, so the next attempt starts at 0
            source.distrust(descriptor)
            raise
    return Receipt("fetched", transferred, time.monotonic() - started)


def push(
    store: ContentStore,
    target: Target,
    descriptor: Descriptor,
    *,
    source: str | None = None,
    tag: str | None = None,
    is_absent: bool = False,
    notify: Notify,
) -> Receipt:
    """Push the content of `descriptor` from the store to a repository. The registry verifies the content.

    The function first asks the registry for the content, unless `is_absent`. The registry mounts a blob from the `source`
    repository or from another repository, if possible. The repository must have the children of a manifest. If `tag` does not
    resolve to the manifest, the push sets the tag.

    Raises:
        NotFound: the store does not have the content.
        Corrupt: the registry reports different bytes.
        DistError: an error of the store or the remote. The next push of this run resumes an interrupted upload.
    """
    started = time.monotonic()
    exists = not is_absent and target.has(descriptor, tag=tag)
    if descriptor.is_manifest:
        raw = store.manifest(descriptor)
        # An existing manifest with a subject is pushed again. Only the response shows whether the registry lists the manifest,
        # and a run that ended between the push and the listing has left the manifest unlisted.
        if exists and _subject(raw, descriptor) is None:
            return Receipt("existed", seconds=time.monotonic() - started)
        _put(target, raw, descriptor, tag, notify)
        return Receipt("existed" if exists else "pushed", len(raw), time.monotonic() - started)
    if exists or target.mount(descriptor, source=source):
        return Receipt("existed" if exists else "mounted", seconds=time.monotonic() - started)
    return upload(store, target, descriptor, notify=notify)


def reuse(
    target: Target, blob: Descriptor, *, source: str | None, is_absent: bool = False, can_mount: bool = True
) -> Receipt | None:
    """Return the receipt of a blob that a repository has or mounts. Otherwise return None.

    The function first asks the registry for the blob, unless `is_absent`. If `can_mount`, the registry mounts the blob from the
    `source` repository or from another repository, if possible.

    Raises:
        Corrupt: the registry reports a blob of another size.
        DistError: an error of the remote.
    """
    started = time.monotonic()
    if not is_absent and target.has(blob):
        return Receipt("existed", seconds=time.monotonic() - started)
    if can_mount and target.mount(blob, source=source):
        return Receipt("mounted", seconds=time.monotonic() - started)
    return None


def upload(store: ContentStore, target: Target, blob: Descriptor, *, notify: Notify) -> Receipt:
    """Upload a blob that the repository lacks and does not mount.

    Raises:
        NotFound: the store does not have the content.
        Corrupt: the registry reports different bytes.
        DistError: an error of the store or the remote. The next upload of this run resumes an interrupted upload.
    """
    started, sent = time.monotonic(), 0

    def count(offset: int, gained: int) -> None:
        nonlocal sent
        sent += gained
        notify(ContentAdvanced(blob, offset, gained))

    try:
        target.upload(blob, lambda offset: store.chunks(blob.digest, offset=offset), observer=count)
    except InvalidInput:
        for _ in store.chunks(blob.digest):  # raises Corrupt instead, if the store has other bytes
            pass
        raise
    return Receipt("pushed", sent, time.monotonic() - started)


def _ignore_listing(_subject: Digest) -> None:
    """Do nothing with the subject of a listed manifest."""


def put(
    store: ContentStore,
    target: Target,
    descriptor: Descriptor,
    *,
    tag: str | None = None,
    notify: Notify,
    on_listing: Callable[[Digest], None] = _ignore_listing,
) -> Receipt:
    """Push a manifest to a repository that has the children, even if the manifest exists there; set `tag` if given.

    `on_listing` is called with the subject of the manifest before the fallback tag of the subject is written.

    Raises:
        DistError: an error of the store or the remote.
    """
    started = time.monotonic()
    raw = store.manifest(descriptor)
    _put(target, raw, descriptor, tag, notify, on_listing=on_listing)
    return Receipt("pushed", len(raw), time.monotonic() - started)


def _put(
    target: Target,
    raw: bytes,
    descriptor: Descriptor,
    tag: str | None,
    notify: Notify,
    *,
    on_listing: Callable[[Digest], None] = _ignore_listing,
) -> None:
    """Push a manifest. If the manifest has a subject, ensure that the registry lists the manifest as a referrer."""
    listed_under = target.put(raw, descriptor, tag=tag)
    notify(ContentAdvanced(descriptor, len(raw), len(raw)))
    subject = _subject(raw, descriptor)
    if subject is not None and listed_under is None:
        on_listing(subject.digest)
        target.list_referrer(subject.digest, referrers.make_entry(raw, descriptor, at=str(descriptor)))


def _subject(raw: bytes, descriptor: Descriptor) -> Descriptor | None:
    return manifest.subject(raw, descriptor.media_type, at=str(descriptor))


def _open_writer(store: ContentStore, descriptor: Descriptor, pause: Callable[[float], None]) -> Writer | None:
    """Return a writer for the content, or None if the store has the content, perhaps from another writer."""
    longest = _FIRST_PAUSE_S
    while not _is_there(store, descriptor):
        try:
            return store.writer(make_ref(descriptor), expected=descriptor.digest, total=descriptor.size)
        except AlreadyExists:
            continue
        except Busy:
            pause(random.uniform(0, longest))  # noqa: S311 - spreads waiters, hides nothing
            longest = min(2 * longest, _LONGEST_PAUSE_S)
    return None


def _is_there(store: ContentStore, descriptor: Descriptor) -> bool:
    """Return whether the content is in the store and stays: the root is leased, so gc keeps content found in `exclude_gc`."""
    if not store.holds(descriptor):
        return False
    with store.exclude_gc():
        return store.holds(descriptor)


def _fill(writer: Writer, source: Source, descriptor: Descriptor, notify: Notify) -> int:
    """Write the missing bytes. Return the number of transferred bytes."""
    if descriptor.data is not None:
        writer.truncate()
        writer.write(descriptor.data)
        return 0
    started = writer.offset
    notify(ContentAdvanced(descriptor, started, 0))
    if started < descriptor.size:
        for piece in source.fetch(descriptor, offset=started):
            writer.write(piece)
            notify(ContentAdvanced(descriptor, writer.offset, len(piece)))
    return writer.offset - started
