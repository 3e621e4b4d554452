"""Settings and credentials for the registries of a mirror: the section `registries`, and regsync's `creds`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from prefect_dist.mirror.sections import Creds, LoginSection, MirrorFile, MirrorRegistry
from prefect_dist.mirror.templates import resolve_secret
from prefect_dist.mirror.validation import MistakeLog, is_host, located
from prefect_dist.mirror.yamlfile import Document, Place
from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.ocispec.reference import find_scheme
from prefect_dist.ocispec.schemes import BUILT_IN
from prefect_dist.remotes import Credentials, HostSettings, Origin, Tls
from prefect_dist.remotes.advice import TlsAdvice

_HUB = "docker.io"
_HUB_NAMES = ("index.docker.io", "registry-1.docker.io")
_LOGIN_KEYS = frozenset({"user", "pass_", "token", "block"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Settings by host, credentials by host or by host and namespace, and Prefect blocks with further credentials."""

    hosts: Mapping[str, HostSettings]
    credentials: Mapping[str, Credentials] = field(repr=False)
    blocks: tuple[str, ...]


def read_access(file: MirrorFile, document: Document, positions: Sequence[int], mistakes: MistakeLog) -> Access:
    """Return the settings and credentials in a file, with secrets resolved. Add mistakes to the log.

    `positions` are the positions of the file's `creds` in the document.
    """
    hosts: dict[str, HostSettings] = {}
    credentials: dict[str, Credentials] = {}
    for key, registry in file.registries.items():
        hosts |= mistakes.attempt(partial(_registry_settings, registry, key, document)) or {}
        credentials |= mistakes.attempt(partial(_credentials, registry, key, ("registries", key), document)) or {}
    numbered = list(zip(positions, file.creds, strict=True))
    named = [(mistakes.attempt(partial(_registry, creds, document, number)), number, creds) for number, creds in numbered]
    priorities = {name: creds.priority for name, _, creds in named if name is not None}
    for name, number, creds in named:
        if name is None:
            continue
        place: Place = ("creds", number)
        if name in hosts:
            mistakes.add([f"{document.where((*place, 'registry'))}: duplicate registry {name}"])
            continue
        settings = mistakes.attempt(partial(_creds_settings, creds, name, place, document, priorities))
        hosts |= {} if settings is None else {name: settings}
        credentials |= mistakes.attempt(partial(_credentials, creds, name, place, document)) or {}
    blocks = tuple(registry.block for registry in file.registries.values() if registry.block)
    return Access(hosts=hosts, credentials=credentials, blocks=blocks)


def _registry_settings(registry: MirrorRegistry, key: str, document: Document) -> dict[str, HostSettings]:
    """Return the settings of a host; nothing for a namespace or a locator of a plug-in, which have only credentials."""
    at = document.where(("registries", key))
    if not _is_plugin_locator(key) and "/" not in _validate_key(key, at):
        return {key: replace(registry.settings(document, ("registries", key)), advice=TlsAdvice.of_file(at))}
    if registry.model_fields_set - _LOGIN_KEYS:
        raise InvalidInput("expected only user, pass, token or block for a namespace or a plug-in", subject=at)
    return {}


def _is_plugin_locator(key: str) -> bool:
    scheme = find_scheme(f"{key}/")  # with a slash, `localhost:5000` has no scheme
    return scheme is not None and scheme not in BUILT_IN


def _validate_key(key: str, at: str) -> str:
    """Return a key `host[:port]` or `host[:port]/namespace`."""
    host, slash, namespace = key.partition("/")
    try:
        is_valid = is_host(host) and (not slash or Reference.parse(key).repository == namespace)
    except InvalidInput:
        is_valid = False
    if not is_valid:
        raise InvalidInput("expected host[:port] as in references, or host[:port]/namespace", subject=at)
    return key


def _registry(creds: Creds, document: Document, number: int) -> str:
    at = document.where(("creds", number, "registry"))
    name = resolve_secret(creds.registry, at=at)
    if not is_host(name):
        raise InvalidInput("expected host[:port] as in references", subject=at)
    return _HUB if name in _HUB_NAMES else name


def _credentials(section: LoginSection, key: str, place: Place, document: Document) -> dict[str, Credentials]:
    if not (section.pass_ or section.token):
        return {}
    texts = {"user": section.user, "pass": section.pass_, "token": section.token}
    for name in ("pass", "token"):
        if text := texts[name]:
            document.refuse_secret(text, (*place, name))
    values = {name: resolve_secret(text, at=document.where((*place, name))) if text else "" for name, text in texts.items()}
    keys = [name for name, value in values.items() if value]
    origin = Origin(document.where(place), f"correct {' and '.join(keys)} there")
    return {key: Credentials(values["user"], values["pass"], values["token"] or None, origin)}


def _creds_settings(creds: Creds, name: str, place: Place, document: Document, priorities: Mapping[str, int]) -> HostSettings:
    """Return the settings of an item of regsync's `creds`. Registry mirrors with the highest priority come first."""
    prefix = resolve_secret(creds.path_prefix, at=document.where((*place, "pathPrefix"))).strip("/")
    avoids_head = str(creds.api_opts.get("disableHead", "")).lower() == "true"
    return HostSettings(
        scheme=None if not creds.tls else "http" if creds.tls == "disabled" else "https",
        hostname=None if name == _HUB and creds.hostname in _HUB_NAMES else creds.hostname,
        tls=_tls(creds, place, document),
        mirrors=tuple(sorted(creds.mirrors, key=lambda mirror: -priorities.get(mirror, 0))),
        path_prefix=f"{prefix}/" if prefix else "",
        in_flight=creds.req_concurrent or None,
        per_second=creds.req_per_sec or None,
        avoid=frozenset({"head"} if avoids_head else ()),
        chunk_bytes=creds.blob_chunk or None,
        whole_bytes=creds.blob_max or None,
        advice=regsync_advice(document.where(place)),
    )


def regsync_advice(at: str) -> TlsAdvice:
    """Return the advice to set regsync's keys at a place in a file."""
    return TlsAdvice.of_file(at, authority="regcert", certificate="clientCert and clientKey")


def _tls(creds: Creds, place: Place, document: Document) -> Tls:
    """Return the TLS settings of an item of `creds`, with templates in its certificates replaced."""
    if creds.client_key:
        document.refuse_secret(creds.client_key, (*place, "clientKey"))
    authority, certificate, key = (
        resolve_secret(text, at=document.where((*place, name))) if text else None
        for name, text in (("regcert", creds.regcert), ("clientCert", creds.client_cert), ("clientKey", creds.client_key))
    )
    own = f"{certificate}\n{key}" if certificate else None
    tls = Tls(verify=creds.tls != "insecure", ca_pem=authority, cert_pem=own)
    with located(document.where(place)):
        if authority or own:
            tls.context()
    return tls
