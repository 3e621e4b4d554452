"""All registries that a run talks to, through one client.

text → Reference → Registries.resolve → (name, descriptor, fetcher) → fetcher.fetch(descriptor) → bytes
"""

import http.cookiejar
import logging
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx

from ocispec import Descriptor, Reference
from remotes.auth import HostAuth
from remotes.credentials import Credentials
from remotes.errors import redact
from remotes.fetcher import Fetcher
from remotes.hosts import base_url
from remotes.repository import Repository
from remotes.transport import Urllib3Transport

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySettings:
    """How registries are reached. `plain_http` is for hosts other than loopback ones, which always are."""

    plain_http: bool = False
    connect_timeout_s: float = 30
    read_timeout_s: float = 60


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a reference stands for: the name to record, the root of its content, and where to fetch that."""

    name: str
    descriptor: Descriptor
    fetcher: Fetcher


class Registries:
    """All registries, through one client. Thread-safe; close it, or use it in a `with` block."""

    def __init__(self, settings: RegistrySettings, *, credentials: Callable[[str], Credentials | None]) -> None:
        self._settings = settings
        self._credentials = credentials
        self._hosts: dict[str, HostAuth] = {}
        self._guard = threading.Lock()
        self._transport = Urllib3Transport(
            verify=ssl.create_default_context(),
            connect_timeout_s=settings.connect_timeout_s,
            read_timeout_s=settings.read_timeout_s,
        )
        self._client = httpx.Client(
            transport=self._transport,
            event_hooks={"response": [_log_response]},
            headers={"User-Agent": "prefect-dist", "Accept-Encoding": "identity"},
            # Cookies ignore ports and outlive a request: a registry needs none, and none is taken.
            cookies=http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[])),
            follow_redirects=True,
        )

    def resolve(self, reference: Reference, *, media_type: str | None = None) -> Resolved:
        """The root of what `reference` names. A `media_type` hints at which of several forms of it is meant.

        Raises:
            InvalidInput: neither tag nor digest, a bad digest, or the registry answers with something that is no manifest.
            NotFound, Denied, Unavailable, Unsupported, Corrupt: what the registry says, see `remotes.errors`.
        """
        fetcher = self.fetcher(reference)
        return Resolved(str(reference), fetcher.resolve(reference, media_type=media_type), fetcher)

    def fetcher(self, reference: Reference) -> Fetcher:
        """Access to the content of the reference's repository."""
        with self._guard:
            if reference.host not in self._hosts:
                self._hosts[reference.host] = HostAuth(reference.host, self._credentials(reference.host))
            host = self._hosts[reference.host]
        base = base_url(reference.host, plain_http=self._settings.plain_http)
        url, name = f"{base}/v2/{reference.repository}", reference.repository
        return Fetcher(Repository(self._client, host, url=url, name=name, locator=reference.locator))

    def abort(self) -> None:
        """Break off whatever is under way: it fails with Unavailable, and so does all that follows."""
        self._transport.abort()

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _log_response(response: httpx.Response) -> None:
    """One line for each answer, those of redirects and token servers included."""
    if _log.isEnabledFor(logging.DEBUG):  # to make a URL fit to be shown costs as much as hashing a small blob
        _log.debug("%s %s: %d", response.request.method, redact(response.request.url), response.status_code)
