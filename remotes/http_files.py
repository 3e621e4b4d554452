"""The files of an image layout on a web server, read through the HTTP client of the registries."""

from collections.abc import Iterator

import httpx

from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.ocispec.errors import Unsupported
from prefect_dist.remotes import body, document
from prefect_dist.remotes.errors import from_response
from prefect_dist.remotes.headers import length
from prefect_dist.remotes.ranges import Ranges
from prefect_dist.remotes.repository import Repository

_ANY = {"Accept": "*/*"}


class HttpFiles:
    """The files of a layout on a web server. Thread-safe. The registries own the connections."""

    def __init__(self, server: tuple[Repository, Ranges], *, at: str) -> None:
        self.at = at
        self._server, self._ranges = server

    def read_document(self, path: str) -> bytes:
        """Return a small file."""
        subject = f"{self.at}: {path}"
        response = self._server.send_read("GET", path, subject=subject, headers=_ANY)
        return document.read_document(response, subject)

    def size(self, digest: Digest) -> int:
        """Return the size of a blob in bytes."""
        subject = f"{self.at}: blob {digest}"
        response = self._server.send_read("HEAD", _path(digest), subject=subject, headers=_ANY)
        response.close()
        if response.status_code != httpx.codes.OK:
            raise from_response(subject, response)
        size = length(response)
        if size is None:
            raise Unsupported("the server reports no size for this blob (no Content-Length)", subject=subject)
        return size

    def read(self, descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        """Yield the bytes of a blob from `offset` on, unverified."""
        subject = f"{descriptor} from {self.at}"

        def send(byte_range: str | None) -> httpx.Response:
            headers = _ANY | ({"Range": byte_range} if byte_range else {})
            response = self._server.send_read("GET", _path(descriptor.digest), subject=subject, headers=headers)
            if response.status_code in (body.ANSWERS_RANGED if byte_range else body.ANSWERS):
                return response
            try:
                raise from_response(subject, response)
            finally:
                response.close()

        server = httpx.URL(self._server.url).netloc.decode("ascii")
        return self._ranges.read(send, descriptor, offset=offset, subject=subject, server=server)

    def abort(self) -> None:
        """Do nothing: the registries abort all requests."""


def _path(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"
