"""Guards against server-side request forgery (CWE-918): for redirects, other URLs of a registry, and `urls` of descriptors.

Otherwise a server on the Internet could make this machine send requests to systems reachable only from here, such as the
metadata service of a cloud. A registry inside a private network may refer to other servers of the network, because object
storage is often there. Checking addresses at connection time is left to `remotes.public`.
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
    """The first registry of a request, and the kinds of addresses from which the registry answered. Thread-safe.

    The registry may refer to `private_hosts`, as `host` or `host:port`, at any address. As an `AddressRule`, this object is the
    rule for connections to the registry's own server.
    """

    def __init__(self, url: httpx.URL, *, name: str, private_hosts: frozenset[str] = frozenset()) -> None:
        self.name = name
        self._server, self._private_hosts = _server_of(url), private_hosts
        self._kinds: set[Kind] = set()

    def is_origin(self, url: httpx.URL) -> bool:
        """Return True if a URL is at the registry. A different scheme or port means another server."""
        return _server_of(url) == self._server

    def is_https_upgrade(self, url: httpx.URL) -> bool:
        """Return True if a URL leads from http to https at the registry, both at their default ports."""
        return self._server == ("http", url.host, _PORTS["http"]) and _server_of(url) == ("https", url.host, _PORTS["https"])

    def trusts(self, url: httpx.URL) -> bool:
        """Return True if the registry may refer to the server of a URL at any address."""
        return not self._private_hosts.isdisjoint(_names_of(url))

    def note_answer(self, kind: Kind) -> None:
        """Remember the kind of address from which the registry answered."""
        self._kinds.add(kind)

    def allowed_kinds(self) -> frozenset[Kind]:
        """Return the kinds of addresses to which the registry may refer.

        For a registry with addresses of several kinds, only the kinds allowed by each of them.
        """
        # The tuple is an atomic copy: another thread may add to the set meanwhile.
        return frozenset.intersection(*(_ALLOWED_KINDS[kind] for kind in tuple(self._kinds) or ("public",)))

    def kinds(self) -> frozenset[Kind] | None:
        """Return the kinds of addresses allowed for connections to the registry's own server; None for any.

        The user names the registry, so any address is allowed until the registry has answered. Later the registry could change
        its DNS record and redirect to itself. So only the kinds of its earlier addresses, and the kinds of `allowed_kinds`, are
        allowed.
        """
        return self.allowed_kinds() | frozenset(tuple(self._kinds)) if self._kinds else None


class Guard:
    """The guard of one request, including its redirects.

    Without `origin`, the URL comes from a manifest: the request has no secrets, and goes only to public addresses or to servers
    in the hosts file. With `same_server`, a redirect to another server is refused.
    """

    def __init__(self, origin: GuardedOrigin | None = None, *, same_server: bool = False) -> None:
        self._origin, self._same_server = origin, same_server
        self._has_left = False

    def copy(self) -> "Guard":
        """Return a new guard for a request to a URL from the same registry."""
        return Guard(self._origin)

    def check(self, url: httpx.URL) -> None:
        """Check that the request may be sent to the server of a URL.

        Raises:
            AddressRefused: the request has to stay at its registry, and the URL is at another server.
        """
        if self.leaves(url):
            raise AddressRefused("the registry redirected a write to another server; the redirect is not followed")

    def leaves(self, url: httpx.URL) -> bool:
        """Return True if the request has to stay at its registry, and a URL is at another server."""
        if not self._same_server or self._origin is None:
            return False
        return not (self._origin.is_origin(url) or self._origin.is_https_upgrade(url))

    def may_have_secrets(self, url: httpx.URL) -> bool:
        """Return True if the server of a URL may receive its configured headers and client certificate.

        Otherwise a registry could make this machine use the secrets at a server to which the registry has no access.
        """
        return self._origin is not None and (self._origin.is_origin(url) or self._origin.trusts(url))

    def address_rule(self, url: httpx.URL, *, is_named: bool) -> AddressRule | None:
        """Return the rule for the addresses of a URL; None for any address. `is_named`: its server is in the hosts file."""
        if self._origin is None:
            return None if is_named else FixedRule(PUBLIC_ONLY)
        if self._origin.trusts(url):
            return None
        if self._origin.is_origin(url):
            return self._origin
        return FixedRule(PUBLIC_ONLY if self._has_left else self._origin.allowed_kinds())

    def note_answer(self, url: httpx.URL, kind: Kind) -> None:
        """Remember the kind of address that answered.

        After an answer from a public server, redirects into a private network are refused.
        """
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
            return f"if {server} is the intended registry, use its name in the reference"
        if self._origin is None:
            return f"to allow it, add {server} to registries in the hosts file"
        return f"to allow it, add {server} to privateHosts of {self._origin.name} in the hosts file"


def _server_of(url: httpx.URL) -> tuple[str, str, int | None]:
    """Return the scheme, host and port of a URL."""
    return url.scheme, url.host, url.port or _PORTS.get(url.scheme)


def _names_of(url: httpx.URL) -> tuple[str, str]:
    """Server of a URL without and with its port, as written in settings."""
    host = f"[{url.host}]" if ":" in url.host else url.host
    return host, f"{host}:{url.port or _PORTS.get(url.scheme)}"
