"""A document as an answer's body, such as a manifest: small, whole, and never in a coding."""

from collections.abc import Callable

import httpx

from prefect_dist.ocispec import manifest
from prefect_dist.ocispec.errors import Unsupported
from prefect_dist.remotes.errors import from_response, from_transport, refuse_coding
from prefect_dist.remotes.headers import length


def answered(
    response: httpx.Response, subject: str, *, limit: int = manifest.MAX_BYTES, check: Callable[[], None] | None = None
) -> bytes:
    """Return the body of an open answer, which has to be a 200, and close the answer.

    `check` is called after each piece of the body; its errors end the reading.

    Raises:
        RegistryError: it is not, see `remotes.errors.from_response`.
        Unsupported: it is bigger than `limit` bytes, or in a coding.
        Unavailable: it breaks off.
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
    """The error for a manifest of `size` bytes."""
    return Unsupported(f"{subject}: expected a manifest of at most {manifest.MAX_BYTES} bytes, it has {size}")


def _read(response: httpx.Response, subject: str, limit: int, check: Callable[[], None] | None) -> bytes:
    refuse_coding(subject, response)
    announced = length(response)
    if announced is not None and announced > limit:
        raise Unsupported(f"{subject}: expected at most {limit} bytes, the registry announces {announced}")
    raw = bytearray()
    for piece in response.iter_raw():
        raw += piece
        if len(raw) > limit:
            raise Unsupported(f"{subject}: expected at most {limit} bytes, the registry sends more")
        if check is not None:
            check()
    return bytes(raw)
