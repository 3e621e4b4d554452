"""Public addresses, and connections to nothing else: for URLs that a document names, which may be a stranger's.

Who can have an image fetched could otherwise have this machine ask whatever it alone can reach: a cloud's metadata service, a
neighbour without a password (server-side request forgery, CWE-918). A name is resolved once, what it stands for is looked at,
and that very address is connected to, so a name that means something else a moment later (DNS rebinding) gains nothing.
"""

import contextlib
import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError, LocationParseError, NameResolutionError, NewConnectionError

# Python's `is_global` counts more of IPv6 in than is handed out (RFC 4291, 2.4; IANA's registry of address space).
_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address


class NotPublic(HTTPError):
    """An address that is not everybody's. Nothing was sent there, and no connection made."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the Internet: of a single host, and the same one wherever it is asked for.

    What stands for an IPv4 address (mapped, 6to4, NAT64) is what that is.
    """
    found = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (IPv4Address(int(found) & 0xFFFFFFFF) if found in _NAT64 else None)
        if inner is None:
            return found in _UNICAST and found.is_global
        found = inner
    return found.is_global and not found.is_multicast


def refuse_literal(host: str) -> None:
    """Refuse an address that stands in a URL itself; a name is not looked up, which is for whoever connects to do.

    Raises:
        NotPublic: it is one, in whatever spelling (`127.1`, `0x7f000001`).
    """
    try:
        _public(host, flags=socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):
        return


class _PublicOnly(HTTPConnection):
    """Connects to the public addresses of its host, in their order, until one answers."""

    def _new_conn(self) -> socket.socket:
        host = self.host
        try:
            addresses = _public(host)
        except socket.gaierror as exc:
            raise NameResolutionError(host, self, exc) from exc
        except UnicodeError as exc:
            raise LocationParseError("label empty or too long") from exc
        *others, last = addresses
        try:
            for address in others:
                self.host = address
                with contextlib.suppress(NewConnectionError, ConnectTimeoutError):
                    return super()._new_conn()
            self.host = last
            return super()._new_conn()
        finally:
            self.host = host  # which certificates are about


class PublicHTTPConnection(_PublicOnly):
    """http to public addresses alone."""


class PublicHTTPSConnection(_PublicOnly, HTTPSConnection):
    """https to public addresses alone."""


def _public(host: str, *, flags: int = 0) -> list[str]:
    """The public addresses of a host: one at least."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=flags)
    addresses = list(dict.fromkeys(str(where[0]) for *_, where in found))
    public = [address for address in addresses if is_public(address)]
    if not public:
        what = host if host == addresses[0] else f"{host}, which is at {addresses[0]},"
        raise NotPublic(f"{what} is no public address; name it in the file of hosts if it is to be asked")
    return public
