"""Helpers of the tests of pushing: content to upload, and summaries of the requests."""

from collections.abc import Iterator

from prefect_dist.remotes import Registries
from prefect_dist.remotes.pusher import Pusher
from prefect_dist.remotes.sizes import CHUNK_BYTES, RegistrySizes
from tests.fakes.registry import FakeRegistry
from tests.remotes.asking import REPOSITORY, reference

CHUNK = 100_000
_PIECE = 7_000  # divides neither chunk nor blob


def pusher(registries: Registries, host: str | FakeRegistry, *, chunked: bool = True, chunk_bytes: int = CHUNK_BYTES) -> Pusher:
    named = reference(host, "")
    repository = registries._repository(named.host, named)
    return Pusher(repository, RegistrySizes(chunk_bytes=chunk_bytes, has_chunks=chunked))


class Reader:
    """Reads content from an offset, in pieces; records the requested offsets."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.offsets: list[int] = []

    def __call__(self, offset: int) -> Iterator[bytes]:
        self.offsets.append(offset)
        for start in range(offset, len(self._content), _PIECE):
            yield self._content[start : start + _PIECE]


def shape(registry: FakeRegistry) -> list[str]:
    """Methods of the requests, in order."""
    return [one.method for one in registry.requests]


def sent_ranges(registry: FakeRegistry) -> list[str]:
    """Content-Range of each chunk."""
    return [one.headers["content-range"] for one in registry.find_requests("PATCH", f"/v2/{REPOSITORY}/blobs/uploads/.*")]
