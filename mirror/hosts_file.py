"""Hosts files: connection settings of registries, in YAML.

A hosts file has one key, `registries`, with the settings of each registry. Keys of regsync keep their names.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from posixpath import expanduser
from typing import Literal

from pydantic import Field

from prefect_dist.mirror import templates, yamlfile
from prefect_dist.mirror.validation import Host, Section, is_host, key, located, validate
from prefect_dist.mirror.yamlfile import Document, Place
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.remotes import Hosts, HostSettings, Tls
from prefect_dist.remotes.hosts import Capability, check_readable

MAX_CONCURRENCY = 64
CONCURRENCY = 8
"""The default of the maximum number of parallel tasks of a run."""
BLOB_CHUNK = "Bytes per request of a chunked upload; default: 64 MiB"
BLOB_MAX = "Maximum bytes of a blob that is uploaded in one request; default: blobChunk; -1: no maximum"
# The grammar of repository names (distribution-spec, "Pulling manifests"), optionally between slashes.
_PREFIX = r"^/?([a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*/?)?$"
# token ::= 1*tchar  (RFC 9110, 5.6.2)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class Registry(Section):
    """The connection settings of a registry."""

    hostname: Host | None = key("host[:port] of the server, if it differs from the name")
    tls: Literal["enabled", "insecure", "disabled"] | None = key(
        "HTTPS (enabled), HTTPS with any certificate (insecure), HTTP (disabled); default: HTTPS, HTTP on loopback"
    )
    ca_file: str | None = key("CA bundle (PEM), which replaces the system's")
    cert_file: str | None = key("PEM file of the client certificate")
    key_file: str | None = key("PEM file of the key, if certFile does not contain it")
    mirrors: list[Host] = key("Registry mirrors, which a run tries first, in this order", default=[])
    path_prefix: str = Field(
        default="", pattern=_PREFIX, description="Path that precedes the names of repositories, such as cache/hub"
    )
    headers: dict[str, str] = key('HTTP headers of each request; a value may be {{env "NAME"}}', default={}, repr=False)
    req_concurrent: int | None = key("Maximum number of concurrent requests", ge=1)
    req_per_sec: float | None = Field(default=None, gt=0, description="Maximum number of requests per second")
    avoid: list[Capability] = key(
        "Features that the registry lacks without saying so: head, range, mount, chunked, referrers", default=[]
    )
    private_hosts: list[Host] = key(
        "Servers at private addresses that the registry may redirect to: host or host:port", default=[]
    )
    blob_chunk: int | None = Field(default=None, ge=1, description=BLOB_CHUNK)
    blob_max: int | None = Field(default=None, ge=-1, description=BLOB_MAX)

    def settings(self, document: Document, place: Place) -> HostSettings:
        """Return the settings for `remotes`, with secrets resolved. Relative paths start at the directory of the document.

        Raises:
            InvalidInput: a secret or a file is missing or invalid.
        """
        prefix = self.path_prefix.strip("/")
        settings = HostSettings(
            hostname=self.hostname,
            scheme=None if self.tls is None else "http" if self.tls == "disabled" else "https",
            tls=Tls(
                ca_file=_file(self.ca_file, document, (*place, "caFile")),
                cert_file=_file(self.cert_file, document, (*place, "certFile")),
                key_file=_file(self.key_file, document, (*place, "keyFile")),
                verify=self.tls != "insecure",
            ),
            mirrors=tuple(self.mirrors),
            path_prefix=f"{prefix}/" if prefix else "",
            headers=tuple(_header(name, value, document, (*place, "headers", name)) for name, value in self.headers.items()),
            in_flight=self.req_concurrent,
            per_second=self.req_per_sec,
            avoid=frozenset(self.avoid),
            private_hosts=frozenset(server.lower() for server in self.private_hosts),
            chunk_bytes=self.blob_chunk,
            whole_bytes=self.blob_max,
        )
        _check(settings.tls, document, place)
        return settings


class HostsFile(Section):
    """The content of a hosts file."""

    registries: dict[Host, Registry]


def hosts(path: str | None, *, plain_http: bool = False, ca_file: str | None = None, insecure: Sequence[str] = ()) -> Hosts:
    """Return the settings of registries from a hosts file and from options. Options take precedence.

    Raises:
        InvalidInput: the hosts file, a file that it names, or `ca_file` is missing or invalid; the message names file, line
            and key.
    """
    named: dict[str, HostSettings] = {}
    if path is not None:
        document = yamlfile.read(path)
        for host, entry in validate(HostsFile, document).registries.items():
            named[host] = entry.settings(document, ("registries", host))
    for host in insecure:
        if not is_host(host):
            raise InvalidInput(f"insecure {host!r}: expected host[:port] as in references")
        known = named.get(host, HostSettings())
        named[host] = replace(known, scheme="https", tls=replace(known.tls, verify=False))
    found = Hosts(named=named, plain_http=plain_http, ca_file=ca_file and expanduser(ca_file))
    if ca_file is not None:
        Tls(ca_file=found.ca_file).context()
    return found


def _check(tls: Tls, document: Document, place: Place) -> None:
    """Reject unusable certificate files before any request. The message has the line that names the file."""
    files = {"caFile": tls.ca_file, "certFile": tls.cert_file, "keyFile": tls.key_file}
    steps: list[tuple[str, Callable[[], object]]]
    steps = [(name, partial(check_readable, path)) for name, path in files.items() if path is not None]
    if steps:
        steps += [("caFile", Tls(ca_file=tls.ca_file).context), ("certFile", tls.context)]
    for name, step in steps:
        with located(document.where((*place, name))):
            step()


def _header(name: str, text: str, document: Document, place: Place) -> tuple[str, str]:
    """Return an HTTP header with its template replaced, and without whitespace around the value.

    Raises:
        InvalidInput: the header is invalid; the message does not show the value, which may be a secret.
    """
    document.refuse_secret(text, place)
    at = document.where(place)
    value = templates.resolve_secret(text, at=at).strip()
    if not _HEADER_NAME.fullmatch(name):
        raise InvalidInput("expected the name of a header, such as X-Api-Key", subject=at)
    if not (value.isascii() and value.isprintable()):
        raise InvalidInput("expected one line of printable ASCII characters", subject=at)
    return name, value


def _file(path: str | None, document: Document, place: Place) -> str | None:
    return None if path is None else str(Path(document.resolve_path(path, place)).absolute())
