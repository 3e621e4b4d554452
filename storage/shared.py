"""Small files that several processes change: each change is made to what the others wrote before, and none is lost.

On a disk a change is made under a lock. On an object store it is written on the condition that the object is still the one that
was read, and made again if not. Where neither is possible the last writer wins, which is reported once.
"""

import random
import time
from collections.abc import Callable
from contextlib import ExitStack

from prefect_dist.ocispec.errors import Unavailable
from prefect_dist.storage.backend import Backend

_PATIENCE_S = 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0


def change(backend: Backend, path: str, changed: Callable[[bytes | None], bytes], *, what: str) -> None:
    """Replace the content of a file by what `changed` makes of it; `changed` may be called again after a conflict.

    Raises:
        StoreFull, Denied, Unavailable: the file system, or other writers for a minute; or what `changed` raises.
    """
    deadline, pause = time.monotonic() + _PATIENCE_S, _FIRST_PAUSE_S
    while not _is_changed(backend, path, changed, what):
        if time.monotonic() > deadline:
            raise Unavailable(f"{what}: other processes change it all the time; run again later")
        time.sleep(random.uniform(0, pause))  # noqa: S311 - spreads writers, hides nothing
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def _is_changed(backend: Backend, path: str, changed: Callable[[bytes | None], bytes], what: str) -> bool:
    """Try once; return False if another process changed the file meanwhile."""
    with ExitStack() as held:
        with backend.translated(what):
            held.enter_context(backend.locked(f"{path}.lock", shared=False, make=True))
            content, version = backend.versioned(path)
        new = changed(content)
        if new == content:
            return True
        with backend.translated(what):
            return backend.replace(path, new, version)
