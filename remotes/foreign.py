"""Non-distributable layers: blobs missing at their registry, fetched from the URLs in their descriptor.

The author of a manifest chooses the URLs (`urls`, image-spec 1.1, descriptor.md). The digest proves the content, so plain http
is acceptable. Requests have no credentials, and go only to public addresses or to servers in the hosts file (`remotes.guard`):
otherwise a manifest could make this machine send requests into its private network.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import httpx

from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.ocispec.errors import Denied, DistError, InvalidInput
from prefect_dist.remotes.body import ANSWERS, ANSWERS_RANGED
from prefect_dist.remotes.errors import ANSWER_CHARS, RegistryError, from_response, one_line, redact, with_message
from prefect_dist.remotes.ranges import Ranges
from prefect_dist.remotes.repository import Repository

# The number of URLs that are tried. A manifest with thousands of URLs would make this machine flood other servers.
MAX_URLS = 5
# Short enough for a message with the answer of each URL.
_URL_CHARS = 200
_SCHEMES = ("http", "https")


class ForeignLayers:
    """Reads blobs from the URLs of the descriptor, in order. Thread-safe; shared by the fetchers of a run."""

    def __init__(self, ranges: Ranges) -> None:
        self._ranges = ranges
        self._last_url: dict[Digest, str] = {}
        self._wrong: set[tuple[Digest, str]] = set()

    def read(self, repository: Repository, descriptor: Descriptor, *, offset: int, missing: RegistryError) -> Iterator[bytes]:
        """Yield the bytes of `descriptor` from `offset` to its size, unverified.

        If a URL fails in the middle, the next URL resumes at the same byte. `missing` is the 404 of the registry.

        Raises:
            DistError: no URL has the content. The message has the answers of the registry and of each URL. The class is the
                class of a retryable error if any, else Denied if any error is Denied, else the class of `missing`.
        """
        errors: list[DistError] = []
        for text in self._order_urls(descriptor):
            try:
                url = parse(text)
                send = partial(_send, repository, url)
                server = _server(url)
                for piece in self._ranges.read(send, descriptor, offset=offset, subject=server, server=server):
                    self._last_url[descriptor.digest] = text
                    offset += len(piece)
                    yield piece
            except DistError as exc:
                errors.append(exc)
            else:
                return
        raise _combine_errors(missing, errors, more=len(descriptor.urls) - len(errors))

    def distrust(self, digest: Digest) -> None:
        """Note that the received bytes were wrong: from now on the last URL is tried after the others."""
        if (text := self._last_url.pop(digest, None)) is not None:
            self._wrong.add((digest, text))

    def _order_urls(self, descriptor: Descriptor) -> list[str]:
        return sorted(descriptor.urls[:MAX_URLS], key=lambda text: (descriptor.digest, text) in self._wrong)


def _send(repository: Repository, url: httpx.URL, byte_range: str | None) -> httpx.Response:
    """Return an open response with content, as `remotes.body` expects it."""
    headers = {"Accept": "*/*"} | ({"Range": byte_range} if byte_range else {})
    response = repository.get_foreign_url(url, subject=_server(url), headers=headers)
    if response.status_code in (ANSWERS_RANGED if byte_range else ANSWERS):
        return response
    try:
        raise from_response(_server(url), response)
    finally:
        response.close()


def parse(text: str) -> httpx.URL:
    """Return a URL of a descriptor, checked.

    Raises:
        InvalidInput: not an http or https URL, or with a user or password.
    """
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as exc:  # ValueError: a lone surrogate cannot be encoded
        raise InvalidInput(f"invalid URL ({one_line(str(exc))})") from exc
    if url.scheme not in _SCHEMES or not url.host:
        raise InvalidInput("expected http or https; not requested", subject=redact(url)[:_URL_CHARS])
    if url.userinfo:
        raise InvalidInput("contains a user or password; not requested", subject=redact(url)[:_URL_CHARS])
    return url


def _combine_errors(missing: RegistryError, errors: Sequence[DistError], *, more: int) -> DistError:
    answers = "; ".join([_answer(error)[:ANSWER_CHARS] for error in errors] + ([f"{more} more, not requested"] if more else []))
    chosen = max([missing, *errors], key=lambda error: (error.retryable, isinstance(error, Denied)))
    return with_message(chosen, f"{missing.message}; its URLs failed, too: {answers}", subject=missing.subject)


def _answer(error: DistError) -> str:
    """Answer of a URL, without the meaning of the status for registries."""
    if not isinstance(error, RegistryError):
        return str(error)
    return f"{error.exchange.url[:_URL_CHARS]}: {error.exchange.answer}"


def _server(url: httpx.URL) -> str:
    """Server of a URL, for messages that contain the full URL elsewhere."""
    return url.netloc.decode("ascii")
