"""Verification: whether blobs still are what their names say. What is not is taken out of sight, never deleted."""

from collections.abc import Iterable
from dataclasses import dataclass

from ocispec import Digest
from ocispec.errors import Corrupt, NotFound
from storage.store import ContentStore, Info


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Verified:
    """What became of some blobs: how many are sound, which bytes were read for that, and which blobs are in quarantine now."""

    sound: int
    size: int
    corrupt: tuple[Digest, ...]


def verify(store: ContentStore, blobs: Iterable[Info]) -> Verified:
    """Hash blobs anew, and put those that are corrupt into quarantine. One that is gone meanwhile counts for nothing.

    Raises:
        Denied, Unavailable: the store.
    """
    sound = size = 0
    corrupt = []
    for info in blobs:
        try:
            for _ in store.chunks(info.digest):
                pass
        except NotFound:
            continue
        except Corrupt:
            if store.quarantine(info):
                corrupt.append(info.digest)
            continue
        sound += 1
        size += info.size
    return Verified(sound=sound, size=size, corrupt=tuple(corrupt))
