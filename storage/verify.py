"""Verification: hashes blobs again and moves corrupt blobs to quarantine. No blob is deleted."""

from collections.abc import Iterable
from dataclasses import dataclass

from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import Corrupt, NotFound
from prefect_dist.storage.store import ContentStore, Info


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Verified:
    """The result of a verification: the number of sound blobs, their size in bytes, and the digests of quarantined blobs."""

    sound: int
    size: int
    corrupt: tuple[Digest, ...]


def verify(store: ContentStore, blobs: Iterable[Info]) -> Verified:
    """Hash blobs and move corrupt blobs to quarantine. Blobs that were removed meanwhile are not counted.

    Raises:
        Denied, Unavailable: the store.
    """
    sound = size = 0
    corrupt = []
    for info in blobs:
        is_sound = _is_sound(store, info)
        if is_sound:
            sound += 1
            size += info.size
        elif is_sound is not None:
            corrupt.append(info.digest)
    return Verified(sound=sound, size=size, corrupt=tuple(corrupt))


def _is_sound(store: ContentStore, info: Info) -> bool | None:
    """Return True for a sound blob, False for a blob that was moved to quarantine, None for a blob that was removed."""
    while True:
        try:
            for _ in store.chunks(info.digest):
                pass
        except NotFound:
            return None
        except Corrupt:
            if store.quarantine(info):
                return False
        else:
            return True
        try:
            info = store.info(info.digest)  # the blob was replaced or touched meanwhile: hash it again
        except NotFound:
            return None
