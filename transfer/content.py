"""Transfers content between a remote and the store, and verifies it.

Whether anything has to be done is the store's to say: what exists is not asked for, what is partly there is gone on with.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from prefect_dist.ocispec import Descriptor, manifest, referrers
from prefect_dist.ocispec.errors import AlreadyExists, Busy, Corrupt, InvalidInput
from prefect_dist.remotes import Pusher, Source
from prefect_dist.storage import ContentStore, Writer
from prefect_dist.transfer.events import ContentAdvanced, Notify

# A second transfer of the same content waits for the first one: with a growing, random pause between looks (containerd's
# OpenWriter does the same), since nothing tells it when a writer in another process ends.
_FIRST_PAUSE_S = 0.016
_LONGEST_PAUSE_S = 2.0


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Receipt:
    """How content came to be where it was wanted; `transferred` counts the bytes of this attempt."""

    status: Literal["fetched", "pushed", "mounted", "existed"]
    transferred: int = 0
    seconds: float = 0.0

    def with_more(self, other: "Receipt") -> "Receipt":
        """Return the receipt after more bytes were transferred for the same content."""
        status = self.status if other.status == "existed" else other.status
        return Receipt(status, self.transferred + other.transferred, self.seconds + other.seconds)


def fetch(
    store: ContentStore,
    source: Source,
    descriptor: Descriptor,
    *,
    notify: Notify,
    pause: Callable[[float], None] = time.sleep,
) -> Receipt:
    """Fetch the content of `descriptor` into the store, verified.

    Raises:
        Corrupt: the bytes are not those announced; none of them are kept, the next attempt starts at 0.
        DistError: whatever remote or store raise; what has arrived is kept and gone on with.
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
            writer.truncate()  # which of the bytes are wrong is not known, so the next attempt needs all of them
            source.distrust(descriptor)
            raise
    return Receipt("fetched", transferred, time.monotonic() - started)


def push(
    store: ContentStore,
    target: Pusher,
    descriptor: Descriptor,
    *,
    source: str | None = None,
    tag: str | None = None,
    notify: Notify,
) -> Receipt:
    """Push the content of `descriptor` from the store to a repository, whose registry verifies it.

    A blob is mounted from the `source` repository of the same registry, or from wherever that knows it, if it can be. A
    manifest's children have to be there; with a `tag`, that is set where it stands for something else.

    Raises:
        NotFound: it is not in the store.
        Corrupt: the registry says that these are other bytes.
        DistError: whatever store or remote raise; an upload that broke off is gone on with by the next one of this run.
    """
    started = time.monotonic()
    there = target.has(descriptor, tag=tag)
    if descriptor.is_manifest:
        raw = store.manifest(descriptor)
        # With a subject it is put although it is there: only the answer says whether the registry lists it by itself, and a run
        # that was ended between the one and the other has left it unlisted.
        if there and _subject(raw, descriptor) is None:
            return Receipt("existed", seconds=time.monotonic() - started)
        _put(target, raw, descriptor, tag, notify)
        return Receipt("existed" if there else "pushed", len(raw), time.monotonic() - started)
    if there:
        return Receipt("existed", seconds=time.monotonic() - started)
    if target.mount(descriptor, source=source):
        return Receipt("mounted", seconds=time.monotonic() - started)
    sent = 0

    def advanced(offset: int, gained: int) -> None:
        nonlocal sent
        sent += gained
        notify(ContentAdvanced(descriptor, offset, gained))

    try:
        target.upload(descriptor, lambda offset: store.chunks(descriptor.digest, offset=offset), observer=advanced)
    except InvalidInput:
        for _ in store.chunks(descriptor.digest):  # if the registry refuses what is not the blob at all, that is said instead
            pass
        raise
    return Receipt("pushed", sent, time.monotonic() - started)


def put(store: ContentStore, target: Pusher, descriptor: Descriptor, *, tag: str | None = None, notify: Notify) -> Receipt:
    """Push a manifest to a repository that has its children, even if it exists there; set the `tag` if there is one.

    Raises:
        DistError: whatever store or remote raise.
    """
    started = time.monotonic()
    raw = store.manifest(descriptor)
    _put(target, raw, descriptor, tag, notify)
    return Receipt("pushed", len(raw), time.monotonic() - started)


def _put(target: Pusher, raw: bytes, descriptor: Descriptor, tag: str | None, notify: Notify) -> None:
    """Push a manifest. If it has a subject, ensure that the registry lists it as a referrer."""
    listed_under = target.put(raw, descriptor, tag=tag)
    notify(ContentAdvanced(descriptor, len(raw), len(raw)))
    subject = _subject(raw, descriptor)
    if subject is not None and listed_under is None:
        target.list_referrer(subject.digest, referrers.make_entry(raw, descriptor, at=str(descriptor)))


def _subject(raw: bytes, descriptor: Descriptor) -> Descriptor | None:
    return manifest.subject(raw, descriptor.media_type, at=str(descriptor))


def _open_writer(store: ContentStore, descriptor: Descriptor, pause: Callable[[float], None]) -> Writer | None:
    """Return a writer for the content; None if the store has it, also if another writer just completed it."""
    longest = _FIRST_PAUSE_S
    while not _is_there(store, descriptor):
        try:
            return store.writer(_ref(descriptor), expected=descriptor.digest, total=descriptor.size)
        except AlreadyExists:
            continue
        except Busy:
            pause(random.uniform(0, longest))  # noqa: S311 - spreads waiters, hides nothing
            longest = min(2 * longest, _LONGEST_PAUSE_S)
    return None


def _is_there(store: ContentStore, descriptor: Descriptor) -> bool:
    """Return whether the content is there and stays: its root is leased, so gc keeps what is found in `exclude_gc`."""
    if not store.holds(descriptor):
        return False
    with store.exclude_gc():
        return store.holds(descriptor)


def _fill(writer: Writer, source: Source, descriptor: Descriptor, notify: Notify) -> int:
    """Write the missing bytes. Return the number of bytes that were transferred."""
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


def _ref(descriptor: Descriptor) -> str:
    """Return the key of the ingest of a descriptor. It depends on the content only, so all processes share the ingest."""
    return f"{descriptor.kind}-{descriptor.digest}"
