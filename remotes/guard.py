"""Where a server may send us: one guard for redirects, for other URLs that a registry names, and for the `urls` of descriptors.

A server on the Internet could otherwise have this machine send requests to systems that only this machine reaches, such as a
cloud's metadata service (server-side request forgery, CWE-918). A registry inside a private network may name other servers of
that network, because object storage often is one of them.
"""

from collections.abc import Mapping
from types import MappingProxyType

import httpx

from remotes.public import PUBLIC_ONLY, Kind

GUARD = "dist.guard"
"""Extension of a request: its `Guard`. httpx copies it to the requests that follow redirects."""

_PORTS: Mapping[str, int] = MappingProxyType({"http": 80, "https": 443})
# A registry on this machine is often a tunnel into a private network. Link-local addresses hold metadata services.
_REACHABLE: Mapping[Kind, frozenset[Kind]] = MappingProxyType(
    {
        "public": PUBLIC_ONLY,
        "private": frozenset({"public", "private"}),
        "loopback": frozenset({"public", "private", "loopback"}),
        "link-local": frozenset({"public", "private", "link-local"}),
        "reserved": PUBLIC_ONLY,
    }
)


class Origin:
    """A registry, and the addresses from which it answered. Thread-safe: its state is set in single steps.

    `private_hosts` are servers, `host` or `host:port`, that it may name wherever they are.
    """

    def __init__(self, url: httpx.URL, *, name: str, private_hosts: frozenset[str] = frozenset()) -> None:
        self.name = name
        self._server, self._private_hosts = url.netloc, private_hosts
        self._kinds: set[Kind] = set()

    def trusts(self, url: httpx.URL) -> bool:
        """Whether a URL leads to the registry itself, or to a server that it may name wherever it is."""
        return url.netloc == self._server or not self._private_hosts.isdisjoint(_names_of(url))

    def note_answer(self, url: httpx.URL, kind: Kind) -> None:
        """Remember the kind of address from which the registry answered."""
        if url.netloc == self._server:
            self._kinds.add(kind)

    def reachable(self) -> frozenset[Kind]:
        """The kinds of addresses that it may name. Of several addresses of its own, the strictest one decides."""
        return frozenset.intersection(*(_REACHABLE[kind] for kind in self._kinds or {"public"}))


class Guard:
    """The guard of one request and of all that it is redirected to. Without `origin` its URL is one that a document names.

    Requests to URLs of documents have no secrets and go to public addresses, or to servers that the file of hosts names.
    """

    def __init__(self, origin: Origin | None = None) -> None:
        self._origin = origin
        self._has_left = False

    def renewed(self) -> "Guard":
        """A guard for another request to a URL that the same registry names."""
        return Guard(self._origin)

    @property
    def is_for_document(self) -> bool:
        """Whether the URL is one that a document names."""
        return self._origin is None

    def allowed(self, url: httpx.URL, *, is_named: bool) -> frozenset[Kind] | None:
        """The kinds of addresses at which a URL may be requested; None for any. `is_named`: the file of hosts names it."""
        if self._origin is None:
            return None if is_named else PUBLIC_ONLY
        if self._origin.trusts(url):
            return None
        return PUBLIC_ONLY if self._has_left else self._origin.reachable()

    def note_answer(self, url: httpx.URL, kind: Kind) -> None:
        """Remember the kind of address that answered: a public server cannot redirect back into a private network."""
        if self._origin is not None and self._origin.trusts(url):
            self._origin.note_answer(url, kind)
        elif kind == "public":
            self._has_left = True

    def remedy(self, url: httpx.URL) -> str:
        """The setting that allows a refused URL."""
        server = url.netloc.decode("ascii")
        if self._origin is None:
            return f"to allow it, name {server} under registries in the file of hosts"
        return f"if {self._origin.name} may name this server, add {server} to privateHosts of {self._origin.name}"


def _names_of(url: httpx.URL) -> tuple[str, str]:
    """The server of a URL without and with its port, as settings name it."""
    host = f"[{url.host}]" if ":" in url.host else url.host
    return host, f"{host}:{url.port or _PORTS.get(url.scheme)}"
