"""A manifest as an answer's body: small, whole, and never in a coding."""

import httpx

from ocispec import manifest
from ocispec.errors import Unsupported
from remotes.errors import refuse_coding
from remotes.headers import length


def read(response: httpx.Response, subject: str) -> bytes:
    """The body of an open answer.

    Raises:
        Unsupported: it is bigger than manifests may be, or in a coding.
        httpx.RequestError: it breaks off.
    """
    refuse_coding(subject, response)
    announced = length(response)
    if announced is not None and announced > manifest.MAX_BYTES:
        raise too_big(subject, str(announced))
    raw = b""
    for piece in response.iter_raw():
        raw += piece
        if len(raw) > manifest.MAX_BYTES:
            raise too_big(subject, "more")
    return raw


def too_big(subject: str, size: str) -> Unsupported:
    """The error for a manifest of `size` bytes."""
    return Unsupported(f"{subject}: expected a manifest of at most {manifest.MAX_BYTES} bytes, it has {size}")
