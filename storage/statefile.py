"""Small files that several processes change, such as `index.json` or the lock file of a mirror, without losing a change.

On a disk, a change is made under a lock. On an object store, a change is a conditional write, which is repeated if another
process has changed the object meanwhile. If neither is possible, the last writer wins, and a warning is logged once.
"""

import random
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import Unavailable
from prefect_dist.storage.backend import Backend, open_backend

_PATIENCE_S = 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0


class StateFile:
    """The file at `url`. `options` are fsspec's options for its location."""

    def __init__(self, url: str, *, options: Mapping[str, Any] | None = None) -> None:
        self.url = url
        place, _, self._name = url.rpartition("/")
        self._backend, _, layout = open_backend(place or "/", options or {})
        self._path = f"{layout.root}/{self._name}"

    def read(self) -> bytes | None:
        """Return the content; None if the file is missing.

        Raises:
            Denied, Unavailable: the file system.
        """
        with self._backend.translate_errors(self.url):
            return self._backend.read_versioned(self._path)[0]

    def change(self, make_content: Callable[[bytes | None], bytes]) -> None:
        """Replace the content by the result of `make_content`; see `change_file`.

        Raises:
            StoreFull, Denied, Unavailable: the file system.
            DistError: see `make_content`.
        """
        change_file(self._backend, self._path, make_content, what=self.url)

    def write(self, content: bytes) -> None:
        """Replace the content.

        Raises:
            StoreFull, Denied, Unavailable: the file system.
        """
        with self._backend.translate_errors(self.url):
            self._backend.put(self._path, content)


def change_file(backend: Backend, path: str, make_content: Callable[[bytes | None], bytes], *, what: str) -> None:
    """Replace the content of a file by the result of `make_content`, which gets the old content, or None for a missing file.

    After a conflict with another writer, `make_content` is called again with the new content.

    Raises:
        StoreFull, Denied, Unavailable: the file system, or conflicts with other writers for a minute.
        DistError: see `make_content`.
    """
    deadline, pause = time.monotonic() + _PATIENCE_S, _FIRST_PAUSE_S
    while not _try_change(backend, path, make_content, what):
        if time.monotonic() > deadline:
            raise Unavailable(f"other processes kept changing the file for {_PATIENCE_S:.0f} s; run again later", subject=what)
        time.sleep(random.uniform(0, pause))  # noqa: S311 - not for cryptography
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def _try_change(backend: Backend, path: str, make_content: Callable[[bytes | None], bytes], what: str) -> bool:
    """Return False after a conflict with another process."""
    with ExitStack() as held:
        with backend.translate_errors(what):
            held.enter_context(backend.hold_lock(f"{path}.lock", shared=False, make=True))
            content, version = backend.read_versioned(path)
        old, before = [content], None if content is None else Digest.of(content)
        del content
        new = make_content(old.pop())  # without a reference here, `make_content` can free the old content of a large file
        if Digest.of(new) == before:
            return True
        with backend.translate_errors(what):
            return backend.replace(path, new, version)
