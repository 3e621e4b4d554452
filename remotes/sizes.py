"""Accepted sizes of one registry, learned during a run: of upload requests, and of pages of a list."""

import threading
from dataclasses import dataclass

_MIB = 1024 * 1024
# An interruption costs at most one chunk, and each chunk costs a round trip. Proxies limit the size of requests: Cloudflare to
# 100 MB, Azure Container Registry to about 20 MB.
CHUNK_BYTES = 64 * _MIB
_SMALLER_CHUNKS = (16 * _MIB, 4 * _MIB)
# Names per page that are requested. A registry may return more or fewer: the CNCF registry 2.8 returns all tags.
PAGE_NAMES = 1000
# Quay answers 413 to a larger number, and does not report its limit.
SMALL_PAGE_NAMES = 100


@dataclass(frozen=True, slots=True)
class UploadSize:
    """The upload limits: one request for blobs up to `whole_bytes`, chunks of `chunk_bytes` for larger blobs.

    None: any blob is uploaded in one request.
    """

    chunk_bytes: int | None
    whole_bytes: int | None


class RegistrySizes:
    """The sizes of one registry. Thread-safe; shared by the requests of a run to the registry.

    `chunk_bytes` and `whole_bytes` are the user's settings: the size of a chunk, and the limit for uploads in one request (-1:
    no limit). `has_chunks` is False for a registry without chunked uploads.
    """

    def __init__(self, *, chunk_bytes: int | None = None, whole_bytes: int | None = None, has_chunks: bool = True) -> None:
        chunk = chunk_bytes or CHUNK_BYTES
        whole = None if whole_bytes == -1 else whole_bytes or chunk
        self._upload = UploadSize(chunk, whole) if has_chunks else UploadSize(None, None)
        self._guard = threading.Lock()
        self.page_names: int | None = PAGE_NAMES
        """Names per page that are requested; None: the registry decides. Only ever lowered."""

    @property
    def upload(self) -> UploadSize:
        """The present upload limits."""
        return self._upload

    @property
    def smallest_chunk_bytes(self) -> int | None:
        """The smallest size of a chunk; None without chunks."""
        chunk = self._upload.chunk_bytes
        return None if chunk is None else min(chunk, *_SMALLER_CHUNKS)

    def lower(self, refused: int) -> bool:
        """Use smaller requests after a request of `refused` bytes was too large; return False if there is no smaller size."""
        with self._guard:
            chunk = self._upload.chunk_bytes
            smaller = [] if chunk is None else [size for size in (chunk, *_SMALLER_CHUNKS) if size < refused and size <= chunk]
            if not smaller:
                return False
            self._upload = UploadSize(max(smaller), max(smaller))
            return True

    def avoid_chunks(self) -> None:
        """Upload every blob in one request: the registry rejected a chunk, and accepted the whole blob."""
        with self._guard:
            self._upload = UploadSize(None, None)
