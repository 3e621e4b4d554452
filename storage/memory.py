"""Conditional writes to fsspec's file system in memory, for tests and trials of one process."""

import threading
from typing import Any

from prefect_dist.ocispec import Digest

_GUARD = threading.Lock()


class MemoryConditionalWrites:
    """Conditional writes under a lock of this process; see `storage.objects.ConditionalWrites`."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def read(self, path: str) -> tuple[bytes, str]:
        """Return the content of an object and its version."""
        content: bytes = self._fs.cat_file(path)
        return content, str(Digest.of(content))

    def write(self, path: str, data: bytes, version: str | None) -> bool:
        """Write an object if it still has this version, or with None only if there is none."""
        with _GUARD:
            try:
                found = self.read(path)[1]
            except FileNotFoundError:
                found = None
            if found != version:
                return False
            self._fs.pipe_file(path, data)
            return True
