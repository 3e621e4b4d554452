"""Reads small documents, such as manifests and pages of a list, from responses, with a limit on their size."""

from collections.abc import Callable

import httpx

from prefect_dist.ocispec import manifest
from prefect_dist.ocispec.errors import Unsupported
from prefect_dist.remotes.errors import from_response, from_transport, refuse_coding
from prefect_dist.remotes.headers import length


def read_document(
    response: httpx.Response, subject: str, *, limit: int = manifest.MAX_BYTES, check: Callable[[], None] | None = None
) -> bytes:
    """Return the body of an open response with status 200, and close the response.

    `check` is called after each piece of the body; its errors end the reading.

    Raises:
        RegistryError: another status, see `remotes.errors.from_response`.
        Unsupported: the body has more than `limit` bytes, or a content coding.
        Unavailable: the body breaks off.
    """
    try:
        if response.status_code != httpx.codes.OK:
            raise from_response(subject, response)
        return _read(response, subject, limit, check)
    except httpx.RequestError as exc:
        raise from_transport(subject, exc) from exc
    finally:
        response.close()


def too_big(subject: str, size: str) -> Unsupported:
    """Return the error for a manifest of `size` bytes."""
    return Unsupported(f"expected a manifest of at most {manifest.MAX_BYTES} bytes, got {size}", subject=subject)


def _read(response: httpx.Response, subject: str, limit: int, check: Callable[[], None] | None) -> bytes:
    refuse_coding(subject, response)
    announced = length(response)
    if announced is not None and announced > limit:
        raise Unsupported(f"expected at most {limit} bytes, the registry announced {announced}", subject=subject)
    raw = bytearray()
    for piece in response.iter_raw():
        raw += piece
        if len(raw) > limit:
            raise Unsupported(f"expected at most {limit} bytes, the registry sent more", subject=subject)
        if check is not None:
            check()
    return bytes(raw)
