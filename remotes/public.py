"""Kinds of IP addresses, and connections only to some kinds: for URLs from registries and manifests.

Each new connection resolves its host name once, checks the kind of each address, and connects to a checked address. A name with
another address a moment later (DNS rebinding) is therefore harmless. The allowed kinds are left to `remotes.guard`. Only the
first connection to a registry named by the user may go to any address.
"""

import contextlib
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import ClassVar, Literal, Protocol, TypeAlias

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError, LocationParseError, NameResolutionError, NewConnectionError

Kind: TypeAlias = Literal["public", "private", "loopback", "link-local", "reserved"]
PUBLIC_ONLY: frozenset[Kind] = frozenset({"public"})

# Python's `is_global` also accepts IPv6 space that IANA has not allocated (RFC 4291, 2.4).
_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
# Metadata services of Azure, Oracle Cloud, Alibaba Cloud and AWS, which are not at link-local addresses.
_METADATA = frozenset(map(ip_address, ("168.63.129.16", "192.0.0.192", "100.100.100.200", "fd00:ec2::254")))


class AddressRefused(HTTPError):
    """The server, or the kind of its address, is not allowed. No connection was made, and nothing was sent."""


class AddressRule(Protocol):
    """The kinds of addresses to which connections may be made."""

    def kinds(self) -> frozenset[Kind] | None:
        """Return the kinds that are allowed now; None for any."""


@dataclass(frozen=True, slots=True)
class FixedRule:
    """A rule that always allows the same kinds."""

    allowed: frozenset[Kind]

    def kinds(self) -> frozenset[Kind]:
        """Return the allowed kinds."""
        return self.allowed


def address_kind(address: str) -> Kind:
    """Return the kind of an IP address. IPv6 forms of an IPv4 address (mapped, 6to4, NAT64) have the kind of the IPv4 address.

    Metadata services count as link-local. "public" is a single host of the Internet. "private" is any remaining address, such
    as 10.0.0.0/8, 100.64.0.0/10 and fc00::/7.
    """
    found = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (IPv4Address(int(found) & 0xFFFFFFFF) if found in _NAT64 else None)
        found = inner or found
    if found.is_link_local or found in _METADATA:
        return "link-local"
    if found.is_loopback:
        return "loopback"
    if found.is_multicast or found.is_unspecified or (isinstance(found, IPv4Address) and found.packed[0] == 0):
        return "reserved"
    is_handed_out = isinstance(found, IPv4Address) or found in _UNICAST
    return "public" if found.is_global and is_handed_out else "private"


def literal_address_kind(host: str) -> Kind | None:
    """Return the kind of an IP address in a URL; None for a name, which is not resolved."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):
        return None
    return address_kind(str(found[0][4][0]))


def refuse_literal(host: str, allowed: frozenset[Kind] | None) -> None:
    """Refuse an IP address in a URL. Names are left to the proxy, which resolves names and connects.

    Raises:
        AddressRefused: the address, in any spelling (`127.1`, `0x7f000001`), is of a kind that is not allowed.
    """
    try:
        _allowed_addresses(host, allowed, flags=socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):
        return


class _GuardedConnection(HTTPConnection):
    """Connects to the first address of its host with an allowed kind that answers."""

    rule: ClassVar[AddressRule] = FixedRule(PUBLIC_ONLY)

    def _new_conn(self) -> socket.socket:
        host = self.host
        try:
            addresses = _allowed_addresses(host, self.rule.kinds())
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
            self.host = host  # certificates are checked against the name


class GuardedHTTPConnection(_GuardedConnection):
    """http only to addresses of allowed kinds."""


class GuardedHTTPSConnection(_GuardedConnection, HTTPSConnection):
    """https only to addresses of allowed kinds."""


def _allowed_addresses(host: str, allowed: frozenset[Kind] | None, *, flags: int = 0) -> list[str]:
    """Return the addresses of a host with allowed kinds, or all if `allowed` is None; at least one address.

    Raises:
        AddressRefused: no address is of an allowed kind.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=flags)
    addresses = list(dict.fromkeys(str(where[0]) for *_, where in found))
    good = [address for address in addresses if allowed is None or address_kind(address) in allowed]
    if not good:
        kind, first = address_kind(addresses[0]), addresses[0]
        raise AddressRefused(
            f"{host} is a {kind} address" if host == first else f"{host} resolves to the {kind} address {first}"
        )
    return good
