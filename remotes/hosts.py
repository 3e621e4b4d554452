"""Settings of each registry: address, TLS, limits, and features that it lacks.

A registry is known by its host as it stands in references, `host[:port]`.
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

# Docker Hub's name in references is not the name of its registry.
_ALIASES = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}

Capability = Literal["head", "range", "mount", "chunked", "referrers"]


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Tls:
    """Whom we trust, and how we prove who we are: paths of PEM files. `ca_file` None trusts what the system trusts.

    `key_file` None means that the key is in `cert_file`, too. `verify` False accepts any certificate. `ca_pem` is PEM itself,
    of authorities that are trusted beside the others; `cert_pem` that of our certificate with its key, instead of files.
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
            InvalidInput: a file that is not there, or not what it should be.
        """
        for path in filter(None, (self.ca_file, self.cert_file, self.key_file)):
            check_readable(path)
        if self.key_file is not None and self.cert_file is None:
            raise InvalidInput(f"{self.key_file}: expected a certificate beside the key, there is none")
        at, what = self.ca_file or "certificates of authorities", "certificate"
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
    """Settings of one registry. `scheme` None is https, on loopback addresses http unless `tls` says something.

    `hostname` is where it is, None where its name says it. `mirrors` are hosts that are asked before it, in their order.
    `path_prefix` comes between `/v2/` and a repository's name. `headers` go with every request to it, and may be
    secret. `in_flight` bounds requests under way at once, `per_second` those that are begun; None does not. `avoid` is what it
    cannot do, although it does not say so. `private_hosts` are servers, `host` or `host:port`, that it may name in redirects
    and elsewhere although they are at private addresses, see `remotes.guard`. `chunk_bytes` and `whole_bytes` are the sizes of
    uploads, see `remotes.sizes`. `advice` says where people change these settings, None as for hosts that are not named.
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
        """The same for somebody who is to be known to nobody: without headers and a certificate of our own."""
        return replace(self, headers=(), tls=replace(self.tls, cert_file=None, key_file=None, cert_pem=None))


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """The settings of all hosts: those that are `named`, and plain ones for all others.

    `plain_http` is for registries whose scheme is not set; `ca_file` is trusted wherever no other is set. It is for all hosts,
    so unlike one that is set for a host it does not have loopback addresses spoken to in https. `slots` bound the requests
    under way at once to some hosts, beside what their settings say.
    """

    named: Mapping[str, HostSettings] = field(default_factory=dict)
    plain_http: bool = False
    ca_file: str | None = None
    slots: Mapping[str, int] = field(default_factory=dict)
    advice: TlsAdvice | None = None

    def settings_for(self, host: str) -> HostSettings:
        """The settings of a registry."""
        return self._complete(self.named.get(host))

    def url(self, host: str) -> str:
        """Return the URL of a registry: `https://host`, or `http://` if set so or on a loopback address (as engines do)."""
        return f"{self._scheme(host)}://{self._server_of(host)}"

    def name_of(self, server: str) -> str:
        """The registry, as references name it, that is at a server, `host[:port]`."""
        names = (*self.named, *_ALIASES)
        return next((host for host in names if self._server_of(host) == server), server)

    def _server_of(self, host: str) -> str:
        return self.named.get(host, HostSettings()).hostname or _ALIASES.get(host, host)

    def _scheme(self, host: str) -> str:
        settings = self.named.get(host, HostSettings())
        if settings.scheme is not None:
            return settings.scheme
        means_https = settings.tls != Tls()  # certificates are of use there alone
        return "http" if self.plain_http or (_is_loopback(self._server_of(host)) and not means_https) else "https"

    def settings_at(self, url: httpx.URL) -> HostSettings:
        """The settings of the server that a URL leads to, be it a registry or where one redirects to.

        What was set for a registry is for that registry alone.
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
        """Return True if the server of a URL is one of the `named`."""
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
    """The scheme is part of it: what is meant for https is not to be sent in the clear."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}"  # httpx leaves out the port that the scheme implies


def _is_loopback(host: str) -> bool:
    name = host[1 : host.index("]")] if host.startswith("[") else host.partition(":")[0]
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def check_readable(path: str) -> None:
    """See that a file can be read: what OpenSSL says of two files does not tell which it is about.

    Raises:
        InvalidInput: it cannot.
    """
    try:
        with Path(path).open("rb"):
            pass
    except (OSError, ValueError) as exc:  # a path may have a NUL in it
        why = getattr(exc, "strerror", None) or "no path"
        raise InvalidInput(f"{path if path.isprintable() else quote_text(path)}: {why}, expected a file in PEM") from exc


def _load_pem(context: ssl.SSLContext, pem: str) -> None:
    """OpenSSL reads keys from files alone: one that nobody else can read, for as long as that takes."""
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(pem)
        file.flush()
        context.load_cert_chain(file.name, password=_no_password)


def _no_password() -> str:
    """Instead of OpenSSL's question on the terminal, an error: the key is encrypted."""
    raise ValueError("its key is encrypted")
