"""Content that its registry does not have, at the `urls` of its descriptor (image-spec 1.1, descriptor.md): foreign layers.

They are whatever the author of a manifest wrote. The digest proves what comes from there, so http will do; who asks proves
nothing about himself, and asks at public addresses alone (`remotes.public`), lest others have him ask on their behalf.
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

# Of a descriptor's urls so many are asked: who writes thousands wants others to be asked, not content to be found.
MAX_URLS = 5
# In a message that has room for what each of them answered.
_URL_CHARS = 200
_SCHEMES = ("http", "https")


class ForeignLayers:
    """Reads content at the urls of its descriptor, in their order. Thread-safe; shared by all that read in a run."""

    def __init__(self, ranges: Ranges) -> None:
        self._ranges = ranges
        self._gave: dict[Digest, str] = {}
        self._wrong: set[tuple[Digest, str]] = set()

    def read(self, repository: Repository, descriptor: Descriptor, *, offset: int, missing: RegistryError) -> Iterator[bytes]:
        """The bytes of `descriptor` from `offset` to its size, unverified; where one url breaks off, the next goes on.

        `missing` is what the registry said.

        Raises:
            DistError: no url has it. The message tells what the registry and each of them said, its class what can be done:
                the error that may pass if there is one, else a refusal, else `missing`.
        """
        errors: list[DistError] = []
        for text in self._order_urls(descriptor):
            try:
                url = parse(text)
                send = partial(_send, repository, url)
                server = _server(url)
                for piece in self._ranges.read(send, descriptor, offset=offset, subject=server, server=server):
                    self._gave[descriptor.digest] = text
                    offset += len(piece)
                    yield piece
            except DistError as exc:
                errors.append(exc)
            else:
                return
        raise _combine_errors(missing, errors, more=len(descriptor.urls) - len(errors))

    def distrust(self, digest: Digest) -> None:
        """Note that the received bytes were wrong: the last URL used is tried after the others from now on."""
        if (text := self._gave.pop(digest, None)) is not None:
            self._wrong.add((digest, text))

    def _order_urls(self, descriptor: Descriptor) -> list[str]:
        return sorted(descriptor.urls[:MAX_URLS], key=lambda text: (descriptor.digest, text) in self._wrong)


def _send(repository: Repository, url: httpx.URL, byte_range: str | None) -> httpx.Response:
    """An open response with content, as `remotes.body` takes it."""
    headers = {"Accept": "*/*"} | ({"Range": byte_range} if byte_range else {})
    response = repository.get_foreign_url(url, subject=_server(url), headers=headers)
    if response.status_code in (ANSWERS_RANGED if byte_range else ANSWERS):
        return response
    try:
        raise from_response(_server(url), response)
    finally:
        response.close()


def parse(text: str) -> httpx.URL:
    """One of a descriptor's urls, as it may be asked.

    Raises:
        InvalidInput: it is none, not http or https, or has a user or password in it.
    """
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as exc:  # a lone surrogate is nothing that can be encoded
        raise InvalidInput(f"a url that is none ({one_line(str(exc))})") from exc
    if url.scheme not in _SCHEMES or not url.host:
        raise InvalidInput(f"{redact(url)[:_URL_CHARS]}: expected http or https, not asked")
    if url.userinfo:
        raise InvalidInput(f"{redact(url)[:_URL_CHARS]}: has a user or password, not asked")
    return url


def _combine_errors(missing: RegistryError, errors: Sequence[DistError], *, more: int) -> DistError:
    told = "; ".join([_answer(error)[:ANSWER_CHARS] for error in errors] + ([f"{more} more, not asked"] if more else []))
    chosen = max([missing, *errors], key=lambda error: (error.retryable, isinstance(error, Denied)))
    message = f"{missing}; nor is it at its urls: {told}"
    return with_message(chosen, message)


def _answer(error: DistError) -> str:
    """Return the answer of a URL, without the meaning that the status has for registries."""
    if not isinstance(error, RegistryError):
        return str(error)
    of = error.exchange
    return f"{of.url[:_URL_CHARS]}: {of.answer}"


def _server(url: httpx.URL) -> str:
    """Return the server of a URL for messages; the full URL follows where it matters."""
    return url.netloc.decode("ascii")
