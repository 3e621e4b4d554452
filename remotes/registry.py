"""All registries of a run, through one HTTP client."""

import logging
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import httpx

from prefect_dist.ocispec import Digest, Reference
from prefect_dist.ocispec.errors import InvalidInput, quote_text
from prefect_dist.remotes.auth import HostAuth
from prefect_dist.remotes.credentials import Credentials, CredentialSource, RegistryLogin
from prefect_dist.remotes.errors import redact
from prefect_dist.remotes.fetcher import Fetcher
from prefect_dist.remotes.foreign import ForeignLayers
from prefect_dist.remotes.guard import GuardedOrigin
from prefect_dist.remotes.hosts import Hosts
from prefect_dist.remotes.listing import CATALOG_SCOPE, list_repositories
from prefect_dist.remotes.mirrors import MirroredSource
from prefect_dist.remotes.pusher import Pusher
from prefect_dist.remotes.ranges import Ranges
from prefect_dist.remotes.remote import Ability, Remote, Source
from prefect_dist.remotes.repository import Repository
from prefect_dist.remotes.sizes import RegistrySizes
from prefect_dist.remotes.throttled import OnThrottled, Quota, ThrottledTransport, ignore_pause
from prefect_dist.remotes.transport import Urllib3Transport

_log = logging.getLogger(__name__)
# A DNS name or an IP address, without brackets.
_HOST, _MAX_PORT = re.compile(r"[A-Za-z0-9._:-]+"), 65535
_DOCKER_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySettings:
    """Settings for all registries."""

    hosts: Hosts = field(default_factory=Hosts)
    connect_timeout_s: float = 30
    read_timeout_s: float = 60


class _NoCookies(httpx.Cookies):
    """Ignores cookies: registries need none, and httpx would send cookies to other ports and in later requests."""

    def extract_cookies(self, response: httpx.Response) -> None:
        """Store no cookie. Parsing the cookies of each response would take 5 % of the time of a request."""


class _Client(httpx.Client):
    cookies = _NoCookies()  # type: ignore[override]  # a property in httpx, with a jar behind it


