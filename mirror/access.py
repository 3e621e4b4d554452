"""Settings and credentials for the registries of a mirror: `registries`, and regsync's `creds`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from prefect_dist.mirror.sections import Creds, MirrorFile, MirrorRegistry
from prefect_dist.mirror.templates import resolve_secret
from prefect_dist.mirror.validation import MistakeLog, is_host
from prefect_dist.mirror.yamlfile import Document, Place
from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.remotes import Credentials, HostSettings, Origin, Tls
from prefect_dist.remotes.advice import TlsAdvice

_HUB = "docker.io"
_HUB_NAMES = ("index.docker.io", "registry-1.docker.io")
_WHO = frozenset({"user", "pass_", "token", "block"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Settings by host, credentials by host or host and namespace, and names of blocks that have more of them."""

    hosts: Mapping[str, HostSettings]
    credentials: Mapping[str, Credentials] = field(repr=False)
    blocks: tuple[str, ...]


def access(file: MirrorFile, document: Document, numbers: Sequence[int], mistakes: MistakeLog) -> Access:
    """Return the settings and credentials of a file. Secrets are resolved, and mistakes are collected.

    `numbers` are the positions of the file's `creds` in the document.
    """
    hosts: dict[str, HostSettings] = {}
    credentials: dict[str, Credentials] = {}
    for key, registry in file.registries.items():
        settings = mistakes.attempt(partial(_registry_settings, registry, key, document))
        hosts |= settings or {}
        place: Place = ("registries", key)
        credentials |= mistakes.attempt(partial(_credentials, registry, key, place, document)) or {}
    known = zip(numbers, file.creds, strict=True)
    named = [(mistakes.attempt(partial(_registry, creds, document, number)), number, creds) for number, creds in known]
    priorities = {name: creds.priority for name, _, creds in named if name is not None}
    for name, number, creds in named:
        if name is None:
            continue
        if name in hosts:
            mistakes.add([f"{document.where(('creds', number, 'registry'))}: {name} is there twice"])
            continue
        of_creds = mistakes.attempt(partial(_settings, creds, name, ("creds", number), document, priorities))
        hosts |= {name: of_creds} if of_creds is not None else {}
        credentials |= mistakes.attempt(partial(_credentials, creds, name, ("creds", number), document)) or {}
    return Access(
        hosts=hosts,
        credentials=credentials,
        blocks=tuple(registry.block for registry in file.registries.values() if registry.block),
    )


def _registry_settings(registry: MirrorRegistry, key: str, document: Document) -> dict[str, HostSettings]:
    """Return the settings of a host; None for a namespace, which has only credentials."""
    place: Place = ("registries", key)
    if "/" not in _check_key(key, document.where(place)):
        return {key: replace(registry.settings(document, place), advice=TlsAdvice.of_file(document.where(place)))}
    if registry.model_fields_set - _WHO:
        raise InvalidInput(f"{document.where(place)}: expected user, pass, token or block alone for a namespace")
    return {}


def _check_key(key: str, at: str) -> str:
    """Return a key `host[:port]` or `host[:port]/namespace`."""
    host, slash, namespace = key.partition("/")
    try:
        known = is_host(host) and (not slash or Reference.parse(key).repository == namespace)
    except InvalidInput:
        known = False
    if not known:
        raise InvalidInput(f"{at}: expected host[:port], as it stands in references, or host[:port]/namespace")
    return key


def _registry(creds: Creds, document: Document, number: int) -> str:
    at = document.where(("creds", number, "registry"))
    name = resolve_secret(creds.registry, at=at)
    if not is_host(name):
        raise InvalidInput(f"{at}: expected host[:port], as it stands in references")
    return _HUB if name in _HUB_NAMES else name


def _credentials(said: MirrorRegistry | Creds, key: str, place: Place, document: Document) -> dict[str, Credentials]:
    at = document.where(place)
    if isinstance(said, MirrorRegistry) and said.block and said.model_fields_set & (_WHO - {"block"}):
        raise InvalidInput(f"{at}: expected either block or user, pass and token")
    if said.user and not (said.pass_ or said.token):
        raise InvalidInput(f"{at}: expected pass or token beside user")
    if said.pass_ and not said.user:
        raise InvalidInput(f"{at}: expected user beside pass")
    if not (said.pass_ or said.token):
        return {}
    for name, text in (("pass", said.pass_), ("token", said.token)):
        if text:
            document.refuse_secret(text, (*place, name))
    user, password, token = (
        resolve_secret(text, at=document.where((*place, name))) if text else ""
        for name, text in (("user", said.user), ("pass", said.pass_), ("token", said.token))
    )
    keys = [name for name, text in (("user", user), ("pass", password), ("token", token)) if text]
    return {key: Credentials(user, password, token or None, Origin(at, f"correct {' and '.join(keys)} there"))}


def _settings(creds: Creds, name: str, place: Place, document: Document, priorities: Mapping[str, int]) -> HostSettings:
    """Return the settings of a regsync host. Mirrors with the highest priority come first."""
    prefix = resolve_secret(creds.path_prefix, at=document.where((*place, "pathPrefix"))).strip("/")
    head = str(creds.api_opts.get("disableHead", "")).lower() == "true"
    return HostSettings(
        scheme=None if not creds.tls else "http" if creds.tls == "disabled" else "https",
        hostname=None if name == _HUB and creds.hostname in _HUB_NAMES else creds.hostname,
        tls=_tls(creds, place, document),
        mirrors=tuple(sorted(creds.mirrors, key=lambda mirror: -priorities.get(mirror, 0))),
        path_prefix=f"{prefix}/" if prefix else "",
        in_flight=creds.req_concurrent or None,
        per_second=creds.req_per_sec or None,
        avoid=frozenset({"head"} if head else ()),
        chunk_bytes=creds.blob_chunk or None,
        whole_bytes=creds.blob_max or None,
        advice=of_regsync(document.where(place)),
    )


def of_regsync(at: str) -> TlsAdvice:
    """Return the advice to set regsync's keys at a place in a file."""
    return TlsAdvice.of_file(at, authority="regcert", certificate="clientCert and clientKey")


def _tls(creds: Creds, place: Place, document: Document) -> Tls:
    """Return the certificates that a regsync host has in the file or refers to."""
    if creds.client_key:
        document.refuse_secret(creds.client_key, (*place, "clientKey"))
    authority, certificate, key = (
        resolve_secret(text, at=document.where((*place, name))) if text else None
        for name, text in (("regcert", creds.regcert), ("clientCert", creds.client_cert), ("clientKey", creds.client_key))
    )
    if (certificate is None) != (key is None):
        raise InvalidInput(f"{document.where(place)}: expected both clientCert and clientKey, or neither")
    if authority is None and certificate is None:
        return Tls(verify=creds.tls != "insecure")
    tls = Tls(
        verify=creds.tls != "insecure",
        ca_pem=authority,
        cert_pem=None if certificate is None else f"{certificate}\n{key}",
    )
    try:
        tls.context()
    except InvalidInput as exc:
        raise InvalidInput(f"{document.where(place)}: {exc}") from None
    return tls
