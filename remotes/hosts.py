"""Settings of each registry: address, scheme, TLS, limits, and missing features.

A registry is identified by its host as written in references, `host[:port]`. Reading these settings from a hosts file is left
to `mirror.hosts_file`, applying limits to `remotes.throttled`.
"""

import ipaddress
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import httpx

from prefect_dist.ocispec.errors import InvalidInput, quote_text
from prefect_dist.remotes.advice import OPTIONS, TlsAdvice

# Docker Hub's name in references is not the host name of its registry.
_ALIASES = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}

Capability = Literal["head", "range", "mount", "chunked", "referrers"]


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Tls:
    """Trusted CAs and the client certificate of one registry. The `_file` fields are paths of PEM files.

    Without `ca_file`, the system's CAs are trusted. Without `key_file`, the key is in `cert_file`. `verify=False` accepts any
    certificate. `ca_pem` has CAs in PEM, trusted in addition to the others. `cert_pem` has the client certificate and its key
    in PEM, and replaces the files.
    """

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    verify: bool = True
    ca_pem: str | None = field(default=None, repr=False)
    cert_pem: str | None = field(default=None, repr=False)

    def context(self) -> ssl.SSLContext:
        """Return the TLS context for connections.

        Raises:
            InvalidInput: a file is missing, unreadable or has other content.
        """
        for path in filter(None, (self.ca_file, self.cert_file, self.key_file)):
            check_readable(path)
        if self.key_file is not None and self.cert_file is None:
            raise InvalidInput(f"{self.key_file}: expected a certificate for this key, none is set")
        at, what = self.ca_file or "CA certificates", "certificate"
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.ca_pem is not None:
                context.load_verify_locations(cadata=self.ca_pem)
            if self.cert_pem is not None:
                at, what = "certificate with key", "certificate and key"
                _load_pem(context, self.cert_pem)
            elif self.cert_file is not None:
                at = f"{self.cert_file} and {self.key_file}" if self.key_file is not None else self.cert_file
                what = "certificate and key"
                context.load_cert_chain(self.cert_file, self.key_file, password=_no_password)
        except (OSError, ValueError) as exc:  # ssl.SSLError is an OSError
            why = getattr(exc, "reason", None) or exc
            raise InvalidInput(f"{at}: expected a {what} in PEM ({why})") from exc
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class HostSettings:
    """Settings of one registry.

    - `scheme`: None for https, or for http on a loopback address without `tls` settings.
    - `hostname`: the server of the registry, None if the registry's name is also its address.
    - `mirrors`: hosts of registry mirrors, tried in this order before the registry.
    - `path_prefix`: a prefix of every repository name, after `/v2/`.
    - `headers`: sent with every request to the registry, possibly secret.
    - `in_flight`, `per_second`: limits of concurrent requests and of requests started per second, None for no limit.
    - `avoid`: features that the registry lacks although it does not report that.
    - `private_hosts`: servers, `host` or `host:port`, that the registry may refer to at private addresses, see `remotes.guard`.
    - `chunk_bytes`, `whole_bytes`: sizes of uploads, see `remotes.sizes`.
    - `advice`: remedies for TLS failures, None for those of `Hosts`.
    """

    scheme: Literal["http", "https"] | None = None
    hostname: str | None = None
    tls: Tls = field(default_factory=Tls)
    mirrors: tuple[str, ...] = ()
    path_prefix: str = ""
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    in_flight: int | None = None
    per_second: float | None = None
    avoid: frozenset[Capability] = frozenset()
    private_hosts: frozenset[str] = frozenset()
    chunk_bytes: int | None = None
    whole_bytes: int | None = None
    advice: TlsAdvice | None = field(default=None, compare=False)

    def without_secrets(self) -> Self:
        """Return the settings without headers and client certificate, for servers that must not get these."""
        return replace(self, headers=(), tls=replace(self.tls, cert_file=None, key_file=None, cert_pem=None))


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """The settings of all registries: those in `named`, and defaults for all others.

    `plain_http` applies to registries without a `scheme`. `ca_file` applies to registries without a CA of their own; unlike a
    registry's own CA, it does not switch loopback addresses to https. `slots` limit concurrent requests per host, in addition
    to `in_flight`.
    """

    named: Mapping[str, HostSettings] = field(default_factory=dict)
    plain_http: bool = False
    ca_file: str | None = None
    slots: Mapping[str, int] = field(default_factory=dict)
    advice: TlsAdvice | None = None

    def settings_for(self, host: str) -> HostSettings:
        """Settings of a registry."""
        return self._complete(self.named.get(host))

    def url(self, host: str) -> str:
        """Return the URL of a registry.

        The scheme is https, or http if set so or on a loopback address, as in container engines.
        """
        return f"{self._scheme(host)}://{self._server_of(host)}"

    def name_of(self, server: str) -> str:
        """Name in references of the registry at a server, `host[:port]`."""
        names = (*self.named, *_ALIASES)
        return next((host for host in names if self._server_of(host) == server), server)

    def _server_of(self, host: str) -> str:
        return self.named.get(host, HostSettings()).hostname or _ALIASES.get(host, host)

    def _scheme(self, host: str) -> str:
        settings = self.named.get(host, HostSettings())
        if settings.scheme is not None:
            return settings.scheme
        means_https = settings.tls != Tls()  # certificates have a use only with https
        return "http" if self.plain_http or (is_loopback(_without_port(self._server_of(host))) and not means_https) else "https"

    def settings_at(self, url: httpx.URL) -> HostSettings:
        """Settings of the server in a URL, which may be the target of a redirect.

        The settings of a registry never apply to another server that the registry redirects to.
        """
        return self._complete(self._by_server.get(_server(url)))

    def advice_at(self, url: httpx.URL) -> TlsAdvice:
        """Return the remedies for TLS failures with the server of a URL."""
        return self.settings_at(url).advice or self.advice or OPTIONS

    def max_in_flight(self, url: httpx.URL) -> int | None:
        """Return the limit of concurrent requests to the server of a URL; None for no limit."""
        bounds = (self.settings_at(url).in_flight, self._slots_by_server.get(_server(url)))
        return min((bound for bound in bounds if bound is not None), default=None)

    def is_named(self, url: httpx.URL) -> bool:
        """Return True if the server of a URL is one of the `named` registries."""
        return _server(url) in self._by_server

    def _complete(self, settings: HostSettings | None) -> HostSettings:
        settings = settings or HostSettings()
        if self.ca_file is None or settings.tls.ca_file is not None:
            return settings
        return replace(settings, tls=replace(settings.tls, ca_file=self.ca_file))

    @cached_property
    def _by_server(self) -> dict[str, HostSettings]:
        return {_server(httpx.URL(self.url(host))): settings for host, settings in self.named.items()}

    @cached_property
    def _slots_by_server(self) -> dict[str, int]:
        return {_server(httpx.URL(self.url(host))): slots for host, slots in self.slots.items()}


def _server(url: httpx.URL) -> str:
    """Scheme and server of a URL. The scheme counts: settings for https must not be sent over plain http."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}"  # httpx omits the default port


def is_loopback(host: str) -> bool:
    """Return True for localhost and loopback addresses. `host` has neither a port nor brackets."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _without_port(server: str) -> str:
    return server[1 : server.index("]")] if server.startswith("[") else server.partition(":")[0]


def check_readable(path: str) -> None:
    """Check that a file can be read. OpenSSL's error for a certificate and a key does not name the file that is missing.

    Raises:
        InvalidInput: the file cannot be read.
    """
    try:
        with Path(path).open("rb"):
            pass
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        why = getattr(exc, "strerror", None) or "not a path"
        raise InvalidInput(f"{path if path.isprintable() else quote_text(path)}: {why}; expected a readable PEM file") from exc


def _load_pem(context: ssl.SSLContext, pem: str) -> None:
    """Load a certificate and key from a string. OpenSSL reads keys only from files, so a private temporary file is used."""
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(pem)
        file.flush()
        context.load_cert_chain(file.name, password=_no_password)


def _no_password() -> str:
    """Raise an error for an encrypted key. OpenSSL's default is to prompt on the terminal."""
    raise ValueError("the key is encrypted")