class Registries(Remote):
    """All registries, through one client. Thread-safe; the owner closes it, or uses it in a `with` block.

    `ways` are hints how to give credentials, see `RegistryLogin`. `on_throttled` is called when requests to a registry pause.
    """

    abilities: frozenset[Ability] = frozenset({"tags", "repositories", "referrers", "push"})

    def __init__(
        self,
        settings: RegistrySettings,
        *,
        credentials: CredentialSource,
        ways: Sequence[str] = (),
        on_throttled: OnThrottled = ignore_pause,
    ) -> None:
        self._settings = settings
        self._credentials, self._ways = credentials, ways
        self._ranges = Ranges()
        self._foreign = ForeignLayers(self._ranges)
        self._repositories: dict[tuple[str, str], Repository] = {}
        self._pushers: dict[tuple[str, str], Pusher] = {}
        self._sizes: dict[str, RegistrySizes] = {}  # by host
        self._auth: dict[tuple[str, Credentials | None], HostAuth] = {}
        self._origins: dict[str, GuardedOrigin] = {}
        self._distrusted: set[Digest] = set()
        self._no_referrers_api: set[str] = set()
        self._guard = threading.Lock()
        self._transport = Urllib3Transport(
            hosts=settings.hosts, connect_timeout_s=settings.connect_timeout_s, read_timeout_s=settings.read_timeout_s
        )
        self._throttled = ThrottledTransport(self._transport, settings.hosts, on_throttled=on_throttled)
        self._client = _Client(
            transport=self._throttled,
            event_hooks={"response": [_log_response]},
            headers={"User-Agent": "prefect-dist", "Accept-Encoding": "identity"},
            follow_redirects=True,
        )

    def open_source(self, reference: Reference) -> Source:
        """Return a source for the reference's repository: its registry mirrors first, if there are any."""
        caches = [
            Fetcher(self._repository(host, reference), self._ranges, self._no_referrers_api, None)
            for host in self._settings.hosts.settings_for(reference.host).mirrors
        ]
        own = self.open_origin(reference)
        return MirroredSource([*caches, own], self._distrusted) if caches else own

    def open_origin(self, reference: Reference) -> Fetcher:
        """Return a fetcher for the reference's repository at the registry itself, without its mirrors."""
        return Fetcher(self._repository(reference.host, reference), self._ranges, self._no_referrers_api, self._foreign)

    def open_target(self, reference: Reference) -> Pusher:
        """Return the pusher for the reference's repository.

        Each repository has one pusher, shared by all callers: the pusher knows which interrupted uploads can resume.
        """
        key = (reference.host, reference.repository)
        repository = self._repository(reference.host, reference)
        return self._pushers.get(key) or self._pushers.setdefault(key, Pusher(repository, repository.sizes))

    def with_fallback_referrers(self) -> list[Reference]:
        """Return the repositories in which a pusher listed referrers under fallback tags."""
        pushers = list(self._pushers.items())
        return [Reference.parse(f"{host}/{repository}") for (host, repository), pusher in pushers if pusher.fallback_referrers]

    def list_repositories(self, host: str) -> Iterator[str]:
        """Yield the repositories of a registry `host[:port]`, each once, in the registry's order.

        Pages are requested as the caller reads on. Registry mirrors are not used.

        Raises:
            DistError: see `remotes.listing.list_repositories`; raised while iterating.
        """
        hosts = self._settings.hosts
        url, auth = f"{hosts.url(host)}/v2", self._auth_of(host, "")
        registry = Repository(
            self._client, auth, url=url, name="", locator=host, scope=CATALOG_SCOPE, origin=self._origin(host)
        )
        return list_repositories(registry, prefix=hosts.settings_for(host).path_prefix)

    def open_server(self, url: str) -> tuple[Repository, Ranges]:
        """Return the directory at a URL of a web server that is no registry, and the reader of its large files.

        The server gets the settings and the credentials of its own host only.

        Raises:
            InvalidInput: a bad URL, or plain http to a host for which neither its loopback address nor the settings allow it.
        """
        parsed = _parse_server(url)
        host = parsed.netloc.decode("ascii")
        if parsed.scheme == "http" and not self._settings.hosts.url(host).startswith("http://"):
            raise InvalidInput(
                f"URL {quote_text(url)}: plain http is allowed only on loopback addresses; use https://, "
                f"or set tls: disabled for {host} in the hosts file"
            )
        origin = GuardedOrigin(parsed, name=host, private_hosts=self._settings.hosts.settings_for(host).private_hosts)
        directory = Repository(self._client, self._auth_of(host, ""), url=url.rstrip("/"), name="", locator=host, origin=origin)
        return directory, self._ranges

    def _repository(self, host: str, reference: Reference) -> Repository:
        known = self._repositories.get((host, reference.repository))
        return known or self._repositories.setdefault((host, reference.repository), self._new_repository(host, reference))

    def _new_repository(self, host: str, reference: Reference) -> Repository:
        hosts = self._settings.hosts
        settings = hosts.settings_for(host)
        name = f"{settings.path_prefix}{reference.repository}"
        auth = self._auth_of(host, name)
        url, locator = f"{hosts.url(host)}/v2/{name}", f"{host}/{name}"
        return Repository(
            self._client,
            auth,
            url=url,
            name=name,
            locator=locator,
            unsupported=settings.avoid,
            origin=self._origin(host),
            sizes=self._sizes_of(host),
        )

    def _sizes_of(self, host: str) -> RegistrySizes:
        settings = self._settings.hosts.settings_for(host)
        made = RegistrySizes(
            chunk_bytes=settings.chunk_bytes,
            whole_bytes=settings.whole_bytes,
            has_chunks="chunked" not in settings.avoid and not _has_no_chunks(host),
        )
        return self._sizes.setdefault(host, made)

    def _origin(self, host: str) -> GuardedOrigin:
        hosts = self._settings.hosts
        made = GuardedOrigin(httpx.URL(hosts.url(host)), name=host, private_hosts=hosts.settings_for(host).private_hosts)
        return self._origins.setdefault(host, made)

    def _auth_of(self, host: str, name: str) -> HostAuth:
        credentials = self._credentials(host, name)  # no lock is held: this may run a credential helper
        with self._guard:
            for (known_host, _), known in self._auth.items():
                if known_host == host and known.login.credentials == credentials:
                    return known  # also if its credentials were renewed
            made = HostAuth(RegistryLogin(host=host, credentials=credentials, ways=self._ways))
            return self._auth.setdefault((host, credentials), made)

    def abort(self) -> None:
        """Abort the requests in flight and refuse later requests: both fail with Unavailable."""
        self._throttled.abort()
        self._transport.abort()

    def counts_pulls(self, host: str) -> bool:
        """Return True if the registry `host`, or a registry mirror of it, limits the number of GETs of manifests."""
        servers = {host, *self._settings.hosts.settings_for(host).mirrors}
        return not servers.isdisjoint(_DOCKER_HUB) or not servers.isdisjoint(self.quotas())

    def quotas(self) -> dict[str, Quota]:
        """Return the last reported request quota of each registry, by host as written in references."""
        return {self._settings.hosts.name_of(server): quota for server, quota in self._throttled.quotas().items()}

    def close(self) -> None:
        """Close the connections, after waiting for requests in flight; `abort` first to stop them."""
        self._ranges.close()
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _has_no_chunks(host: str) -> bool:
    """Return True for Google's registries, which document that they accept no chunked uploads."""
    return host == "gcr.io" or host.endswith((".gcr.io", "-docker.pkg.dev"))


def _parse_server(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as exc:
        raise InvalidInput(f"URL {quote_text(url)}: {exc}") from exc
    if not _HOST.fullmatch(parsed.raw_host.decode("ascii")) or (parsed.port or 0) > _MAX_PORT:
        raise InvalidInput(f"URL {quote_text(url)}: bad host or port")
    return parsed


def _log_response(response: httpx.Response) -> None:
    """Log one line for each response, also of redirects and token servers."""
    if _log.isEnabledFor(logging.DEBUG):  # redacting a URL costs as much as hashing a small blob
        _log.debug("%s %s: %d", response.request.method, redact(response.request.url), response.status_code)
