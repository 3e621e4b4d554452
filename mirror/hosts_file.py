"""Files with settings of hosts, in YAML.

A file of hosts has one key, `registries`: how each registry is reached. Keys are named as in regsync where it has them.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from prefect_dist.mirror import templates, yamlfile
from prefect_dist.mirror.validation import Host, Section, is_host, validate
from prefect_dist.mirror.yamlfile import Document, Place
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.remotes import Hosts, HostSettings, Tls
from prefect_dist.remotes.hosts import Capability, check_readable

MAX_CONCURRENCY = 64
CONCURRENCY = 8
"""How many things a run does at once, if nobody says."""
BLOB_CHUNK = "Bytes in a request of a chunked upload; 64 MiB, if nothing is said"
BLOB_MAX = "Bytes of a blob that is uploaded in one request; as blobChunk, if nothing is said; -1 for any number"
# As a repository's name is built (distribution-spec, "Pulling manifests"), slashes around it allowed.
_PREFIX = r"^/?([a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*/?)?$"
# token ::= 1*tchar  (RFC 9110, 5.6.2)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class Registry(Section):
    """How one registry is reached."""

    hostname: Host | None = Field(default=None, description="Where it is, if not where its name says: host[:port]")
    tls: Literal["enabled", "insecure", "disabled"] | None = Field(
        default=None, description="https, https without looking at certificates, http; on loopback addresses http unless said"
    )
    ca_file: str | None = Field(default=None, description="PEM file of the authorities to trust, instead of the system's")
    cert_file: str | None = Field(default=None, description="PEM file of our certificate")
    key_file: str | None = Field(default=None, description="PEM file of its key, if that is not in certFile")
    mirrors: list[Host] = Field(default=[], description="Registries that are asked before it, in this order")
    path_prefix: str = Field(
        default="", pattern=_PREFIX, description="Comes before the names of repositories, such as cache/hub"
    )
    headers: dict[str, str] = Field(default={}, repr=False, description='Go with every request; may be {{env "NAME"}}')
    req_concurrent: int | None = Field(default=None, ge=1, description="Requests under way at once")
    req_per_sec: float | None = Field(default=None, gt=0, description="Requests begun in a second")
    avoid: list[Capability] = Field(default=[], description="What it cannot do: head, range, mount, chunked, referrers")
    private_hosts: list[Host] = Field(
        default=[], description="Servers at private addresses that it may redirect to: host or host:port"
    )
    blob_chunk: int | None = Field(default=None, ge=1, description=BLOB_CHUNK)
    blob_max: int | None = Field(default=None, ge=-1, description=BLOB_MAX)

    def settings(self, document: Document, place: Place) -> HostSettings:
        """Return the settings as `remotes` takes them, with secrets resolved. Relative paths start where the document is.

        Raises:
            InvalidInput: a secret or a file is not where it should be, or is of no use.
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
    """A file of hosts."""

    registries: dict[Host, Registry]


def hosts(path: str | None, *, plain_http: bool = False, ca_file: str | None = None, insecure: Sequence[str] = ()) -> Hosts:
    """Return the settings of hosts from a file and from options, which take precedence.

    Raises:
        InvalidInput: the file is wrong, or one that it names; the message names file, line and key. Or `ca_file` is.
    """
    named: dict[str, HostSettings] = {}
    if path is not None:
        document = yamlfile.read(path)
        for host, entry in validate(HostsFile, document).registries.items():
            named[host] = entry.settings(document, ("registries", host))
    for host in insecure:
        if not is_host(host):
            raise InvalidInput(f"insecure {host!r}: expected host[:port], as it stands in references")
        known = named.get(host, HostSettings())
        named[host] = replace(known, scheme="https", tls=replace(known.tls, verify=False))
    found = Hosts(named=named, plain_http=plain_http, ca_file=ca_file and str(Path(ca_file).expanduser()))
    if ca_file is not None:
        Tls(ca_file=found.ca_file).context()
    return found


def _check(tls: Tls, document: Document, place: Place) -> None:
    """Reject unusable certificate files with the line that names them, before any request."""
    files = {"caFile": tls.ca_file, "certFile": tls.cert_file, "keyFile": tls.key_file}
    steps: list[tuple[str, Callable[[], object]]]
    steps = [(key, partial(check_readable, path)) for key, path in files.items() if path is not None]
    if steps:
        steps += [("caFile", Tls(ca_file=tls.ca_file).context), ("certFile", tls.context)]
    for key, step in steps:
        try:
            step()
        except InvalidInput as exc:
            raise InvalidInput(f"{document.where((*place, key))}: {exc}") from exc


def _header(name: str, text: str, document: Document, place: Place) -> tuple[str, str]:
    """Return a header as it is sent, without the whitespace at the end of a file or variable.

    Raises:
        InvalidInput: no header can be so; the value, which may be a secret, is not shown.
    """
    document.refuse_secret(text, place)
    at = document.where(place)
    value = templates.resolve_secret(text, at=at).strip()
    if not _HEADER_NAME.fullmatch(name):
        raise InvalidInput(f"{at}: expected the name of a header, such as X-Api-Key")
    if not (value.isascii() and value.isprintable()):
        raise InvalidInput(f"{at}: expected one line of printable ASCII characters, got others")
    return name, value


def _file(path: str | None, document: Document, place: Place) -> str | None:
    return None if path is None else str(Path(document.resolve_path(path, place)).absolute())
