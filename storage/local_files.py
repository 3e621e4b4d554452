"""fsspec's local file system, with fewer system calls and less work for each path.

A run with many small blobs looks up and reads thousands of small files from many threads. Each system call can cost a thread
switch (docs/explanation/performance.md).
"""

import os
from typing import Any

from fsspec.implementations.local import LocalFileSystem


class LocalFiles(LocalFileSystem):  # type: ignore[misc]
    """The local file system, for paths without protocol."""

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        """Return an absolute path unchanged. fsspec calls this method for each path, and compares each known protocol."""
        if isinstance(path, str) and path.startswith("/") and not path.endswith("/"):
            return path
        return super()._strip_protocol(path)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_options: Any) -> bytes:
        """Return the bytes of a file from `start` to `end`, with four system calls. fsspec needs nine."""
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            offset = start or 0
            left = (os.fstat(file).st_size if end is None else end) - offset
            pieces = list[bytes]()
            while left > 0 and (piece := os.pread(file, left, offset)):
                pieces.append(piece)
                offset, left = offset + len(piece), left - len(piece)
        finally:
            os.close(file)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
