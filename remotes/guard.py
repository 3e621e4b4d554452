"""Guards against server-side request forgery: for redirects, other URLs of a registry, and `urls` of descriptors.

A server on the Internet could otherwise have this machine send requests to systems that only this machine reaches, such as a
cloud's metadata service (server-side request forgery, CWE-918). A registry inside a private network may name other servers of
that network, because object storage often is one of them.
"""

from collections.abc import Mapping
from types import MappingProxyType

import httpx

from prefect_dist.remotes.public import PUBLIC_ONLY, AddressRefused, AddressRule, FixedRule, Kind

GUARD = "dist.guard"
"""Extension of a request: its `Guard`. httpx copies it to the requests that follow redirects."""

_PORTS: Mapping[str, int] = MappingProxyType({"http": 80, "https": 443})
# A registry on this machine is often a tunnel into a private network. Link-local addresses hold metadata services.
_ALLOWED_KINDS: Mapping[Kind, frozenset[Kind]] = MappingProxyType(
    {
        "public": PUBLIC_ONLY,
        "private": frozenset({"public", "private"}),
        "loopback": frozenset({"public", "private", "loopback"}),
        "link-local": frozenset({"public", "private", "link-local"}),
        "reserved": PUBLIC_ONLY,
    }
)


class GuardedOrigin:
    """The origin registry, and the kinds of addresses from which it answered. Thread-safe: state changes are atomic.

    `private_hosts` are servers, `host` or `host:port`, that it may name at any address. As an `AddressRule` it is the rule for
    connections to its own server.
    """

    def __init__(self, url: httpx.URL, *, name: str, private_hosts: frozenset[str] = frozenset()) -> None:
        self.name = name
        self._server, self._private_hosts = _server_of(url), private_hosts
        self._kinds: set[Kind] = set()

    def is_origin(self, url: httpx.URL) -> bool:
        """Return whether a URL leads to the registry itself. The same name with another scheme or port is another server."""
        return _server_of(url) == self._server

    def is_https_upgrade(self, url: httpx.URL) -> bool:
        """Return whether a registry at the default port of http is reached by https instead, at the default port."""
        return self._server == ("http", url.host, _PORTS["http"]) and _server_of(url) == ("https", url.host, _PORTS["https"])

    def trusts(self, url: httpx.URL) -> bool:
        """Return whether a URL leads to a server that the registry may name at any address."""
        return not self._private_hosts.isdisjoint(_names_of(url))

    def note_answer(self, kind: Kind) -> None:
        """Remember the kind of address from which the registry answered."""
        self._kinds.add(kind)

    def allowed_kinds(self) -> frozenset[Kind]:
        """Return the kinds of addresses that it may name. If it has several kinds of addresses, the strictest one decides."""
        # A tuple is made in one step. Another thread may add to the set while this one iterates.
        return frozenset.intersection(*(_ALLOWED_KINDS[kind] for kind in tuple(self._kinds) or ("public",)))

    def kinds(self) -> frozenset[Kind] | None:
        """Return the kinds of addresses at which a connection to its own server may be made; None for any.

        The user names the registry, so any address is good until it has answered. Later the registry could change its DNS
        record and redirect to itself, so only the kinds it answered from, and those it may name, are good.
        """
        return self.allowed_kinds() | frozenset(tuple(self._kinds)) if self._kinds else None


class Guard:
    """The guard of one request and of all requests that it is redirected to.

    Without `origin`, its URL is one that a document names. Requests to URLs of documents have no secrets. They go to public
    addresses, or to servers that the file of hosts names. With `stays`, a redirect to another server is refused.
    """

    def __init__(self, origin: GuardedOrigin | None = None, *, same_server: bool = False) -> None:
        self._origin, self._same_server = origin, same_server
        self._has_left = False

    def copy(self) -> "Guard":
        """Return a guard for another request to a URL that the same registry names."""
        return Guard(self._origin)

    def check(self, url: httpx.URL) -> None:
        """Check that this request may be sent to the server of a URL, wherever that is.

        Raises:
            AddressRefused: the request has to stay at its registry, and the URL leads to another server.
        """
        if self.leaves(url):
            raise AddressRefused("a request that changes content is not redirected to another server")

    def leaves(self, url: httpx.URL) -> bool:
        """Return whether the request has to stay at its registry, and a URL leads to another server."""
        if not self._same_server or self._origin is None:
            return False
        return not (self._origin.is_origin(url) or self._origin.is_https_upgrade(url))

    def may_have_secrets(self, url: httpx.URL) -> bool:
        """Return whether the headers and the client certificate that are set for a server may go along to a URL.

        A registry could otherwise have this machine use them at a server that the registry has no access to.
        """
        return self._origin is not None and (self._origin.is_origin(url) or self._origin.trusts(url))

    def address_rule(self, url: httpx.URL, *, is_named: bool) -> AddressRule | None:
        """Return the rule for the addresses of a URL; None for any address. `is_named`: the file of hosts names its server."""
        if self._origin is None:
            return None if is_named else FixedRule(PUBLIC_ONLY)
        if self._origin.trusts(url):
            return None
        if self._origin.is_origin(url):
            return self._origin
        return FixedRule(PUBLIC_ONLY if self._has_left else self._origin.allowed_kinds())

    def note_answer(self, url: httpx.URL, kind: Kind) -> None:
        """Remember the kind of address that answered: a public server cannot redirect back into a private network."""
        if self._origin is None:
            return
        if self._origin.is_origin(url):
            self._origin.note_answer(kind)
        elif kind == "public" and not self._origin.trusts(url):
            self._has_left = True

    def remedy(self, url: httpx.URL) -> str:
        """Return the remedy for a refused URL."""
        server = url.netloc.decode("ascii")
        if self.leaves(url):
            return f"if {server} is meant, name it as the registry"
        if self._origin is None:
            return f"to allow it, name {server} under registries in the file of hosts"
        return f"if {self._origin.name} may name this server, add {server} to privateHosts of {self._origin.name}"


def _server_of(url: httpx.URL) -> tuple[str, str, int | None]:
    """Return the scheme, host and port of a URL."""
    return url.scheme, url.host, url.port or _PORTS.get(url.scheme)


def _names_of(url: httpx.URL) -> tuple[str, str]:
    """The server of a URL without and with its port, as settings name it."""
    host = f"[{url.host}]" if ":" in url.host else url.host
    return host, f"{host}:{url.port or _PORTS.get(url.scheme)}"
